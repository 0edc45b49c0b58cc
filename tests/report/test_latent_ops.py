"""Walks: ends equal reconstructions, traversals change one dimension, models are left as they were."""

from __future__ import annotations

import pytest
import torch
from report_models import MemoryDataset, tiny_model

from omnivae.report import interpolate, reconstruct, run_picture, traverse, traverse_model

X = MemoryDataset().x


@pytest.mark.parametrize("latent", ["vector", "spatial"])
@pytest.mark.parametrize("mode", ["linear", "spherical"])
def test_ends_equal_reconstructions(latent, mode):
    model = tiny_model(latent=latent)
    path = interpolate(model, X[0], X[1], mode=mode)
    assert path.shape == (10, 1, 8, 8)
    torch.testing.assert_close(path[[0, -1]], reconstruct(model, X[:2]))
    assert not path.requires_grad


def test_the_line_is_straight_and_the_circle_keeps_the_norm():
    model = tiny_model()
    z1, z2 = model.encode(X[:2]).mode()
    model.decoder = torch.nn.Identity()
    model.decode = lambda z, cond=None, size=None: z
    line = interpolate(model, X[0], X[1], steps=5)
    torch.testing.assert_close(line[2], (z1 + z2) / 2)
    model.encode = lambda x, cond=None: Fixed(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    circle = interpolate(model, X[0], X[1], steps=5, mode="spherical")
    torch.testing.assert_close(circle.norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(circle[2], torch.full((2,), 3 / 2**0.5))


class Fixed:
    input_size = (8, 8)

    def __init__(self, z: torch.Tensor) -> None:
        self.z = z

    def mode(self) -> torch.Tensor:
        return self.z


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_traversal_moves_one_dimension(latent):
    model = tiny_model(latent=latent)
    frames = traverse(model, X[0], dimensions=[2, 0], steps=3, span=2.0)
    assert frames.shape == (2, 3, 1, 8, 8)
    z = model.encode(X[:1]).mode().clone()
    z[:, 2] = -2.0
    torch.testing.assert_close(frames[0, :1], model.decode(z, size=(8, 8)))
    mean, std = torch.full((5,), 0.5), torch.full((5,), 2.0)
    z[:, 2] = 0.5 + 2.0 * 2.0
    shifted = traverse(model, X[0], dimensions=[2], steps=3, span=2.0, statistics=(mean, std))
    torch.testing.assert_close(shifted[0, -1:], model.decode(z, size=(8, 8)))


def test_traversal_is_ordered_by_kl():
    model = tiny_model()
    order = model.encode(X[:1]).kl_elements()[0].argsort(descending=True).tolist()
    torch.testing.assert_close(traverse(model, X[0]), traverse(model, X[0], dimensions=order))


def test_modes_are_restored():
    model = tiny_model().train()
    model.decoder.eval()
    interpolate(model, X[0], X[1])
    traverse(model, X[0])
    run_picture(model, X[:2])
    assert model.training
    assert model.encoder.training
    assert not model.decoder.training


def test_pictures_are_deterministic_and_leave_the_random_state():
    model = tiny_model()
    state = torch.random.get_rng_state()
    first, second = run_picture(model, X[:4]), run_picture(model, X[:4])
    assert first.tobytes() == second.tobytes()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.height == 4 * 96 + 3 * 4
    assert traverse_model(model, X[0], X, num_dimensions=3).height < traverse_model(model, X[0], X).height


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: interpolate(m, X[0], X[1, :, :4]), "expected equal shapes"),
        (lambda m: interpolate(m, X[0], X[1], steps=1), "got steps=1"),
        (lambda m: interpolate(m, X[0], X[1], mode="cubic"), "got mode='cubic'"),
        (lambda m: traverse(m, X[0], dimensions=[9]), "got latent dimension 9; this model has dimensions 0 to 4"),
        (lambda m: traverse(m, X[0], span=0.0), "span=0.0"),
        (lambda m: traverse_model(m, X[0], X, num_dimensions=0), "got num_dimensions=0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model())


def test_traversal_of_the_priors_range(monkeypatch):
    from omnivae.report import pictures
    from omnivae.report.pictures import prior_moments

    model = tiny_model()
    centre, spread = prior_moments(model, (5,), None)
    torch.testing.assert_close(centre, torch.zeros(5))
    torch.testing.assert_close(spread, torch.ones(5))
    asked = {}
    monkeypatch.setattr(pictures, "traverse", lambda *args, **known: asked.update(known) or traverse(*args, **known))
    traverse_model(model, X[0], X, num_dimensions=2, reach="prior")
    torch.testing.assert_close(asked["statistics"][1], torch.ones(5))
    traverse_model(model, X[0], X, num_dimensions=2)
    q = model.encode(X)
    # The aggregate posterior's variance: that of the means, and the mean of the variances.
    spread = (q.mean.double().var(0, unbiased=False) + q.logvar.double().exp().mean(0)).sqrt()
    torch.testing.assert_close(asked["statistics"][1], spread)
    with pytest.raises(ValueError, match="reach='posterior'"):
        traverse_model(model, X[0], X, reach="posterior")


def test_moments_of_a_mixture_are_those_of_the_whole():
    import omnivae
    from omnivae.report.pictures import prior_moments

    torch.manual_seed(0)
    model = omnivae.mixture_vae(in_channels=1, image_size=8, latent_dim=3, num_components=4)
    centre, spread = prior_moments(model, (3,), None)
    draws = model.prior(torch.Size((1, 3))).sample(torch.Size((20000,)))[:, 0]
    torch.testing.assert_close(centre, draws.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(spread, draws.std(0), atol=0.06, rtol=0)
