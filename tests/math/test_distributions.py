"""Densities against torch.distributions, scipy, and sums and integrals written out here."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.distributions import kl_divergence as torch_kl

from omnivae.distributions import (
    LOG_SCALE_MAX,
    LOG_SCALE_MIN,
    LOGVAR_MAX,
    LOGVAR_MIN,
    CategoricalLevels,
    DiagonalGaussian,
    DiscretizedLogistic,
    at_least_float32,
    kl_divergence,
    kl_elements,
)

# Vector, tokens, 2-D and 3-D latents: [B, C], [B, C, N], [B, C, H, W], [B, C, D, H, W].
SHAPES = [(3, 5), (3, 2, 4), (3, 2, 3, 2), (3, 2, 2, 3, 2)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


def gaussian(shape, dtype=torch.float64, **kwargs):
    return DiagonalGaussian(torch.randn(shape, dtype=dtype), 0.7 * torch.randn(shape, dtype=dtype), **kwargs)


def as_torch(q):
    return Independent(Normal(q.mean, torch.exp(q.logvar / 2)), q.mean.ndim - 1)


def standard(shape, dtype=torch.float64):
    return Independent(Normal(torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)), len(shape) - 1)


def mixture(shape):
    """Two Gaussian bumps over the whole event, batch shape [B]."""
    batch, event = shape[0], shape[1:]
    centres = torch.stack([torch.full(event, -1.0), torch.full(event, 1.5)]).double().expand(batch, 2, *event)
    weights = Categorical(probs=torch.tensor([0.3, 0.7]).double().expand(batch, 2))
    return MixtureSameFamily(weights, Independent(Normal(centres, torch.full_like(centres, 0.8)), len(event)))


# -- the diagonal Gaussian


@shapes
def test_kl_equals_the_formula_written_as_a_loop(shape):
    q = gaussian(shape)
    expected = []
    for mean, logvar in zip(
        q.mean.reshape(shape[0], -1).tolist(), q.logvar.reshape(shape[0], -1).tolist(), strict=True
    ):
        expected.append(-0.5 * sum(1 + s - m * m - math.exp(s) for m, s in zip(mean, logvar, strict=True)))
    torch.testing.assert_close(q.kl(), torch.tensor(expected, dtype=torch.float64))


@shapes
def test_kl_equals_torch_distributions_and_has_one_number_a_sample(shape):
    q = gaussian(shape)
    assert q.kl().shape == (shape[0],)
    torch.testing.assert_close(q.kl(), torch_kl(as_torch(q), standard(shape)))
    torch.testing.assert_close(kl_divergence(q, standard(shape)), q.kl())


@shapes
def test_kl_agrees_with_monte_carlo_within_its_standard_error(shape):
    q = gaussian(shape)
    z, log_q = q.rsample(20_000)
    estimates = log_q - standard(shape).log_prob(z)
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - q.kl()).abs() < 4 * error).all()
    assert (error < 0.1).all()  # a loose error bar would let anything pass


@shapes
def test_kl_does_not_mix_samples_of_the_batch(shape):
    q = gaussian(shape)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(DiagonalGaussian(q.mean[order], q.logvar[order]).kl(), q.kl()[order])
    torch.testing.assert_close(DiagonalGaussian(q.mean[1:2], q.logvar[1:2]).kl(), q.kl()[1:2])


@shapes
def test_kl_is_positive_and_zero_only_at_the_prior(shape):
    assert (gaussian(shape).kl() > 0).all()
    assert DiagonalGaussian(torch.zeros(shape), torch.zeros(shape)).kl().tolist() == [0.0] * shape[0]


@shapes
def test_kl_elements_sum_to_the_kl(shape):
    q = gaussian(shape)
    assert q.kl_elements().shape == shape
    torch.testing.assert_close(q.kl_elements().flatten(1).sum(1), q.kl())
    elements = kl_elements(q, standard(shape))
    assert elements is not None
    assert elements.shape == shape
    torch.testing.assert_close(elements, q.kl_elements())


def test_kl_elements_of_a_general_diagonal_prior():
    q, p = gaussian((3, 2, 4)), gaussian((3, 2, 4))
    elements = kl_elements(q, as_torch(p))
    assert elements is not None
    written_out = 0.5 * (p.logvar - q.logvar + (q.logvar.exp() + (q.mean - p.mean) ** 2) / p.logvar.exp() - 1)
    torch.testing.assert_close(elements, written_out)
    torch.testing.assert_close(elements.flatten(1).sum(1), kl_divergence(q, as_torch(p)))


def test_kl_elements_says_none_where_the_divergence_does_not_split():
    assert kl_elements(gaussian((3, 4)), mixture((3, 4))) is None


@shapes
def test_log_prob_equals_scipy(shape):
    q = gaussian(shape)
    z = torch.randn(shape, dtype=torch.float64)
    by_element = stats.norm.logpdf(z.numpy(), loc=q.mean.numpy(), scale=torch.exp(q.logvar / 2).numpy())
    torch.testing.assert_close(q.log_prob(z), torch.from_numpy(by_element.reshape(shape[0], -1).sum(1)))


@shapes
def test_log_prob_takes_a_leading_axis_of_samples(shape):
    q = gaussian(shape)
    z = torch.randn((4, *shape), dtype=torch.float64)
    assert q.log_prob(z).shape == (4, shape[0])
    torch.testing.assert_close(q.log_prob(z), torch.stack([q.log_prob(one) for one in z]))


@shapes
def test_rsample_returns_the_density_of_its_own_samples(shape):
    q = gaussian(shape)
    z, log_q = q.rsample(6)
    assert z.shape == (6, *shape)
    assert log_q.shape == (6, shape[0])
    torch.testing.assert_close(log_q, q.log_prob(z))


def test_rsample_has_the_moments_that_it_claims():
    q = gaussian((2, 3))
    z, _ = q.rsample(100_000)
    sigma = torch.exp(q.logvar / 2)
    assert ((z.mean(0) - q.mean).abs() < 4 * sigma / math.sqrt(len(z))).all()
    torch.testing.assert_close(z.std(0), sigma, rtol=0.02, atol=0)
    correlation = torch.corrcoef(z.flatten(1).T) - torch.eye(6, dtype=torch.float64)
    assert correlation.abs().max() < 0.02  # independent across channels and across the batch


@pytest.mark.parametrize("k", [0, -1])
def test_rsample_refuses_less_than_one_sample(k):
    with pytest.raises(ValueError, match=str(k)):
        gaussian((2, 3)).rsample(k)


def test_the_reparameterised_gradient_is_the_true_gradient():
    # E[z^2] = mean^2 + exp(logvar): d/dmean = 2 mean, d/dlogvar = exp(logvar).
    mean = torch.tensor([[0.5, -1.5]], dtype=torch.float64, requires_grad=True)
    logvar = torch.tensor([[0.3, -0.8]], dtype=torch.float64, requires_grad=True)
    z, _ = DiagonalGaussian(mean, logvar).rsample(200_000)
    (z.square().sum() / len(z)).backward()
    torch.testing.assert_close(mean.grad, 2 * mean.detach(), rtol=0.02, atol=0.01)
    torch.testing.assert_close(logvar.grad, logvar.detach().exp(), rtol=0.02, atol=0.01)


@shapes
def test_gradients_of_the_kl_reach_mean_and_logvar(shape):
    mean = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    DiagonalGaussian(mean, logvar).kl().sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1))


def test_log_variance_is_clamped_to_the_named_bounds():
    assert LOGVAR_MIN < 0 < LOGVAR_MAX
    logvar = torch.tensor([[-1e4, LOGVAR_MIN, 0.0, LOGVAR_MAX, 1e4]])
    q = DiagonalGaussian(torch.zeros_like(logvar), logvar)
    assert q.logvar.tolist() == [[LOGVAR_MIN, LOGVAR_MIN, 0.0, LOGVAR_MAX, LOGVAR_MAX]]
    z, log_q = q.rsample(3)
    for value in (q.kl(), q.stddev, z, log_q, q.log_prob(z)):
        assert torch.isfinite(value).all()


def test_the_density_stays_finite_and_right_next_to_a_large_mean():
    # In float32 the sample rounds to the mean here; log q must still be that of eps.
    q = DiagonalGaussian(torch.full((1, 1), 1000.0), torch.full((1, 1), LOGVAR_MIN))
    _, log_q = q.rsample(50_000)
    entropy = 0.5 * (LOGVAR_MIN + math.log(2 * math.pi * math.e))
    assert abs(-log_q.mean().item() - entropy) < 0.02


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 4))


def test_mode_is_the_mean_and_sample_carries_no_gradient():
    mean = torch.randn(2, 3, requires_grad=True)
    q = DiagonalGaussian(mean, torch.zeros(2, 3))
    assert torch.equal(q.mode(), mean)
    assert q.sample().shape == q.shape == (2, 3)
    assert not q.sample().requires_grad
    assert q.penalties == {}


def test_the_input_size_is_kept():
    assert gaussian((2, 3), input_size=(5, 7)).input_size == (5, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_parameters_are_computed_in_float32_under_autocast(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = gaussian((2, 3, 4, 4), dtype)
        z, log_q = q.rsample(2)
        values = [q.mean, q.logvar, q.kl(), q.kl_elements(), z, log_q, q.log_prob(z)]
        values.append(kl_divergence(q, standard(q.shape, torch.float32)))
    assert {v.dtype for v in values} == {torch.float32}
    exact = DiagonalGaussian(q.mean.double(), q.logvar.double())
    torch.testing.assert_close(q.kl().double(), exact.kl(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_q.double(), exact.log_prob(z.double()), rtol=1e-4, atol=1e-3)


def test_float64_stays_float64():
    q = gaussian((2, 3))
    z, log_q = q.rsample()
    assert {v.dtype for v in (q.mean, q.logvar, q.kl(), z, log_q, q.log_prob(z))} == {torch.float64}
    assert at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


# -- the KL where there is no closed form


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 1)], ids=["vector", "spatial"])
def test_kl_to_a_mixture_agrees_with_a_large_reference_sample(shape):
    q, p = gaussian(shape), mixture(shape)
    reference_q = as_torch(q)
    z = reference_q.sample(torch.Size((50_000,)))
    terms = reference_q.log_prob(z) - p.log_prob(z)
    z, log_q = q.rsample(50_000)
    estimate = kl_divergence(q, p, z=z, log_q=log_q)
    assert estimate.shape == (shape[0],)
    error = math.sqrt(2) * terms.std(0) / math.sqrt(len(terms))
    assert ((estimate - terms.mean(0)).abs() < 4 * error).all()
    # The density may be left out: it is that of the samples.
    torch.testing.assert_close(kl_divergence(q, p, z=z), estimate)


def test_kl_to_a_mixture_draws_its_own_samples_without_bias():
    q, p = gaussian((1, 2)), mixture((1, 2))
    few = torch.stack([kl_divergence(q, p) for _ in range(2000)])
    assert few.shape == (2000, 1)
    z, log_q = q.rsample(100_000)
    large = (log_q - p.log_prob(z)).mean()
    assert abs(few.mean() - large) < 5 * few.std() / math.sqrt(len(few))


def test_kl_of_torch_distributions_falls_back_too():
    q, p = as_torch(gaussian((2, 3))), mixture((2, 3))
    assert kl_divergence(q, p).shape == (2,)
    z = q.sample(torch.Size((5,)))
    torch.testing.assert_close(kl_divergence(q, p, z=z), (q.log_prob(z) - p.log_prob(z)).mean(0))


def test_a_mixture_of_one_standard_normal_gives_the_closed_form():
    q = gaussian((2, 3))
    one = MixtureSameFamily(
        Categorical(probs=torch.ones(2, 1).double()),
        Independent(Normal(torch.zeros(2, 1, 3).double(), torch.ones(2, 1, 3).double()), 1),
    )
    z, log_q = q.rsample(50_000)
    torch.testing.assert_close(kl_divergence(q, one, z=z, log_q=log_q), q.kl(), rtol=0, atol=0.05)


def test_gradients_of_the_monte_carlo_kl_reach_mean_and_logvar():
    mean = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    logvar = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    kl_divergence(DiagonalGaussian(mean, logvar), mixture((2, 3))).sum().backward()
    for grad in (mean.grad, logvar.grad):
        assert torch.isfinite(grad).all()
        assert grad.abs().min() > 0


# -- the discretised logistic

LOCS = [-5.0, -1.0, -0.999, -0.3, 0.0, 0.5, 1.0, 3.0]
SCALES = [math.exp(LOG_SCALE_MIN), 1e-3, 1e-2, 0.3, 1.0, 50.0, math.exp(LOG_SCALE_MAX)]


def grid(low, high, n, dtype=torch.float64):
    return torch.tensor([low + (high - low) * i / (n - 1) for i in range(n)], dtype=dtype)


@pytest.mark.parametrize(("low", "high", "n"), [(-1.0, 1.0, 256), (0.0, 1.0, 256), (-1.0, 1.0, 2), (0.0, 1.0, 4096)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discretised_logistic_sums_to_one(low, high, n, dtype):
    loc, scale = torch.meshgrid(torch.tensor(LOCS, dtype=dtype), torch.tensor(SCALES, dtype=dtype), indexing="ij")
    dist = DiscretizedLogistic(loc, scale, value_range=(low, high), num_levels=n)
    log_p = dist.log_prob(grid(low, high, n, dtype)[:, None, None])
    assert log_p.dtype == dtype
    assert not log_p.isnan().any()
    assert log_p.max() <= 1e-6
    tolerance = 2e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(log_p.double().exp().sum(0), torch.ones(loc.shape).double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("loc", [-1.2, -0.3, 0.0, 0.9])
@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0, 10.0])
def test_discretised_logistic_equals_differences_of_the_cdf(loc, scale):
    n = 16
    levels = grid(-1.0, 1.0, n)
    edges = ((levels[1:] + levels[:-1]) / 2).numpy()
    cdf = stats.logistic.cdf(edges, loc=loc, scale=scale)
    survival = stats.logistic.sf(edges, loc=loc, scale=scale)
    # Subtract on the side of the smaller tail, so that the reference does not cancel either.
    inner = [cdf[i + 1] - cdf[i] if edges[i + 1] <= loc else survival[i] - survival[i + 1] for i in range(n - 2)]
    expected = torch.log(torch.tensor([cdf[0], *inner, survival[-1]], dtype=torch.float64))
    dist = DiscretizedLogistic(
        torch.tensor(loc, dtype=torch.float64),
        torch.tensor(scale, dtype=torch.float64),
        value_range=(-1.0, 1.0),
        num_levels=n,
    )
    torch.testing.assert_close(dist.log_prob(levels), expected, rtol=1e-7, atol=1e-7)


def test_discretised_logistic_float32_agrees_with_float64_far_in_the_tail():
    levels = grid(-1.0, 1.0, 256)
    kwargs = {"value_range": (-1.0, 1.0), "num_levels": 256}
    single = DiscretizedLogistic(torch.tensor(0.9), torch.tensor(1e-2), **kwargs).log_prob(levels.float())
    double = DiscretizedLogistic(torch.tensor(0.9).double(), torch.tensor(1e-2).double(), **kwargs).log_prob(levels)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-3)


def test_discretised_logistic_gives_every_value_of_a_bin_the_bins_probability():
    levels = grid(-1.0, 1.0, 16)
    step = 2.0 / 15
    dist = DiscretizedLogistic(
        torch.tensor(0.2).double(), torch.tensor(0.1).double(), value_range=(-1.0, 1.0), num_levels=16
    )
    for shift in (-0.4 * step, 0.3 * step):
        torch.testing.assert_close(dist.log_prob((levels + shift).clamp(-1, 1)), dist.log_prob(levels))


def test_discretised_logistic_samples_lie_on_the_grid_with_the_stated_frequencies():
    n, draws = 8, 40_000
    dist = DiscretizedLogistic(
        torch.tensor(0.4).double(), torch.tensor(0.25).double(), value_range=(-1.0, 1.0), num_levels=n
    )
    samples = dist.sample((draws,))
    assert samples.shape == (draws,)
    index = (samples + 1) / 2 * (n - 1)
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-5)
    frequency = torch.bincount(index.round().long(), minlength=n).double() / draws
    p = dist.log_prob(grid(-1.0, 1.0, n)).exp()
    assert ((frequency - p).abs() < 4.5 * (p * (1 - p) / draws).sqrt() + 1e-12).all()


def test_discretised_logistic_gradients_are_finite_at_extremes():
    loc, scale = torch.meshgrid(torch.tensor(LOCS), torch.tensor(SCALES), indexing="ij")
    loc, scale = loc.clone().requires_grad_(), scale.clone().requires_grad_()
    dist = DiscretizedLogistic(loc, scale, value_range=(-1.0, 1.0), num_levels=256)
    dist.log_prob(grid(-1.0, 1.0, 256, torch.float32)[:, None, None]).sum().backward()
    assert torch.isfinite(loc.grad).all()
    assert torch.isfinite(scale.grad).all()


# -- the categorical over levels


@pytest.mark.parametrize("scale", [0.1, 1.0, 1000.0])
def test_categorical_levels_sum_to_one(scale):
    dist = CategoricalLevels(scale * torch.randn(5, 256), value_range=(-1.0, 1.0))
    log_p = dist.log_prob(grid(-1.0, 1.0, 256, torch.float32)[:, None])
    assert log_p.shape == (256, 5)
    torch.testing.assert_close(log_p.double().exp().sum(0), torch.ones(5).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 256, 1000])
def test_categorical_log_prob_is_the_log_softmax_of_its_level(n):
    logits = torch.randn(n, dtype=torch.float64)
    dist = CategoricalLevels(logits, value_range=(0.0, 1.0))
    expected = logits - torch.log(torch.exp(logits).sum())
    torch.testing.assert_close(dist.log_prob(grid(0.0, 1.0, n)), expected)


def test_categorical_mean_is_the_expectation():
    logits = torch.randn(4, 6, dtype=torch.float64)
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    dist = CategoricalLevels(logits, value_range=(-1.0, 1.0))
    torch.testing.assert_close(dist.mean, (p * grid(-1.0, 1.0, 6)).sum(-1))


def test_categorical_samples_lie_on_the_grid_with_the_stated_frequencies():
    draws = 40_000
    logits = torch.randn(3, 5, dtype=torch.float64)
    samples = CategoricalLevels(logits, value_range=(-1.0, 1.0)).sample((draws,))
    assert samples.shape == (draws, 3)
    index = (samples.double() + 1) * 2
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-5)
    p = logits.softmax(-1)
    for i in range(3):
        frequency = torch.bincount(index[:, i].round().long(), minlength=5).double() / draws
        assert ((frequency - p[i]).abs() < 4.5 * (p[i] * (1 - p[i]) / draws).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixel_densities_keep_their_precision_also_under_autocast(dtype):
    logits = torch.randn(3, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dist in (
            CategoricalLevels(logits, value_range=(-1.0, 1.0)),
            DiscretizedLogistic(logits, logits.exp(), value_range=(-1.0, 1.0), num_levels=8),
        ):
            x = dist.sample((2,))
            kinds = {"sample": x.dtype, "log_prob": dist.log_prob(x).dtype, "mean": dist.mean.dtype}
            assert kinds == dict.fromkeys(kinds, dtype), type(dist).__name__


@pytest.mark.parametrize("kind", ["logistic", "categorical"])
def test_pixel_densities_expand(kind):
    if kind == "logistic":
        dist = DiscretizedLogistic(torch.randn(2, 3), torch.ones(2, 3), value_range=(-1.0, 1.0), num_levels=4)
    else:
        dist = CategoricalLevels(torch.randn(2, 3, 4), value_range=(-1.0, 1.0))
    big = dist.expand(torch.Size((5, 2, 3)))
    assert big.batch_shape == (5, 2, 3)
    x = dist.sample()
    torch.testing.assert_close(big.log_prob(x), dist.log_prob(x).expand(5, 2, 3))
