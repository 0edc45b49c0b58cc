"""Sentences of a template grammar with a known latent structure: five choices that nothing else in the sentence tells."""

import random

SUBJECTS = ["cat", "dog", "hen", "fox", "owl", "ant", "bee", "cow"]
VERBS = ["sees", "hears", "likes", "fears", "finds", "hides", "meets", "calls"]
OBJECTS = ["river", "garden", "window", "castle", "mirror", "engine", "basket", "candle"]
COLOURS = ["red", "blue", "green", "black", "white", "grey", "brown", "pink"]
TIMES = ["monday", "tuesday", "friday", "sunday", "winter", "summer", "autumn", "spring"]
PARTS = (SUBJECTS, VERBS, COLOURS, OBJECTS, TIMES)
WORDS = sorted({word for part in PARTS for word in part} | {"the", "a", "on", "."})


def sentences(count, seed=0):
    """Return different sentences; five choices of eight, so 5 log 8 = 10.4 nats each."""
    draw = random.Random(seed)
    found = set()
    while len(found) < count:
        subject, verb, colour, thing, time = (draw.choice(part) for part in PARTS)
        found.add(f"the {subject} {verb} a {colour} {thing} on {time}.")
    return sorted(found, key=lambda s: random.Random(s).random())
