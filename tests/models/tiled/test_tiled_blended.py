"""Blended tiles: weights that sum to one, and an honest estimate of the seams."""

import pytest
import torch

import omnivae
from omnivae.models.tiled.blended import ramps, spans


@pytest.mark.parametrize(
    ("n", "length", "overlap"), [(10, 4, 0.25), (37, 8, 0.5), (20, 20, 0.3), (9, 1, 0.5), (50, 7, 0.0)]
)
def test_weights_sum_to_one(n, length, overlap):
    tiles = spans(n, length, overlap)
    total = torch.zeros(3 * n, dtype=torch.float64)
    for (start, stop), weights in zip(tiles, ramps(tiles, 3), strict=True):
        assert stop - start == min(length, n)
        total[3 * start : 3 * stop] += weights
    torch.testing.assert_close(total, torch.ones_like(total))


def test_seams_are_reported_and_none_without_tiles():
    torch.manual_seed(0)
    model = omnivae.kl_autoencoder(in_channels=1, channels=(8, 8), num_res_blocks=1, num_groups=4, mid_attention=False)
    x = torch.randn(1, 1, 60, 44)
    model.eval()
    tiled = omnivae.Tiled(model, memory="120kB", mode="blended")
    with torch.no_grad():
        whole = model.encode(x)
        error = (tiled.encode(x).mean - whole.mean).square().mean().sqrt()
        assert tiled.seams.num_tiles > 1
        # two tiles that disagree by d are wrong by about d / 2: the estimate is of the size of the error
        assert 0.1 * error < tiled.seams.rms < 10 * error
        roomy = omnivae.Tiled(model, memory="1GB", mode="blended")
        torch.testing.assert_close(roomy.encode(x).mean, whole.mean, atol=1e-5, rtol=1e-5)
        assert roomy.seams.num_tiles == 1
        assert roomy.seams.rms == 0
        torch.testing.assert_close(roomy.decode(whole), model.decode(whole), atol=1e-5, rtol=1e-5)
