"""Image metrics against torchmetrics, scikit-image and the papers' formulas, on the same arrays at several data ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import skimage.metrics
import torch
import torchmetrics.functional.image as reference
from linear_model import ListDataset

from omnivae import DataConfig, load_data, similarity
from omnivae.metrics import evaluate, l1, ms_ssim, mse, psnr, ssim

#: The settings under which scikit-image computes what the paper of SSIM defines.
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
SCALE_WEIGHTS = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]


def make_pair(channels, size, data_range):
    """Two smooth images and noisy versions of them, whole numbers where the range is one of integers."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.nn.functional.avg_pool2d(torch.rand(2, channels, *size, generator=generator), 5, 1, 2)
    a = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    low = -1.0 if data_range == 2 else 0.0
    a, x = (t * data_range + low for t in (a, x))
    return (a.round(), x.round()) if data_range > 2 else (a, x)


@pytest.fixture(params=[1, 2, 255, 65535], ids="range{}".format)
def data_range(request):
    return float(request.param)


@pytest.fixture(params=[(1, (32, 48)), (3, (33, 47)), (5, (41, 32))], ids=["grey", "rgb", "five"])
def pair(request, data_range):
    return make_pair(*request.param, data_range)


def test_psnr_equals_scikit_image_and_torchmetrics(pair, data_range):
    a, x = pair
    ours = psnr(a, x, data_range=data_range).numpy()
    skimage_values = [
        skimage.metrics.peak_signal_noise_ratio(t.double().numpy(), r.double().numpy(), data_range=data_range)
        for r, t in zip(a, x, strict=True)
    ]
    np.testing.assert_allclose(ours, skimage_values, rtol=1e-12)
    theirs = reference.peak_signal_noise_ratio(
        a.double(), x.double(), data_range=data_range, reduction="none", dim=(1, 2, 3)
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_psnr_of_16_bit_arrays_equals_scikit_image():
    random = np.random.default_rng(0)
    x = random.integers(0, 65536, (2, 3, 17, 19), dtype=np.uint16)
    a = np.clip(x + random.integers(-300, 300, x.shape), 0, 65535).astype(np.uint16)
    expected = [skimage.metrics.peak_signal_noise_ratio(t, r, data_range=65535) for r, t in zip(a, x, strict=True)]
    np.testing.assert_allclose(
        psnr(torch.from_numpy(a.astype(np.int32)), torch.from_numpy(x.astype(np.int32)), data_range=65535), expected
    )
    # The same images as a model sees them: scaled into [-1, 1].
    scaled = [torch.from_numpy(v.astype(np.float32) / 65535 * 2 - 1) for v in (a, x)]
    np.testing.assert_allclose(psnr(*scaled, data_range=2.0), expected, rtol=1e-5)


class Shift:
    """Stands in for a model: "reconstructs" an image with 1/64 of the range added."""

    value_range, in_channels, training = (-1.0, 1.0), 3, False

    def encode(self, x, cond=None):
        return x

    def decode(self, z, cond=None):
        return z + 2 / 64

    def parameters(self):
        return iter(())

    modules = parameters

    def eval(self):
        return self

    def to(self, device):
        return self


def test_a_16_bit_image_is_measured_at_its_own_range_through_the_data_layer(tmp_path):
    import tifffile

    random = np.random.default_rng(0)
    stored = random.integers(0, 60000, (4, 16, 16, 3), dtype=np.uint16)
    for i, image in enumerate(stored):
        tifffile.imwrite(tmp_path / f"{i}.tif", image, photometric="rgb")
    splits = load_data(DataConfig(str(tmp_path)), value_range=(-1.0, 1.0))
    result = evaluate(Shift(), splits.test, ["psnr", "ssim"], bootstrap=0)
    for key, value in result.per_image["psnr"].items():
        image = stored[int(key.removesuffix(".tif"))].astype(np.float64)
        expected = skimage.metrics.peak_signal_noise_ratio(image, image + 65535 / 64, data_range=65535)
        assert value == pytest.approx(expected, rel=1e-5)


def test_psnr_of_identical_images_is_infinite():
    x = torch.rand(2, 1, 4, 4)
    assert psnr(x, x, data_range=1.0).tolist() == [math.inf, math.inf]


def test_ssim_equals_torchmetrics(pair, data_range):
    a, x = pair
    theirs = reference.structural_similarity_index_measure(a, x, data_range=data_range, reduction="none")
    np.testing.assert_allclose(ssim(a, x, data_range=data_range).numpy(), theirs.numpy(), rtol=1e-6)


def test_ssim_equals_scikit_image_inside_its_border(pair, data_range):
    a, x = pair
    inside = similarity.ssim_map(a.double(), x.double(), data_range=data_range)[..., 5:-5, 5:-5].flatten(1).mean(1)
    for r, t, value in zip(a.double().numpy(), x.double().numpy(), inside, strict=True):
        theirs = skimage.metrics.structural_similarity(t, r, data_range=data_range, **GAUSSIAN)
        assert float(value) == pytest.approx(theirs, rel=1e-9)


def test_float32_is_enough_for_ssim(pair, data_range):
    a, x = pair
    exact = ssim(a.double(), x.double(), data_range=data_range)
    np.testing.assert_allclose(ssim(a, x, data_range=data_range), exact, atol=2e-5)


def test_ssim_of_images_smaller_than_the_window_uses_the_largest_uniform_one():
    a, x = make_pair(1, (8, 9), 1)
    theirs = [
        skimage.metrics.structural_similarity(
            t.numpy(), r.numpy(), data_range=1.0, channel_axis=0, win_size=7, use_sample_covariance=False
        )
        for r, t in zip(a.double(), x.double(), strict=True)
    ]
    inside = similarity.ssim_map(a.double(), x.double(), data_range=1)[..., 3:-3, 3:-3].flatten(1).mean(1)
    np.testing.assert_allclose(inside, theirs, rtol=1e-9)


def reference_ms_ssim(a, x, data_range):
    """The paper's formula: contrast and structure at five scales, luminance at the coarsest, 2x2 means in between."""
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        values = []
        for u, v in zip(a, x, strict=True):

            def blur(image):
                return scipy.ndimage.gaussian_filter(image, 1.5, truncate=3.5, mode="mirror")

            mu, nu = blur(u), blur(v)
            c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            contrast = (2 * (blur(u * v) - mu * nu) + c2) / (blur(u * u) - mu**2 + blur(v * v) - nu**2 + c2)
            luminance = (2 * mu * nu + c1) / (mu**2 + nu**2 + c1)
            coarsest = scale == len(SCALE_WEIGHTS) - 1
            values.append((contrast * luminance).mean() if coarsest else contrast[5:-5, 5:-5].mean())
        product *= np.mean(values) ** weight
        a, x = (
            image[:, : image.shape[1] // 2 * 2, : image.shape[2] // 2 * 2]
            .reshape(len(image), image.shape[1] // 2, 2, image.shape[2] // 2, 2)
            .mean((2, 4))
            for image in (a, x)
        )
    return product


@pytest.mark.parametrize("channels", [1, 3])
def test_ms_ssim_equals_torchmetrics_and_the_formula(channels, data_range):
    a, x = make_pair(channels, (181, 203), data_range)
    ours = ms_ssim(a, x, data_range=data_range)
    for r, t, value in zip(a, x, ours, strict=True):
        theirs = reference.multiscale_structural_similarity_index_measure(
            r[None], t[None], data_range=data_range, normalize="relu"
        )
        assert float(value) == pytest.approx(float(theirs), rel=1e-6)
        expected = reference_ms_ssim(r.double().numpy(), t.double().numpy(), data_range)
        assert float(value) == pytest.approx(expected, abs=2e-4)


def test_ms_ssim_is_one_for_identical_images_and_falls_with_noise(pair, data_range):
    a, x = pair
    torch.testing.assert_close(ms_ssim(x, x, data_range=data_range), torch.ones(2))
    assert (ms_ssim(a, x, data_range=data_range) < 0.999).all()


def test_ms_ssim_of_small_images_is_marked(loose_model, images):
    result = evaluate(loose_model, ListDataset(images), ["ms_ssim", "ssim"], bootstrap=0)
    assert result.notes == {"ms_ssim": "24 of 24 images are smaller than 176 pixels and measured at 1 of 5 scales"}


def test_errors_of_known_images():
    x = torch.zeros(1, 1, 2, 2)
    a = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])
    assert mse(a, x, data_range=4.0).tolist() == [1.5]
    assert l1(a, x, data_range=4.0).tolist() == [1.0]


# -- masks


@pytest.fixture
def masked():
    a, x = make_pair(3, (24, 20), 1)
    mask = torch.zeros(2, 1, 24, 20, dtype=torch.bool)
    mask[0, :, 3:15, 4:18] = True
    mask[1, :, :, :7] = True
    return a, x, mask


@pytest.mark.parametrize(("function", "of"), [(mse, np.square), (l1, np.abs)])
def test_errors_count_only_inside_the_mask(masked, function, of):
    a, x, mask = masked
    for i, value in enumerate(function(a, x, data_range=1.0, mask=mask)):
        difference = (a[i].double() - x[i].double()).numpy()[:, mask[i, 0].numpy()]
        assert float(value) == pytest.approx(of(difference).mean(), rel=1e-12)


def test_psnr_counts_only_inside_the_mask(masked):
    a, x, mask = masked
    inside = mse(a, x, data_range=1.0, mask=mask)
    np.testing.assert_allclose(psnr(a, x, data_range=1.0, mask=mask), -10 * inside.log10())
    outside = a + (~mask) * 7
    np.testing.assert_array_equal(psnr(outside, x, data_range=1.0, mask=mask), psnr(a, x, data_range=1.0, mask=mask))


def test_ssim_is_the_mean_of_its_map_inside_the_mask(masked):
    a, x, mask = masked
    values = similarity.ssim_map(a, x, data_range=1.0).numpy()
    for i, value in enumerate(ssim(a, x, data_range=1.0, mask=mask)):
        assert float(value) == pytest.approx(values[i][:, mask[i, 0].numpy()].mean(dtype=np.float64), rel=1e-6)


def test_a_full_mask_changes_nothing(masked):
    a, x, mask = masked
    for function in (psnr, ssim, mse, l1):
        whole = function(a, x, data_range=1.0)
        np.testing.assert_allclose(function(a, x, data_range=1.0, mask=torch.ones_like(mask)), whole, rtol=1e-5)


class Masked(ListDataset):
    def __init__(self, images, mask):
        super().__init__(images)
        self.mask = mask

    def __getitem__(self, index):
        return super().__getitem__(index) | {"mask": self.mask}


def test_evaluate_honours_masks(loose_model, images):
    mask = torch.tensor([[[1, 0], [0, 1]]])
    result = evaluate(loose_model, Masked(images, mask), ["mse", "kl"], bootstrap=0, num_workers=1)
    error = (loose_model.decode(loose_model.encode(images)).clamp(-4, 4) - images).square()
    expected = (error[:, 0, 0, 0] + error[:, 0, 1, 1]) / 2
    assert list(result.per_image["mse"].values()) == pytest.approx(expected.tolist(), rel=1e-5)


def test_metrics_that_cannot_honour_a_mask_refuse_it(loose_model, images):
    data = Masked(images, torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match=r"has a mask, which ms_ssim, elbo cannot honour; measure psnr only"):
        evaluate(loose_model, data, ["psnr", "ms_ssim", "elbo"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 2, 2), "leaves no pixel to measure"),
        (torch.ones(1, 2, 3), r"has shape \(1, 2, 3\); expected \(1, 2, 2\)"),
        (torch.full((1, 2, 2), 0.5), "values other than 0 and 1"),
    ],
)
def test_bad_masks_are_refused_by_name(loose_model, images, mask, message):
    with pytest.raises(ValueError, match=f"the mask of image 'image/000' .*{message}"):
        evaluate(loose_model, Masked(images, mask), ["mse"])
