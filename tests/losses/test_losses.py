"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MixtureSameFamily, Normal
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as reference_ms_ssim
from torchmetrics.functional.image import structural_similarity_index_measure as reference_ssim

from omnivae.component import registered
from omnivae.distributions import DiagonalGaussian
from omnivae.likelihoods import BernoulliLikelihood, GaussianLikelihood
from omnivae.losses import (
    KL,
    L1,
    MSE,
    MSSSIM,
    NLL,
    ConstantSchedule,
    CosineSchedule,
    CyclicalSchedule,
    LinearSchedule,
    Loss,
    loss_classes,
)
from omnivae.similarity import ms_ssim, num_scales, ssim
from omnivae.types import Latent, VAEOutput


def prior(shape):
    return Independent(Normal(torch.zeros(shape), torch.ones(shape)), len(shape) - 1)


def output_of(reconstruction, posterior=None, *, scale=1.0, k=1):
    """An output whose K reconstructions are the given ones, ``[B, C, *S]`` or ``[K, B, C, *S]``."""
    params = reconstruction if k > 1 else reconstruction[None]
    q = posterior or DiagonalGaussian(torch.zeros(params.shape[1], 2), torch.zeros(params.shape[1], 2))
    z, log_q = q.rsample(k)
    return VAEOutput((Latent(q, prior(q.shape), z, log_q),), GaussianLikelihood(scale)(params, batch_ndim=2))


def from_posterior(mean, logvar=None, p=None):
    q = DiagonalGaussian(mean, torch.zeros_like(mean) if logvar is None else logvar)
    z, log_q = q.rsample(4)
    latent = Latent(q, p or prior(q.shape), z, log_q)
    return VAEOutput((latent,), GaussianLikelihood()(torch.zeros(1, len(mean), 1, 2), batch_ndim=2))


def empty(n=2):
    return {"x": torch.zeros(n, 1, 2)}


# -- reconstruction: two images of 1x2x2

X = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
R = torch.tensor([[[[1.0, 1.0], [0.0, 3.0]]], [[[1.0, 0.0], [1.0, 5.0]]]])
# Errors: (1, 0, 2, 0) and (0, 1, 0, 4): absolute 3 and 5, squared 5 and 17.


def test_l1_sums_over_the_image_and_averages_over_the_batch():
    assert L1()(output_of(R), {"x": X}).item() == 4.0
    assert L1(per_element=True)(output_of(R), {"x": X}).item() == 1.0


def test_mse_sums_over_the_image_and_averages_over_the_batch():
    assert MSE()(output_of(R), {"x": X}).item() == 11.0
    assert MSE(per_element=True)(output_of(R), {"x": X}).item() == 2.75


def test_nll_of_a_gaussian():
    constant = 4 * 0.5 * math.log(2 * math.pi)
    assert NLL()(output_of(R), {"x": X}).item() == pytest.approx(5.5 + constant, rel=1e-6)
    assert NLL(per_element=True)(output_of(R), {"x": X}).item() == pytest.approx((5.5 + constant) / 4, rel=1e-6)
    narrow = NLL()(output_of(R, scale=0.5), {"x": X}).item()
    assert narrow == pytest.approx(22.0 + constant + 4 * math.log(0.5), rel=1e-6)


def test_nll_averages_over_posterior_samples():
    samples = torch.stack([R, X, X])
    loss = NLL(num_samples=3)(output_of(samples, k=3), {"x": X})
    assert loss.item() == pytest.approx(5.5 / 3 + 2 * math.log(2 * math.pi), rel=1e-6)
    assert NLL(num_samples=3).num_samples == 3


def test_l1_and_mse_look_at_the_first_sample():
    samples = torch.stack([R, X])
    assert L1()(output_of(samples, k=2), {"x": X}).item() == 4.0
    assert MSE()(output_of(samples, k=2), {"x": X}).item() == 11.0


def test_nll_of_bernoulli_pixels_by_hand():
    likelihood = BernoulliLikelihood()(torch.full((1, 2, 1, 2, 2), math.log(3.0)), batch_ndim=2)  # p = 3/4
    output = VAEOutput(output_of(R).latents, likelihood)
    x = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2).repeat(2, 1, 1, 1)
    expected = -(3 * math.log(0.75) + math.log(0.25))
    assert NLL()(output, {"x": x}).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [L1(), MSE(), NLL()], ids=lambda m: m.name)
def test_a_target_replaces_the_input(loss):
    direct = loss(output_of(R), {"x": X})
    assert torch.equal(loss(output_of(R), {"x": torch.full_like(X, 9.0), "target": X}), direct)


@pytest.mark.parametrize("loss", [L1(), MSE(), NLL(), KL(), KL(free_bits=0.1)], ids=lambda m: m.name)
def test_losses_are_float32_scalars_on_low_precision_input(loss):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(output_of(R.bfloat16()), {"x": X.bfloat16()})
    assert value.shape == ()
    assert value.dtype == torch.float32


@pytest.mark.parametrize("per_element", [False, True])
def test_document_3_weights_mean_what_they_mean_there(per_element):
    """There: l1_weight 1.0 on a mean over all pixels, kl_weight 1e-8 on nats summed over the latent."""
    x, r = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    q = DiagonalGaussian(torch.randn(4, 5, 2, 2), torch.randn(4, 5, 2, 2))
    l1, kl = L1(weight=1.0, per_element=True), KL(weight=1e-8, per_element=per_element)
    output = output_of(r, q)
    total = sum(loss.current_weight() * loss(output, {"x": x}) for loss in (l1, kl))
    nats = -0.5 * (1 + q.logvar - q.mean**2 - q.logvar.exp()).sum() / 4
    torch.testing.assert_close(total, (x - r).abs().mean() + 1e-8 * (nats / 20 if per_element else nats))


# -- KL: two samples, two elements; KL of N(m, 1) from N(0, 1) is m^2 / 2

MEAN = torch.tensor([[0.0, 2.0], [1.0, 4.0]])
# Elements: (0, 2) and (1/2, 8): sums 2 and 8.5, batch means of each element 1/4 and 5.


def test_kl_sums_over_the_latent_and_averages_over_the_batch():
    assert KL()(from_posterior(MEAN), empty()).item() == 5.25
    assert KL(per_element=True)(from_posterior(MEAN), empty()).item() == 2.625


def test_kl_of_variances():
    logvar = torch.log(torch.tensor([[4.0, 0.25]]))
    expected = 0.5 * (4 - 1 - math.log(4)) + 0.5 * (0.25 - 1 + math.log(4))
    assert KL()(from_posterior(torch.zeros(1, 2), logvar), empty(1)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("free_bits", "expected"), [(0.2, 0.25 + 5), (0.25, 5.25), (0.5, 0.5 + 5), (4.9, 9.9), (6.0, 12.0)]
)
def test_free_bits_take_the_larger_of_lambda_and_the_batch_mean_of_each_element(free_bits, expected):
    assert KL(free_bits=free_bits)(from_posterior(MEAN), empty()).item() == pytest.approx(expected, rel=1e-6)
    per_element = KL(free_bits=free_bits, per_element=True)(from_posterior(MEAN), empty())
    assert per_element.item() == pytest.approx(expected / 2, rel=1e-6)


def test_free_bits_are_counted_for_each_latent_element_of_a_spatial_latent():
    mean = MEAN.reshape(2, 1, 2, 1)
    assert KL(free_bits=0.5)(from_posterior(mean), empty()).item() == pytest.approx(5.5, rel=1e-6)


def test_free_bits_give_no_gradient_below_lambda():
    mean = MEAN.clone().requires_grad_()
    KL(free_bits=0.5)(from_posterior(mean), empty()).backward()
    # d/dm of the batch mean of m^2/2 is m/2; the first element is free.
    assert torch.equal(mean.grad, torch.tensor([[0.0, 1.0], [0.0, 2.0]]))


@pytest.mark.parametrize(("capacity", "expected"), [(0.0, 5.25), (5.0, 0.25), (5.25, 0.0), (8.0, 2.75)])
def test_capacity_is_the_distance_of_the_kl_from_it(capacity, expected):
    assert KL(capacity=capacity)(from_posterior(MEAN), empty()).item() == pytest.approx(expected, abs=1e-6)


def test_capacity_follows_its_schedule():
    loss = KL(capacity=LinearSchedule(0.0, 10.0, length=100))
    values = []
    for step in (0, 50, 100, 1000):
        loss.step = step
        values.append(loss(from_posterior(MEAN), empty()).item())
    assert values == pytest.approx([5.25, 0.25, 4.75, 4.75])
    by_epoch = KL(capacity=LinearSchedule(0.0, 10.0, length=4, unit="epoch"))
    by_epoch.step, by_epoch.epoch = 100, 1
    assert by_epoch(from_posterior(MEAN), empty()).item() == pytest.approx(2.75)


def test_kl_sums_over_several_latents():
    one, other = from_posterior(MEAN), from_posterior(torch.ones(2, 3))
    both = VAEOutput((*one.latents, *other.latents), one.likelihood)
    assert KL()(both, empty()).item() == pytest.approx(5.25 + 1.5)
    assert KL(per_element=True)(both, empty()).item() == pytest.approx(5.25 / 2 + 0.5)
    assert KL(free_bits=0.6)(both, empty()).item() == pytest.approx(0.6 + 5 + 3 * 0.6)
    assert KL(capacity=7.0)(both, empty()).item() == pytest.approx(0.25)


def test_kl_without_a_closed_form_uses_the_outputs_own_samples():
    centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).expand(2, 2, 2)
    weights = torch.distributions.Categorical(probs=torch.full((2, 2), 0.5))
    p = MixtureSameFamily(weights, Independent(Normal(centres, torch.ones(2, 2, 2)), 1))
    output = from_posterior(MEAN, p=p)
    latent = output.latents[0]
    expected = (latent.log_q - p.log_prob(latent.z)).mean()
    assert torch.equal(KL()(output, empty()), KL()(output, empty()))
    torch.testing.assert_close(KL()(output, empty()), expected)
    with pytest.raises(ValueError, match="free_bits"):
        KL(free_bits=0.5)(output, empty())


def test_kl_without_a_density_says_what_to_do():
    output = from_posterior(MEAN)
    latent = Latent(output.latents[0].posterior, None, output.z[None], None)
    with pytest.raises(ValueError, match=r"no density.*kl"):
        KL()(VAEOutput((latent,), output.likelihood), empty())


# -- MS-SSIM


def pair(size, n=2, dim=2):
    a = torch.rand(n, 3, *[size] * dim)
    return a, (a + 0.2 * torch.randn_like(a)).clamp(0, 1)


def test_ms_ssim_equals_torchmetrics_on_large_images():
    a, b = pair(176)
    expected = torch.stack([reference_ms_ssim(x[None], y[None], data_range=1.0) for x, y in zip(a, b, strict=True)])
    # The paper's weights sum to 1.0001; whether they are rescaled shows in the fifth digit.
    torch.testing.assert_close(ms_ssim(a, b, data_range=1.0), expected.reshape(2), rtol=0, atol=5e-5)
    loss = MSSSIM(value_range=(0.0, 1.0))(output_of(b), {"x": a})
    torch.testing.assert_close(loss, 1 - expected.mean(), rtol=0, atol=5e-5)


def test_the_eleven_pixel_window_fits_into_the_coarsest_image():
    counts = [num_scales(size) for size in range(1, 600)]
    assert counts == sorted(counts)
    assert [num_scales(size) for size in (11, 20, 32, 64, 128, 176, 512)] == [1, 1, 2, 3, 4, 5, 5]
    too_many = [size for size in range(11, 600) if size // 2 ** (num_scales(size) - 1) < 11]
    assert too_many == []


def test_ms_ssim_takes_every_size():
    refused = []
    for size in range(1, 180):
        a = torch.rand(1, 1, size, size)
        try:
            value = ms_ssim(a, 0.9 * a, data_range=1.0)
        except ValueError:
            refused.append(size)
        else:
            assert torch.isfinite(value).all()
    assert refused == []


@pytest.mark.parametrize("size", [24, 48, 64, 128])
def test_smaller_images_use_fewer_scales_with_weights_rescaled_to_one(size):
    a, b = pair(size, n=1)
    weights = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[: num_scales(size)]
    betas = tuple((weights / weights.sum()).tolist())
    expected = reference_ms_ssim(a, b, data_range=1.0, betas=betas)
    torch.testing.assert_close(ms_ssim(a, b, data_range=1.0), expected.reshape(1))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 11, 16, 20, 21, 32])
def test_ms_ssim_of_any_size_is_one_for_equal_images_and_less_for_others(size):
    a, b = pair(size)
    torch.testing.assert_close(ms_ssim(a, a, data_range=1.0), torch.ones(2))
    assert (ms_ssim(a, b, data_range=1.0) < 1).all()
    assert MSSSIM(value_range=(0, 1))(output_of(a), {"x": a}).item() == pytest.approx(0, abs=1e-6)


def test_ssim_equals_torchmetrics_and_takes_volumes():
    a, b = pair(32)
    expected = reference_ssim(a, b, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(a, b, data_range=1.0), expected)
    a, b = pair(12, n=1, dim=3)
    torch.testing.assert_close(
        ssim(a, b, data_range=1.0), reference_ssim(a, b, data_range=1.0, reduction="none").reshape(1)
    )


def test_ms_ssim_does_not_depend_on_the_rest_of_the_batch():
    a, b = pair(48, n=3)
    torch.testing.assert_close(ms_ssim(a, b, data_range=1.0)[1:2], ms_ssim(a[1:2], b[1:2], data_range=1.0))


def test_the_value_range_sets_the_data_range():
    a, b = pair(24)
    unit = MSSSIM(value_range=(0.0, 1.0))(output_of(b), {"x": a})
    symmetric = MSSSIM(value_range=(-1.0, 1.0))(output_of(2 * b), {"x": 2 * a})
    torch.testing.assert_close(unit, symmetric)


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("kind", ["near", "constant", "negative"])
def test_ms_ssim_gradients_are_finite(size, kind):
    # A negative structure term is cut off at zero; zero to a power below one has no finite slope.
    a, near = pair(size)
    b = {"near": near, "constant": torch.full_like(a, 0.5), "negative": 1 - a}[kind].requires_grad_()
    MSSSIM(value_range=(0.0, 1.0))(output_of(b), {"x": a}).backward()
    assert torch.isfinite(b.grad).all()


# -- weights


@pytest.mark.parametrize("cls", [NLL, KL, L1, MSE, MSSSIM])
def test_the_weight_is_not_part_of_the_value(cls):
    a, b = pair(24)
    more = {"value_range": (0.0, 1.0)} if cls is MSSSIM else {}
    assert torch.equal(cls(weight=7.0, **more)(output_of(b), {"x": a}), cls(**more)(output_of(b), {"x": a}))
    assert cls(weight=7.0).current_weight() == 7.0
    assert cls().current_weight() == 1.0


@pytest.mark.parametrize("cls", [NLL, KL, L1, MSE, MSSSIM])
def test_every_weight_takes_a_schedule(cls):
    for schedule, values in (
        (ConstantSchedule(0.3), [0.3, 0.3, 0.3, 0.3]),
        (LinearSchedule(0.0, 2.0, length=10), [0.0, 1.0, 2.0, 2.0]),
        (CosineSchedule(0.0, 2.0, length=10), [0.0, 1.0, 2.0, 2.0]),
        (CyclicalSchedule(cycle_length=10), [0.0, 1.0, 0.0, 0.0]),
    ):
        loss = cls(weight=schedule)
        got = []
        for loss.step in (0, 5, 10, 100):
            got.append(loss.current_weight())
        assert got == pytest.approx(values)


def test_a_schedule_in_epochs_ignores_steps():
    loss = KL(weight=LinearSchedule(length=40, unit="epoch"))
    loss.step, loss.epoch = 10_000, 10
    assert loss.current_weight() == 0.25


@pytest.mark.parametrize("cls", [NLL, KL, L1, MSE, MSSSIM])
@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(cls, weight):
    with pytest.raises(ValueError, match=f"weight={weight}; expected a finite number or a schedule"):
        cls(weight=weight)


def test_a_schedule_may_be_written_as_its_configuration():
    loss = KL(
        weight={"component": "LinearSchedule", "length": 10}, capacity={"component": "ConstantSchedule", "value": 5.0}
    )
    loss.step = 5
    assert loss.current_weight() == 0.5
    assert loss(from_posterior(MEAN), empty()).item() == 0.25


@pytest.mark.parametrize("weight", [{"component": "L1"}, {"length": 10}, "1.0", None, [1.0]])
@pytest.mark.parametrize("cls", [NLL, KL, L1, MSE, MSSSIM])
def test_weights_that_are_neither_number_nor_schedule_are_refused(cls, weight):
    with pytest.raises(ValueError, match=r"weight=.*expected a finite number or a schedule"):
        cls(weight=weight)


def test_ms_ssim_without_a_value_range_says_what_is_missing():
    a, b = pair(24)
    with pytest.raises(ValueError, match="value_range"):
        MSSSIM()(output_of(b), {"x": a})


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"free_bits=-0\.5.*>= 0"):
        KL(free_bits=-0.5)
    with pytest.raises(ValueError, match="free_bits and capacity"):
        KL(free_bits=0.5, capacity=1.0)
    with pytest.raises(ValueError, match="num_samples=0; expected at least 1"):
        NLL(num_samples=0)


@pytest.mark.parametrize("argument", ["free_bits", "capacity"])
def test_nan_is_refused_everywhere(argument):
    with pytest.raises(ValueError, match=argument):
        KL(**{argument: math.nan})


# -- the registry


def test_losses_are_found_by_their_configuration_key():
    found = loss_classes()
    assert {"nll": NLL, "kl": KL, "l1": L1, "mse": MSE, "ms_ssim": MSSSIM}.items() <= found.items()
    assert all(issubclass(cls, Loss) and issubclass(cls, nn.Module) for cls in found.values())
    assert len({cls.name for cls in registered(Loss).values() if cls.name}) == len(found)
