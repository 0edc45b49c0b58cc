"""Whitening of latents of any number of axes: per channel, or by one factor."""

import pytest
import torch
from vae_test_networks import build, build_vector

from omnivae.distributions import unwhiten, whiten

STATISTICS = {"mean": [0.0, 1.0, -2.0, 3.0, 0.5], "std": [1.0, 2.0, 0.5, 4.0, 1.0], "scale_factor": 0.25}


def calibrated(model):
    model.statistics["latent"] = STATISTICS
    return model


@pytest.mark.parametrize(
    ("make", "space"),
    [(build_vector, ()), (lambda: build(dim=1), (6,)), (build, (2, 3)), (lambda: build(dim=3), (2, 1, 3))],
    ids=["vector", "tokens", "image", "volume"],
)
@pytest.mark.parametrize("leading", [(), (2,), (3, 2)], ids=["one", "batch", "samples"])
def test_each_channel_has_its_own_mean_and_std(make, space, leading):
    model = calibrated(make())
    z = torch.randn(*leading, 5, *space)
    white = model.whiten(z)
    channels = (5, *[1] * len(space))
    mean, std = (torch.tensor(STATISTICS[name]).reshape(channels) for name in ("mean", "std"))
    torch.testing.assert_close(white, (z - mean) / std)
    torch.testing.assert_close(model.unwhiten(white), z)
    torch.testing.assert_close(model.whiten(z, kind="scale"), z * 0.25)
    torch.testing.assert_close(model.unwhiten(model.whiten(z, kind="scale"), kind="scale"), z)


def test_without_statistics_it_says_how_to_get_them():
    for method in (build().whiten, build().unwhiten):
        with pytest.raises(ValueError, match=r"no latent statistics.*omnivae calibrate"):
            method(torch.zeros(1, 5, 2, 2))


def test_what_does_not_fit_is_refused():
    model = calibrated(build())
    with pytest.raises(ValueError, match=r"\(1, 4, 2, 2\).*5 channels"):
        model.whiten(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="3 axes"):
        model.whiten(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="kind='all'"):
        model.whiten(torch.zeros(1, 5, 2, 2), kind="all")
    model.statistics["latent"] = STATISTICS | {"std": [1.0, 0.0, 1.0, 1.0, 1.0]}
    with pytest.raises(ValueError, match="channel 1 has no spread"):
        model.whiten(torch.zeros(1, 5, 2, 2))


def test_precision_and_device_are_kept():
    z = torch.randn(2, 5, 3, dtype=torch.float64)
    assert whiten(z, STATISTICS, axis=1).dtype == torch.float64
    torch.testing.assert_close(unwhiten(whiten(z, STATISTICS, axis=-2), STATISTICS, axis=1), z)
    assert whiten(z.bfloat16(), STATISTICS, axis=1).dtype == torch.float32
