"""Use of codes over a data set, against counts by hand, and through an evaluation."""

from __future__ import annotations

import math

import pytest
import torch
from linear_model import ListDataset
from torch import nn

import omnivae
from omnivae.metrics import evaluate
from omnivae.metrics.codes import CodeCounts
from omnivae.posteriors.quantised import QuantisedPosterior

#: Pixels are codes: 8 images of 2 x 2 codes, of which 1, 2 and 5 occur 16, 8 and 8 times.
PIXELS = torch.tensor([1, 1, 2, 5]).repeat(8).reshape(8, 1, 2, 2).float()


class Head(nn.Module):
    def __init__(self, num_codes):
        super().__init__()
        self.num_codes = num_codes


class PixelCodes(nn.Module):
    """A stand-in whose codes are the pixels; with two books the second's are twice as high."""

    value_range, in_channels, prior = (0.0, 8.0), 1, None

    def __init__(self, num_codes, books=1):
        super().__init__()
        self.posterior, self.books = Head(num_codes), books

    @property
    def encoder(self):
        return self

    def encode(self, x, cond=None):
        indices = x[:, 0].round().long()
        if self.books == 2:
            indices = torch.stack([indices, torch.zeros_like(indices)], -1)
        return QuantisedPosterior(x, indices, self.posterior.num_codes, {}, input_size=tuple(x.shape[2:]))

    def decode(self, z, cond=None, size=None):
        return z.mode() if isinstance(z, QuantisedPosterior) else z


def measured(model, images=PIXELS, **settings):
    found = evaluate(model, ListDataset(images), ("perplexity", "code_usage"), progress=False, **settings).metrics
    return found["perplexity"], found["code_usage"]


#: exp of the entropy of (1/2, 1/4, 1/4).
BY_HAND = 2 ** (0.5 * 1 + 0.25 * 2 + 0.25 * 2)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_figures_are_those_of_all_images_whatever_the_batches(batch_size):
    perplexity, usage = measured(PixelCodes(8), batch_size=batch_size)
    assert perplexity.mean == pytest.approx(BY_HAND)
    assert usage.mean == pytest.approx(3 / 8)
    for result in (perplexity, usage):
        assert result.low is None
        assert result.high is None


def test_residual_codebooks_are_averaged():
    # The second book has one code only: a perplexity of 1, one of 8 in use.
    perplexity, usage = measured(PixelCodes(8, books=2))
    assert perplexity.mean == pytest.approx((BY_HAND + 1) / 2)
    assert usage.mean == pytest.approx((3 / 8 + 1 / 8) / 2)


def test_one_code_and_all_codes_are_the_ends():
    perplexity, usage = measured(PixelCodes(4), torch.zeros(5, 1, 2, 2))
    assert (perplexity.mean, usage.mean) == (1.0, 0.25)
    perplexity, usage = measured(PixelCodes(4), torch.arange(4.0).repeat(5).reshape(5, 1, 2, 2))
    assert perplexity.mean == pytest.approx(4)
    assert usage.mean == 1.0


def test_numbers_beyond_float32_are_told_apart():
    # 2**24 and 2**24 + 1 are one number in float32, in which a population keeps its tables.
    model = PixelCodes(2**40)
    model.encode = lambda x, cond=None: QuantisedPosterior(
        x, x[:, 0].round().long() + 2**39, 2**40, {}, input_size=tuple(x.shape[2:])
    )
    perplexity, usage = measured(model)
    assert perplexity.mean == pytest.approx(BY_HAND)
    assert usage.mean == pytest.approx(3 / 2**40)


@pytest.mark.parametrize("recipe", ["vq_vae", "residual_vq_vae", "fsq_vae", "lfq_vae"])
def test_figures_of_the_recipes_are_those_of_their_indices(recipe):
    torch.manual_seed(0)
    sizes = {"fsq_vae": {"levels": (5, 4)}, "lfq_vae": {"latent_dim": 4}}
    model = getattr(omnivae, recipe)(
        in_channels=1, image_size=8, channels=(4, 8), **sizes.get(recipe, {"latent_dim": 3, "num_codes": 16})
    ).eval()
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    perplexity, usage = measured(model, images)
    indices = model.encode(images).indices
    books = indices.reshape(*indices.shape[:3], -1).flatten(0, 2).T
    shares = [torch.bincount(book, minlength=model.posterior.num_codes).double() / len(book) for book in books]
    expected = sum(math.exp(float(torch.special.entr(share).sum())) for share in shares) / len(shares)
    assert perplexity.mean == pytest.approx(expected)
    assert usage.mean == pytest.approx(float(torch.stack([(share > 0).double().mean() for share in shares]).mean()))
    # The histogram that training keeps says the same.
    counts = CodeCounts(model.posterior.num_codes, len(books))
    counts.add(indices)
    assert counts.perplexity == pytest.approx(expected)
    assert counts.usage == pytest.approx(usage.mean)


def test_a_model_without_codes_is_refused_with_two_ways_out():
    model = omnivae.conv_vae(in_channels=1, image_size=8, channels=(4,), latent_dim=2).eval()
    with pytest.raises(ValueError, match=r"has none: leave them out, or evaluate a quantised model such as vq_vae"):
        measured(model, torch.zeros(3, 1, 8, 8))
