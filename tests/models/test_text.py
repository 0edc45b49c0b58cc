"""The text VAE's mathematics: a distribution over sentences, whatever the batch; search; losses and bounds unchanged."""

import itertools
import math

import pytest
import torch

import omnivae
from omnivae.losses import IWAE, KL, NLL
from omnivae.models.sequences import TokenSequences, generate
from omnivae.models.text import TextVAE
from omnivae.networks.sequence import SequenceDecoder, SequenceEncoder
from omnivae.tokens import BEGIN, END, FIRST_PREDICTED, PAD, UNKNOWN

SENTENCES = ["a cat sat", "a", "the cat sat on a mat", "on the mat"]
WORDS = ["a", "cat", "mat", "on", "sat", "the"]


def build(**arguments):
    torch.manual_seed(0)
    arguments = {"vocabulary": WORDS, "latent_dim": 3, "embedding_dim": 5, "hidden": 7, "max_length": 9} | arguments
    return omnivae.text_vae(**arguments).double().eval()


def pad(x, length):
    return torch.nn.functional.pad(x, (0, length - x.shape[1]), value=PAD)


def enumerate_sequences(symbols, length):
    """Every event of ``length`` tokens: sentences that end within it, padded, and beginnings that do not."""
    others = [s for s in symbols if s != END]
    whole = [
        (*head, END, *[PAD] * (length - n - 1)) for n in range(length) for head in itertools.product(others, repeat=n)
    ]
    return torch.tensor([*whole, *itertools.product(others, repeat=length)])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("tied", [False, True])
def test_probabilities_of_all_sequences_sum_to_one(cell, tied):
    torch.manual_seed(0)
    decoder = SequenceDecoder(6, 2, 4, 5, num_layers=2, cell=cell, tied=tied).double()
    for length in (1, 2, 4):
        x = enumerate_sequences(range(FIRST_PREDICTED, 6), length)
        z = torch.randn(1, 2, dtype=torch.float64)
        p = TokenSequences(decoder, z.expand(len(x), 2), length=length)
        assert float(p.log_prob(x).exp().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_sentence_does_not_depend_on_its_padding_or_its_batch(cell):
    model = build(cell=cell, decoder_layers=2)
    x = model.to_tokens(SENTENCES)
    z = torch.randn(2, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        together, mean = model.likelihood(z).log_prob(x), model.encode(x).mean
        wide = pad(x, 9)
        torch.testing.assert_close(model.encode(wide).mean, mean, rtol=0, atol=1e-13)
        torch.testing.assert_close(model.likelihood(z).log_prob(wide), together, rtol=0, atol=1e-12)
        for i, sentence in enumerate(SENTENCES):
            alone = model.to_tokens([sentence])
            torch.testing.assert_close(model.encode(alone).mean[0], mean[i], rtol=0, atol=1e-13)
            torch.testing.assert_close(model.likelihood(z[:, i : i + 1]).log_prob(alone)[:, 0], together[:, i])


def test_teacher_forcing_equals_decoding_step_by_step():
    model = build(decoder_layers=2)
    x = model.to_tokens(SENTENCES)
    z = torch.randn(4, 3, dtype=torch.float64)
    each = model.likelihood(z).token_log_prob(x)
    state, token, total = None, torch.full((4, 1), BEGIN), torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for place in range(x.shape[1]):
            scores, state = model.decoder(token, z, state)
            log_p = scores[:, 0].log_softmax(1)
            token = x[:, place : place + 1]
            real = token[:, 0] != PAD
            picked = log_p.gather(1, (token - FIRST_PREDICTED).clamp(min=0))[:, 0]
            torch.testing.assert_close(each[real, place], picked[real])
            assert bool((each[~real, place] == 0).all())
            total += torch.where(real, picked, 0.0)
    torch.testing.assert_close(model.likelihood(z).log_prob(x), total)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = build()
    with torch.no_grad():
        model.decoder.output.weight.zero_()
        model.decoder.output.bias.zero_()
    x = model.to_tokens(SENTENCES)
    nats = -model.likelihood(torch.zeros(4, 3, dtype=torch.float64)).log_prob(x).sum()
    # Six words, the end and the unknown one; padding and the beginning cannot be written.
    assert math.exp(float(nats) / int((x != PAD).sum())) == pytest.approx(len(WORDS) + 2)
    assert model.num_values(x) * len(x) == int((x != PAD).sum())


class Recorder(torch.nn.Module):
    """A decoder that remembers what it reads."""

    out_channels = 10 - FIRST_PREDICTED

    def forward(self, tokens, z, state=None):
        self.read = tokens
        return torch.zeros(*tokens.shape, self.out_channels), ()


def test_word_dropout_changes_what_is_read_and_never_what_is_predicted():
    x = torch.randint(4, 10, (64, 20))
    x[:, -1] = END
    decoder = Recorder()
    torch.manual_seed(0)
    log_p = TokenSequences(decoder, torch.zeros(64, 2), length=20, word_dropout=0.3).log_prob(x)
    # A uniform decoder gives every target the same probability: none was replaced by another kind of token.
    torch.testing.assert_close(log_p, torch.full((64,), -20 * math.log(8)))
    expected = torch.cat([torch.full((64, 1), BEGIN), x[:, :-1]], 1)
    changed = decoder.read != expected
    assert bool((decoder.read[changed] == UNKNOWN).all())
    assert not bool(changed[:, 0].any())
    share = float(changed[:, 1:].float().mean())
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / (64 * 19)))
    TokenSequences(decoder, torch.zeros(64, 2), length=20, word_dropout=1.0).log_prob(x)
    assert bool((decoder.read[:, 1:] == UNKNOWN).all())


def test_word_dropout_is_of_training_only():
    model = build(word_dropout=0.9)
    x = model.to_tokens(SENTENCES)
    z = torch.randn(4, 3, dtype=torch.float64)
    with torch.no_grad():
        plain = build(word_dropout=0.0).likelihood(z).log_prob(x)
        assert torch.equal(model.likelihood(z).log_prob(x), plain)
        assert not torch.equal(model.train().likelihood(z).log_prob(x), plain)


def test_losses_read_each_sentence_once_and_agree_with_the_formulas():
    model = build()
    x = model.to_tokens(SENTENCES)
    torch.manual_seed(1)
    output = model(x, num_samples=5, sample=True)
    calls = []
    handle = model.decoder.register_forward_hook(lambda *_: calls.append(1))
    batch = {"x": x}
    nll, kl, bound = NLL()(output, batch), KL()(output, batch), IWAE(num_samples=5)(output, batch)
    assert calls == []  # the forward pass has read them
    handle.remove()
    q, z = output.latents[0].posterior, output.latents[0].z
    log_p = torch.stack([model.likelihood(z[k]).log_prob(x) for k in range(5)])
    torch.testing.assert_close(nll, -log_p.mean())
    torch.testing.assert_close(kl, (0.5 * (q.mean**2 + q.logvar.exp() - 1 - q.logvar)).sum(1).mean())
    log_w = log_p + output.latents[0].prior.log_prob(z) - output.latents[0].log_q
    torch.testing.assert_close(bound, -(log_w.logsumexp(0) - math.log(5)).mean())
    nll.backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_scores_taken_in_parts_are_the_same(monkeypatch):
    model = build()
    x = model.to_tokens(SENTENCES)
    z = torch.randn(3, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        whole = model.likelihood(z).log_prob(x)
        monkeypatch.setattr("omnivae.models.sequences.SCORES", 1)
        torch.testing.assert_close(model.likelihood(z).log_prob(x), whole)


# -- search


def test_a_full_beam_finds_the_most_probable_sequence():
    torch.manual_seed(3)
    decoder = SequenceDecoder(6, 2, 4, 5).double()
    with torch.no_grad():
        decoder.output.weight.mul_(6)
    z = torch.randn(5, 2, dtype=torch.float64)
    events = enumerate_sequences(range(FIRST_PREDICTED, 6), 3)
    with torch.no_grad():
        scores = torch.stack(
            [TokenSequences(decoder, row.expand(len(events), 2), length=3).log_prob(events) for row in z]
        )
    best = events[scores.argmax(1)]
    assert torch.equal(generate(decoder, z, length=3, search="beam", beam=4**3), best)
    one = generate(decoder, z, length=3, search="beam", beam=1)
    assert torch.equal(one, generate(decoder, z, length=3))


def test_samples_have_the_models_frequencies():
    torch.manual_seed(4)
    decoder = SequenceDecoder(5, 2, 4, 5).double()
    z = torch.randn(1, 2, dtype=torch.float64)
    events = enumerate_sequences(range(FIRST_PREDICTED, 5), 2)
    with torch.no_grad():
        probability = TokenSequences(decoder, z.expand(len(events), 2), length=2).log_prob(events).exp()
    count = 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = generate(decoder, z.expand(count, 2), length=2, search="sample", generator=generator)
    share = (drawn[:, None] == events[None]).all(2).double().mean(0)
    error = (probability * (1 - probability) / count).sqrt()
    assert bool(((share - probability).abs() < 4 * error).all())


def test_nothing_follows_the_end_and_the_unknown_token_can_be_forbidden():
    model = build()
    z = torch.randn(200, 3, dtype=torch.float64)
    drawn = model.decode(z, search="sample", generator=torch.Generator().manual_seed(0))
    ended = (drawn == END).cumsum(1) - (drawn == END).long() > 0
    assert bool((drawn[ended] == PAD).all())
    assert not bool((drawn[~ended] == PAD).any())
    assert bool((drawn == UNKNOWN).any())
    known = model.decode(z, search="sample", unknown=False, generator=torch.Generator().manual_seed(0))
    assert not bool((known == UNKNOWN).any())


# -- contract and bad input


def test_sentences_have_no_mean_and_a_reconstruction_that_is_searched():
    model = build()
    x = model.to_tokens(SENTENCES)
    output = model(x)
    with pytest.raises(ValueError, match=r"no mean: take \.mode"):
        _ = output.likelihood.mean
    assert torch.equal(output.reconstruction, model.decode(model.encode(x), size=(x.shape[1],)))
    assert model.decode(model.encode(x)).shape == (4, 9)


def test_bf16_scores_are_near_float32():
    model = build(decoder_layers=2).float()
    x = model.to_tokens(SENTENCES)
    with torch.no_grad():
        exact = model(x).likelihood.log_prob(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(x).likelihood.log_prob(x)
    assert rough.dtype == torch.float32
    # 8 significant bits on scores of about 1, added up over at most 7 tokens.
    assert float((exact - rough).abs().max()) < 0.1


def test_saving_keeps_the_vocabulary(tmp_path):
    model = build(tokens="character", vocabulary=list("abc "), lowercase=True)
    model.float().save_pretrained(tmp_path)
    again = omnivae.VAE.from_pretrained(tmp_path)
    assert isinstance(again, TextVAE)
    assert again.tokenizer.encode("A cb") == model.tokenizer.encode("a cb") == [4, 7, 6, 5, END]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3), "expected tokens"),
        (torch.tensor([[PAD, PAD]]), "empty sentence"),
        (torch.tensor([[4, END, 4]]), "goes on after its end"),
        (torch.tensor([[4, PAD, 4]]), "goes on after its end"),
        (torch.tensor([[BEGIN, 4, END]]), "token of a beginning"),
        (torch.tensor([[4, 99, END]]), "numbers 0 to 9"),
        (torch.full((1, 10), 4), "takes 1 to 9"),
    ],
)
def test_what_is_no_sentence_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        build().encode(x)


def test_text_that_does_not_fit_is_refused():
    model = build()
    with pytest.raises(ValueError, match=r"10 tokens.*at most 9"):
        model.to_tokens(["a " * 9])
    with pytest.raises(ValueError, match="at least one token"):
        model.to_tokens(["  "])
    with pytest.raises(ValueError, match="no vocabulary"):
        omnivae.text_vae()
    with pytest.raises(ValueError, match="word_dropout"):
        build(word_dropout=1.5)
    with pytest.raises(ValueError, match="condition"):
        model.encode(model.to_tokens(["a"]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="num_layers=4"):
        SequenceEncoder(10, num_layers=4)
