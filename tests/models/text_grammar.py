"""Sentences of a template grammar with a known latent structure: two choices, and two words that follow from each."""

from itertools import product

SUBJECTS = ["cat", "dog", "hen", "fox", "owl", "ant", "bee", "cow"]
VERBS = ["sees", "hears", "likes", "fears", "finds", "hides", "meets", "calls"]
COLOURS = ["red", "blue", "green", "black", "white", "grey", "brown", "pink"]
OBJECTS = ["river", "garden", "window", "castle", "mirror", "engine", "basket", "candle"]
TIMES = ["monday", "tuesday", "friday", "sunday", "winter", "summer", "autumn", "spring"]
WORDS = sorted({word for part in (SUBJECTS, VERBS, COLOURS, OBJECTS, TIMES) for word in part})
#: Words and the end.
LENGTH = 6


def sentences():
    """Return the 64 sentences, 2 log 8 = 4.2 nats of choice.

    The colour and the time follow from the subject, and the object from the verb: a decoder that reads what it has written needs
    no code to say them, one that does not needs it.
    """
    return [f"{SUBJECTS[s]} {VERBS[v]} {COLOURS[s]} {OBJECTS[v]} {TIMES[s]}" for s, v in product(range(8), repeat=2)]
