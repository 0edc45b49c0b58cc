"""Each likelihood's log-density against a formula written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from omnivae.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
)

LOCATION_SCALE = [GaussianLikelihood, LaplaceLikelihood, DiscretizedLogisticLikelihood]
SIZES = [(), (7,), (4, 5), (2, 3, 4)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{len(s)}d")


def everything():
    return [
        *[cls(scale) for cls in LOCATION_SCALE for scale in (0.5, "learned", "per_pixel")],
        BernoulliLikelihood(),
        CategoricalLikelihood(5),
    ]


def image(likelihood, *shape):
    """Pixels on the likelihood's support."""
    if isinstance(likelihood, BernoulliLikelihood):
        return torch.randint(2, shape).double()
    levels = getattr(likelihood, "num_levels", None)
    return torch.randint(levels, shape).double() * 2 / (levels - 1) - 1 if levels else torch.randn(shape).double()


# -- values


@sizes
def test_gaussian_with_fixed_variance_is_half_the_squared_error_and_a_constant(size):
    params, x = torch.randn(2, 3, 3, *size, dtype=torch.float64)
    elements = x[0].numel()
    sse = ((x - params) ** 2).flatten(1).sum(1)
    nll = -GaussianLikelihood(1.0)(params).log_prob(x)
    torch.testing.assert_close(nll, 0.5 * sse + 0.5 * elements * math.log(2 * math.pi))
    nll = -GaussianLikelihood(0.1)(params).log_prob(x)
    torch.testing.assert_close(nll, 50 * sse + elements * (0.5 * math.log(2 * math.pi) + math.log(0.1)))


@sizes
def test_laplace_with_scale_one_is_the_absolute_error_and_log_two(size):
    params, x = torch.randn(2, 3, 3, *size, dtype=torch.float64)
    nll = -LaplaceLikelihood(1.0)(params).log_prob(x)
    torch.testing.assert_close(nll, (x - params).abs().flatten(1).sum(1) + x[0].numel() * math.log(2))


@pytest.mark.parametrize(
    ("cls", "reference"),
    [(GaussianLikelihood, stats.norm), (LaplaceLikelihood, stats.laplace)],
    ids=["gaussian", "laplace"],
)
def test_densities_equal_scipy_for_every_kind_of_scale(cls, reference):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    loc = torch.randn_like(x)
    log_scale = 0.5 * torch.randn_like(x)
    fixed, learned, per_pixel = cls(0.3), cls("learned").double(), cls("per_pixel")
    learned.log_scale.data.fill_(-0.7)
    for likelihood, params, scale in (
        (fixed, loc, torch.full_like(x, 0.3)),
        (learned, loc, torch.full_like(x, math.exp(-0.7))),
        (per_pixel, torch.cat([loc, log_scale], 1), log_scale.exp()),
    ):
        expected = reference.logpdf(x.numpy(), loc=loc.numpy(), scale=scale.numpy()).reshape(2, -1).sum(1)
        torch.testing.assert_close(likelihood(params).log_prob(x).detach(), torch.from_numpy(expected))


@sizes
def test_bernoulli_is_the_cross_entropy_of_the_logits(size):
    logits = 3 * torch.randn(3, 2, *size, dtype=torch.float64)
    for x in (torch.randint(2, logits.shape).double(), torch.rand_like(logits)):
        bce = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        p = 1 / (1 + torch.exp(-logits))
        by_hand = -(x * torch.log(p) + (1 - x) * torch.log(1 - p)).flatten(1).sum(1)
        nll = -BernoulliLikelihood()(logits).log_prob(x)
        torch.testing.assert_close(nll, bce)
        torch.testing.assert_close(nll, by_hand)
    torch.testing.assert_close(BernoulliLikelihood()(logits).mean, torch.sigmoid(logits))


def test_bernoulli_is_finite_for_confident_logits():
    logits = torch.tensor([[-500.0, 500.0, -500.0, 500.0]])
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(BernoulliLikelihood()(logits).log_prob(x), torch.tensor([-1000.0]))


@sizes
def test_categorical_is_the_softmax_cross_entropy(size):
    n = 7
    likelihood = CategoricalLikelihood(n, (-1.0, 1.0))
    logits = torch.randn(2, 3, n, *size, dtype=torch.float64)  # each channel's levels side by side
    index = torch.randint(n, (2, 3, *size))
    dist = likelihood(logits.flatten(1, 2))
    ce = F.cross_entropy(logits.transpose(1, 2), index, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(dist.log_prob(index.double() * 2 / (n - 1) - 1), -ce)
    assert dist.mean.shape == (2, 3, *size)


@pytest.mark.parametrize("scale", [0.2, "learned", "per_pixel"])
def test_discretised_logistic_sums_its_pixels_probabilities(scale):
    n = 6
    likelihood = DiscretizedLogisticLikelihood(scale, n, (0.0, 1.0))
    params = torch.randn(2, likelihood.num_parameters(2), 3, dtype=torch.float64)
    index = torch.randint(n, (2, 2, 3))
    sigma = {
        0.2: torch.full((2, 2, 3), 0.2).double(),
        "learned": torch.full((2, 2, 3), math.exp(-1.0)).double(),
        "per_pixel": params[:, 2:].exp() if scale == "per_pixel" else None,
    }[scale]
    step = 1 / (n - 1)
    upper = torch.sigmoid(((index + 0.5) * step - params[:, :2]) / sigma)
    lower = torch.sigmoid(((index - 0.5) * step - params[:, :2]) / sigma)
    upper[index == n - 1] = 1.0
    lower[index == 0] = 0.0
    expected = torch.log(upper - lower).flatten(1).sum(1)
    value = likelihood(params).log_prob(index.double() * step).detach()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


# -- shapes


@sizes
@pytest.mark.parametrize("likelihood", everything(), ids=lambda m: f"{type(m).__name__}-{getattr(m, 'scale', '')}")
def test_the_event_is_one_image_and_the_log_prob_one_number(likelihood, size):
    params = torch.randn(2, likelihood.num_parameters(3), *size, dtype=torch.float64)
    x = image(likelihood, 2, 3, *size)
    dist = likelihood(params)
    assert dist.batch_shape == (2,)
    assert dist.event_shape == (3, *size)
    assert dist.mean.shape == x.shape
    assert dist.sample().shape == x.shape
    log_p = dist.log_prob(x)
    assert log_p.shape == (2,)
    # Samples are independent: a batch of one gives the same number.
    torch.testing.assert_close(likelihood(params[1:]).log_prob(x[1:]), log_p[1:])


@pytest.mark.parametrize("likelihood", everything(), ids=lambda m: f"{type(m).__name__}-{getattr(m, 'scale', '')}")
def test_a_leading_axis_of_samples(likelihood):
    params = torch.randn(5, 2, likelihood.num_parameters(3), 4, 4, dtype=torch.float64)
    x = image(likelihood, 2, 3, 4, 4)
    dist = likelihood(params, batch_ndim=2)
    assert dist.batch_shape == (5, 2)
    assert dist.event_shape == (3, 4, 4)
    log_p = dist.log_prob(x)
    assert log_p.shape == (5, 2)
    torch.testing.assert_close(log_p, torch.stack([likelihood(p).log_prob(x) for p in params]))


def test_num_parameters():
    for cls in LOCATION_SCALE:
        assert cls(0.5).num_parameters(3) == 3
        assert cls("learned").num_parameters(3) == 3
        assert cls("per_pixel").num_parameters(3) == 6
    assert BernoulliLikelihood().num_parameters(3) == 3
    assert CategoricalLikelihood(16).num_parameters(3) == 48


# -- scales


@pytest.mark.parametrize("cls", [GaussianLikelihood, LaplaceLikelihood])
def test_the_learned_scale_gets_the_gradient_of_the_formula(cls):
    likelihood = cls("learned").double()
    params, x = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    (-likelihood(params).log_prob(x).sum()).backward()
    s = likelihood.log_scale.detach().exp()
    error = x - params
    # d/d log s of (n log s + error^2 / 2 s^2), or of (n log s + |error| / s).
    pull = (error**2).sum() / s**2 if cls is GaussianLikelihood else error.abs().sum() / s
    torch.testing.assert_close(likelihood.log_scale.grad, x.numel() - pull)


def test_the_best_learned_scale_is_the_error_of_the_reconstruction():
    likelihood = GaussianLikelihood("learned").double()
    params, x = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    likelihood.log_scale.data = 0.5 * torch.log(((x - params) ** 2).mean())
    (-likelihood(params).log_prob(x).sum()).backward()
    assert abs(likelihood.log_scale.grad.item()) < 1e-9


@pytest.mark.parametrize("cls", LOCATION_SCALE)
def test_per_pixel_scales_get_gradients_of_their_own(cls):
    likelihood = cls("per_pixel")
    assert list(likelihood.parameters()) == []
    params = (0.1 * torch.randn(2, 6, 4, 4)).requires_grad_()
    likelihood(params).log_prob(torch.rand(2, 3, 4, 4)).sum().backward()
    assert (params.grad != 0).all()
    # The gradient of one pixel's scale depends on that pixel only.
    again = params.detach().clone().requires_grad_()
    x = torch.zeros(2, 3, 4, 4)
    likelihood(again).log_prob(x)[0].backward()
    assert (again.grad[1] == 0).all()


def test_only_a_learned_scale_is_a_parameter():
    for cls in LOCATION_SCALE:
        assert [n for n, _ in cls("learned").named_parameters()] == ["log_scale"]
        assert list(cls(0.5).parameters()) == []


@pytest.mark.parametrize("cls", LOCATION_SCALE)
def test_absurd_log_scales_stay_finite(cls):
    likelihood = cls("per_pixel")
    params = torch.cat([torch.zeros(1, 1, 2), torch.tensor([[[-1e6, 1e6]]])], 1)
    assert torch.isfinite(likelihood(params).log_prob(torch.zeros(1, 1, 2))).all()


# -- precision


@pytest.mark.parametrize("likelihood", everything(), ids=lambda m: f"{type(m).__name__}-{getattr(m, 'scale', '')}")
def test_log_prob_is_float32_under_bf16_autocast(likelihood):
    params = torch.randn(2, likelihood.num_parameters(3), 4, 4).bfloat16()
    x = image(likelihood, 2, 3, 4, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dist = likelihood(params)
        value, mean = dist.log_prob(x), dist.mean
    assert value.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(value.double(), likelihood(params.double()).log_prob(x.double()), rtol=1e-4, atol=1e-3)


# -- bad arguments


@pytest.mark.parametrize("cls", LOCATION_SCALE)
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, "adaptive"])
def test_bad_scales_are_refused_with_what_would_be_right(cls, scale):
    with pytest.raises(ValueError, match="positive number, 'learned' or 'per_pixel'") as error:
        cls(scale)
    assert str(scale) in str(error.value)


@pytest.mark.parametrize("cls", [CategoricalLikelihood, DiscretizedLogisticLikelihood])
def test_fewer_than_two_levels_are_refused(cls):
    with pytest.raises(ValueError, match="num_levels=1; expected at least 2"):
        cls(num_levels=1)
