"""Errors in Hounsfield units: against scikit-image and plain numpy, on volumes and slices, with masks and structures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from omnivae import similarity
from omnivae.metrics import METRICS, evaluate
from omnivae.metrics.image import ssim
from omnivae.metrics.registry import GROUPS, resolve
from omnivae.metrics.volume import WINDOWS, hu_contract, hu_table, mae_hu, structure_errors, window_errors

CONTRACT = {"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS", "clip": True}


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 16, 18, 20, generator=generator, dtype=torch.float64) * 2400 - 1100
    return x + 80 * torch.randn(x.shape, generator=generator, dtype=torch.float64), x


class Darker(nn.Module):
    """Gives back what it is shown, a little darker."""

    value_range = (0.0, 1.0)
    in_channels = 1
    cond_dim = None

    def __init__(self, statistics: dict) -> None:
        super().__init__()
        self.statistics = statistics

    def encode(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        return z - 0.01


def items(x: Tensor) -> list[dict]:
    return [{"x": volume, "key": str(i)} for i, volume in enumerate(x)]


def test_windows_are_those_of_the_textbook():
    limits = {name: (w.low, w.high) for name, w in WINDOWS.items()}
    assert limits == {"lung": (-1350, 150), "soft_tissue": (-160, 240), "bone": (-500, 1300)}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_is_scikit_images_figure_of_what_it_shows(pair, name):
    a, x = pair
    low, high = WINDOWS[name].low, WINDOWS[name].high
    errors = window_errors(a, x, WINDOWS[name])
    for i in range(len(x)):
        shown_a, shown_x = ((np.clip(v[i, 0].numpy(), low, high) - low) / (high - low) for v in (a, x))
        psnr = peak_signal_noise_ratio(shown_x, shown_a, data_range=1.0)
        assert errors.psnr[i].item() == pytest.approx(psnr, abs=1e-9)
        _, full = structural_similarity(
            shown_x, shown_a, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        inside = (slice(5, -5),) * 3
        ours = similarity.ssim_map(*(torch.as_tensor(v)[None, None] for v in (shown_a, shown_x)), data_range=1.0)[0, 0]
        np.testing.assert_allclose(ours.numpy()[inside], full[inside], atol=1e-12)
        assert errors.ssim[i].item() == pytest.approx(float(ours.mean()), abs=1e-9)
        seen = (x[i] >= low) & (x[i] <= high)
        assert errors.mae[i].item() == pytest.approx(float((a[i] - x[i]).abs()[seen].mean()), rel=1e-12)
        assert errors.share[i].item() == pytest.approx(float(seen.double().mean()), rel=1e-12)


def test_similarity_of_volumes_is_torchmetrics_in_any_number_of_slabs(pair, monkeypatch):
    from torchmetrics.functional.image import structural_similarity_index_measure as reference

    a, x = (v / 1000 for v in pair)
    theirs, full = reference(a, x, data_range=2.0, reduction="none", return_full_image=True)
    np.testing.assert_allclose(similarity.ssim_map(a, x, data_range=2.0).numpy(), full.numpy(), atol=1e-12)
    np.testing.assert_allclose(ssim(a, x, data_range=2.0).numpy(), theirs.numpy(), rtol=1e-12)
    monkeypatch.setattr(similarity, "SLAB_VALUES", 1)  # a slab is never thinner than its halo
    np.testing.assert_allclose(similarity.ssim_map(a, x, data_range=2.0).numpy(), full.numpy(), atol=1e-12)
    thin = [v[:, :, :3] for v in (a, x)]
    theirs = reference(*thin, gaussian_kernel=False, kernel_size=3, data_range=2.0, reduction="none")
    np.testing.assert_allclose(ssim(*thin, data_range=2.0).numpy(), theirs.numpy(), rtol=1e-12)


def test_similarity_of_volumes_has_gradients():
    x = torch.rand(1, 1, 11, 11, 11, dtype=torch.float64)
    a = (x + 0.1).requires_grad_()
    similarity.ssim(a, x, data_range=1.0).sum().backward()
    step = torch.zeros_like(x)
    step[0, 0, 5, 5, 5] = 1e-6
    with torch.no_grad():
        up, down = (similarity.ssim(a + s * step, x, data_range=1.0).item() for s in (1, -1))
    assert a.grad is not None
    assert a.grad[0, 0, 5, 5, 5].item() == pytest.approx((up - down) / 2e-6, rel=1e-4)


def test_only_voxels_inside_the_mask_count(pair):
    a, x = pair
    mask = torch.zeros(2, 1, 16, 18, 20)
    mask[:, :, 3:9, 4:10, 5:15] = 1
    errors = window_errors(a, x, WINDOWS["bone"], mask=mask)
    cut = (..., slice(3, 9), slice(4, 10), slice(5, 15))
    alone = window_errors(a[cut], x[cut], WINDOWS["bone"])
    np.testing.assert_allclose(errors.psnr, alone.psnr)
    np.testing.assert_allclose(errors.mae, alone.mae)
    np.testing.assert_allclose(mae_hu(a, x, mask=mask), (a - x)[cut].abs().flatten(1).mean(1))


def test_equal_volumes_and_empty_windows():
    x = torch.full((1, 1, 12, 12, 12), -1000.0)
    errors = window_errors(x, x, WINDOWS["lung"])
    assert math.isinf(errors.psnr.item())
    assert errors.ssim.item() == pytest.approx(1)
    assert errors.mae.item() == 0
    soft = window_errors(x, x, WINDOWS["soft_tissue"])
    assert math.isnan(soft.mae.item())
    assert soft.share.item() == 0


def test_evaluate_measures_in_hounsfield_units():
    x = torch.rand(3, 1, 12, 13, 14) * 0.9 + 0.1
    result = evaluate(Darker({"intensity": CONTRACT}), items(x), ["mae_hu", "lung", "psnr_bone"], bootstrap=0)
    # A hundredth of [0, 1] is 20 of the 2000 HU.
    assert result.metrics["mae_hu"].mean == pytest.approx(20, abs=1e-3)
    assert result.metrics["mae_hu"].unit == "HU"
    expected = hu_table(x[0] * 2000 - 1020, x[0] * 2000 - 1000)
    for name in ("psnr_lung", "ssim_lung", "mae_lung", "psnr_bone"):
        assert result.per_image[name]["0"] == pytest.approx(expected[name], rel=1e-4)
    assert [m.name for m in resolve(["windows"])] == list(GROUPS["windows"])
    assert set(GROUPS["windows"]) <= set(METRICS)


@pytest.mark.parametrize(
    ("statistics", "said"),
    [
        ({}, "has no intensity contract"),
        ({"intensity": {"unit": "arbitrary", "percentiles": [0, 99.5], "range": [0, 1]}}, "unit 'arbitrary'"),
        ({"intensity": {"unit": "HU", "window": [1000, -1000], "range": [0, 1]}}, "expected a window"),
        ({"intensity": {"unit": "HU", "range": [0, 1]}}, "expected a window"),
    ],
)
def test_models_without_hounsfield_units_are_refused(statistics, said):
    with pytest.raises(ValueError, match=said):
        evaluate(Darker(statistics), items(torch.rand(1, 1, 12, 12, 12)), ["psnr_lung"])


def test_the_contract_maps_any_range():
    contract = hu_contract(Darker({"intensity": CONTRACT | {"range": [-1, 1], "window": [-500, 1500]}}))
    torch.testing.assert_close(contract.to_hu(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([-500.0, 500.0, 1500.0]))


def test_structures_have_errors_of_their_own():
    x = torch.zeros(1, 4, 4, 4)
    labels = torch.zeros(4, 4, 4, dtype=torch.int16)
    labels[0], labels[1] = 1, 7
    a = x.clone()
    a[:, 0] = 10
    a[:, 1, :2] = -4
    found = structure_errors(a, x, labels, names={1: "liver"})
    assert list(found) == ["liver", "label 7"]
    assert (found["liver"].voxels, found["liver"].mae, found["liver"].bias, found["liver"].rmse) == (16, 10, 10, 10)
    assert (found["label 7"].mae, found["label 7"].bias) == (2, -2)
    assert found["label 7"].rmse == pytest.approx(math.sqrt(8))
    with pytest.raises(ValueError, match="one size"):
        structure_errors(a, x, labels[:2])
    with pytest.raises(ValueError, match="0 everywhere"):
        structure_errors(a, x, torch.zeros(4, 4, 4))
    with pytest.raises(ValueError, match="no whole numbers"):
        structure_errors(a, x, torch.full((4, 4, 4), 0.5))
