"""Image metrics against torchmetrics and scikit-image on the same arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from omnivae.metrics import l1, ms_ssim, mse, psnr, ssim


@pytest.fixture(params=[1, 3])
def pair(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, request.param, 32, 48, generator=g) * 2 - 1
    x = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    return (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(-1, 1), x


def test_psnr_equals_scikit_image(pair):
    a, x = pair
    expected = [peak_signal_noise_ratio(t.numpy(), r.numpy(), data_range=2.0) for r, t in zip(a, x, strict=True)]
    np.testing.assert_allclose(psnr(a, x, data_range=2.0).numpy(), expected, rtol=1e-6)


def test_psnr_of_identical_images_is_infinite():
    x = torch.rand(2, 1, 4, 4)
    assert psnr(x, x, data_range=1.0).tolist() == [math.inf, math.inf]


def test_ssim_equals_torchmetrics(pair):
    a, x = pair
    ours = ssim(a, x, data_range=2.0)
    theirs = structural_similarity_index_measure(a, x, data_range=2.0, reduction="none")
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)


def test_ssim_agrees_with_scikit_image():
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 192, 192, generator=g), 5, 1, 2)
    a = x + 0.05 * torch.randn(x.shape, generator=g)
    for r, t, value in zip(a, x, ssim(a, x, data_range=1.0), strict=True):
        window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, similarity_map = structural_similarity(
            t.double().numpy(), r.double().numpy(), channel_axis=0, data_range=1.0, full=True, **window
        )
        # The whole map, border included, as torchmetrics averages it; the two mirror the border slightly differently.
        assert float(value) == pytest.approx(similarity_map.mean(), abs=2e-3)


def test_ms_ssim_is_one_for_identical_images_and_falls_with_noise(pair):
    a, x = pair
    torch.testing.assert_close(ms_ssim(x, x, data_range=2.0), torch.ones(3))
    assert (ms_ssim(a, x, data_range=2.0) < 0.999).all()


def test_errors_of_known_images():
    x = torch.zeros(1, 1, 2, 2)
    a = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])
    assert mse(a, x, data_range=4.0).tolist() == [1.5]
    assert l1(a, x, data_range=4.0).tolist() == [1.0]
