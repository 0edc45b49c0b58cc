"""Walks where latents are no real vectors: codes, points of a sphere, categories."""

from __future__ import annotations

import pytest
import torch
from report_models import MemoryDataset

import omnivae
from omnivae.report import interpolate, reconstruct, traverse, traverse_model, write_report
from omnivae.report.latent_ops import support

X = MemoryDataset().x

SMALL = {"in_channels": 1, "image_size": 8, "channels": (4, 8)}
MODELS = {
    "vq": lambda: omnivae.vq_vae(**SMALL, latent_dim=3, num_codes=12),
    "residual": lambda: omnivae.residual_vq_vae(**SMALL, latent_dim=3, num_codes=6, num_books=2),
    "fsq": lambda: omnivae.fsq_vae(**SMALL, levels=(4, 3)),
    "lfq": lambda: omnivae.lfq_vae(**SMALL, latent_dim=4),
    "sphere": lambda: omnivae.hyperspherical_vae(**SMALL, latent_dim=4, likelihood="gaussian"),
    "one-hot": lambda: omnivae.gumbel_softmax_vae(**SMALL, num_groups=3, num_categories=4, likelihood="gaussian"),
}
QUANTISED = ("vq", "residual", "fsq", "lfq")


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if hasattr(model.posterior, "books"):
        with torch.no_grad():
            for book in model.posterior.books:
                book.codes.normal_()
    return model


def every_code(head):
    """All codes of a head, ``[codes, C]``."""
    return head.codes(torch.arange(head.num_codes)[:, None])[..., 0]


@pytest.mark.parametrize("name", MODELS)
def test_ends_equal_reconstructions(name):
    model = build(name)
    torch.testing.assert_close(interpolate(model, X[0], X[1])[[0, -1]], reconstruct(model, X[:2]))


@pytest.mark.parametrize("name", QUANTISED)
def test_each_step_between_codes_is_decoded_from_codes(name, monkeypatch):
    model = build(name)
    seen = []
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda z, cond=None, *, size=None: seen.append(z) or decode(z, cond, size=size)
    )
    interpolate(model, X[0], X[1], steps=7)
    (path,) = seen
    if name == "residual":
        sums = torch.stack([a + b for a in model.posterior.books[0].codes for b in model.posterior.books[1].codes])
    else:
        sums = every_code(model.posterior)
    vectors = path.movedim(1, -1).flatten(0, -2)
    assert float(torch.cdist(vectors, sums.to(vectors)).min(1).values.max()) < 1e-5
    assert len(path) == 7
    assert not torch.equal(path[0], path[-1])


@pytest.mark.parametrize("name", ["vq", "fsq", "lfq"])
def test_snapping_finds_the_nearest_of_all_codes_and_changes_nothing(name):
    head = build(name).posterior
    before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    z = 2 * torch.randn(5, every_code(head).shape[1], 3, 2, generator=torch.Generator().manual_seed(1))
    snapped = head.train().snap(z)
    vectors, found = (t.movedim(1, -1).flatten(0, -2) for t in (z, snapped))
    codes = every_code(head)
    best = torch.cdist(vectors, codes, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    torch.testing.assert_close((vectors - found).norm(dim=1), best.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.snap(snapped), snapped)
    assert all(torch.equal(tensor, before[key]) for key, tensor in head.state_dict().items())


def test_residual_codes_are_snapped_one_book_after_the_other():
    head = build("residual").posterior
    z = torch.randn(4, 3, 2, 2)
    rest = z.movedim(1, -1).reshape(-1, 3)
    expected = torch.zeros_like(rest)
    for book in head.books:
        nearest = torch.cdist(rest - expected, book.codes).argmin(1)
        expected = expected + book.codes[nearest]
    torch.testing.assert_close(head.snap(z).movedim(1, -1).reshape(-1, 3), expected)


def test_a_walk_on_a_sphere_stays_there_and_has_even_steps(monkeypatch):
    model = build("sphere")
    seen = []
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda z, cond=None, *, size=None: seen.append(z) or decode(z, cond, size=size)
    )
    interpolate(model, X[0], X[1], steps=6)
    (path,) = seen
    torch.testing.assert_close(path.norm(dim=1), torch.ones(6))
    path = path.double()
    angles = torch.arccos((path[1:] * path[:-1]).sum(1))
    torch.testing.assert_close(angles, angles[0].expand(5), rtol=1e-2, atol=1e-4)
    with pytest.raises(ValueError, match=r"leaves it.*mode='spherical'.*conv_vae"):
        interpolate(model, X[0], X[1], mode="linear")


def test_a_walk_between_categories_stays_among_probabilities(monkeypatch):
    model = build("one-hot")
    seen = []
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda z, cond=None, *, size=None: seen.append(z) or decode(z, cond, size=size)
    )
    interpolate(model, X[0], X[1], steps=4)
    groups = seen[0].unflatten(1, (3, 4))
    torch.testing.assert_close(groups.sum(2), torch.ones(4, 3))
    assert float(groups.min()) >= 0
    with pytest.raises(ValueError, match=r"leaves the probabilities.*mode='linear'.*conv_vae"):
        interpolate(model, X[0], X[1], mode="spherical")


@pytest.mark.parametrize("name", MODELS)
def test_no_dimension_is_varied_by_itself_where_there_is_none(name):
    model = build(name)
    head = type(model.posterior).__name__
    for walk in (lambda: traverse(model, X[0]), lambda: traverse_model(model, X[0], X)):
        with pytest.raises(ValueError, match=rf"dimension.* {head}.*omnivae interpolate.*omnivae sample") as error:
            walk()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vq", "sphere", "one-hot"])
def test_a_report_leaves_traversals_out_and_says_how_it_walked(name, tmp_path):
    model = build(name)
    write_report(model, MemoryDataset(), tmp_path / "page.html", projections=())
    text = (tmp_path / "page.html").read_text()
    assert "Interpolations" in text
    assert "Traversal" not in text
    words = {"codes": "nearest code", "sphere": "Great circles", "one-hot": "Straight lines"}[support(model)]
    assert words in text
