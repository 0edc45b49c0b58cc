"""Posterior collapse on text, engineered and cured: five independent choices in each sentence, which only z can know."""

import importlib.util
from pathlib import Path

import pytest
import torch

import omnivae
from omnivae.losses import KL, NLL
from omnivae.models.text import TextVAE

_spec = importlib.util.spec_from_file_location("text_grammar", Path(__file__).parents[1] / "models" / "text_grammar.py")
grammar = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(grammar)

STEPS, BATCH = 250, 32


def trained(kl, **arguments):
    """Train for a few seconds; return the active units and the mean information of the codes in nats."""
    torch.manual_seed(0)
    vocabulary = {"vocabulary": grammar.WORDS, "max_length": 10, "latent_dim": 8}
    model = omnivae.text_vae(
        **vocabulary, embedding_dim=24, hidden=48, encoder_layers=1, cell="gru", **({"word_dropout": 0.0} | arguments)
    )
    assert isinstance(model, TextVAE)
    x = model.to_tokens(grammar.sentences(1024))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    nll = NLL()
    for step in range(STEPS):
        rows = torch.randint(len(x), (BATCH,))
        batch = {"x": x[rows]}
        output = model(batch["x"])
        kl.step = step
        loss = nll(output, batch) + kl.current_weight() * kl(output, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        q = model.eval().encode(x)
        variance = q.mean.var(0)
        information = 0.5 * torch.log1p(variance / q.logvar.exp().mean(0)).sum()
    return int((variance > 0.01).sum()), float(information)


def test_a_strong_decoder_under_the_plain_elbo_ignores_its_code():
    active, information = trained(KL())
    assert active == 0
    assert information < 0.1


@pytest.mark.parametrize(
    ("kl", "arguments"),
    [
        pytest.param(KL(free_bits=0.5), {}, id="free bits"),
        pytest.param(KL(weight=0.2), {}, id="beta below 1"),
    ],
)
def test_free_bits_and_a_smaller_beta_bring_the_code_back(kl, arguments):
    active, information = trained(kl, **arguments)
    assert active >= 2
    assert information > 1.0
