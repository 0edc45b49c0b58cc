import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from omnivae import conv_vae, evaluate
from omnivae.metrics.frechet import FEATURES, distance_of_pairs, embed


class Stripes:
    """Grey images of stripes at random angles and phases."""

    value_range = (0.0, 1.0)

    def __init__(self, n, seed=0, size=16):
        g = torch.Generator().manual_seed(seed)
        angle, phase = (6.28 * torch.rand(n, 1, 1, generator=g) for _ in range(2))
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        self.x = 0.5 + 0.5 * torch.sin(x * angle.cos() + y * angle.sin() + phase)[:, None]
        self.keys = [f"{seed}-{i}" for i in range(n)]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "key": self.keys[i]}


def test_distance_is_the_published_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 1
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert distance_of_pairs(np.stack([a, b], 1)) == pytest.approx(want, rel=1e-8)
    assert distance_of_pairs(np.stack([a, a], 1)) == pytest.approx(0, abs=1e-8)


def test_features_are_the_same_in_every_process_and_leave_the_random_stream_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    got = embed(torch.linspace(0, 1, 2 * 256).reshape(2, 1, 16, 16), (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert got.shape == (2, FEATURES)
    # The two value ranges are the same image.
    again = embed(2 * torch.linspace(0, 1, 2 * 256).reshape(2, 1, 16, 16) - 1, (-1, 1))
    torch.testing.assert_close(again, got)


def test_the_distance_grows_with_noise_and_tells_other_images():
    x = Stripes(128).x
    clean = embed(x, (0, 1))
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    distances = [
        distance_of_pairs(torch.stack([clean, embed((1 - share) * x + share * noise, (0, 1))], 1).double().numpy())
        for share in (0.0, 0.1, 0.3, 0.6)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances == sorted(distances)
    same = embed(Stripes(128, seed=1).x, (0, 1))
    assert distance_of_pairs(torch.stack([clean, same], 1).double().numpy()) < distances[1]


class Identity(torch.nn.Module):
    """Stands in for a decoder that draws the training images themselves."""

    def __init__(self, model, x):
        super().__init__()
        self.model, self.x = model, x

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)

    def sample(self, n, *, cond=None, generator=None):
        return self.x[torch.randint(len(self.x), (n,), generator=generator)]


def test_a_model_that_draws_from_the_data_has_the_distance_of_two_sets_of_data():
    model = conv_vae(in_channels=1, image_size=16, latent_dim=2, channels=(4, 8), likelihood="bernoulli").eval()
    images = Stripes(48)
    untrained = evaluate(model, images, ["gfd", "rfd"], num_workers=0).metrics
    perfect = evaluate(Identity(model, Stripes(96, seed=2).x), images, ["gfd"], num_workers=0).metrics["gfd"]
    assert perfect.mean < untrained["gfd"].mean / 5
    assert perfect.low is None  # see the module: the bootstrap is biased here
    assert untrained["rfd"].mean > perfect.mean


def test_volumes_are_refused():
    with pytest.raises(ValueError, match="3 spatial axes"):
        embed(torch.zeros(1, 1, 4, 4, 4), (0, 1))
