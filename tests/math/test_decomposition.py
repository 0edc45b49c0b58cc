"""The three parts of a VAE's KL, against closed forms of Gaussian aggregate posteriors and against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Independent, MixtureSameFamily, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import KL, TC, decompose
from omnivae.types import Latent, VAEOutput

MIXING = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 0.2], dtype=torch.float64)


def standard(b, d):
    return Independent(Normal(torch.zeros(b, d).double(), torch.ones(b, d).double()), 1)


def latent_of(mean, variance, k=1, generator=None):
    q = DiagonalGaussian(mean, variance.log().expand_as(mean))
    eps = torch.randn(k, *mean.shape, generator=generator, dtype=mean.dtype)
    z = q.mean + q.stddev * eps
    return Latent(q, standard(*mean.shape), z, q.log_prob(z))


def output_of(latent):
    b = latent.z.shape[1]
    return VAEOutput((latent,), Independent(Normal(torch.zeros(1, b, 1), torch.ones(1, b, 1)), 1))


def images(n=3, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, d, generator=generator).double()
    variance = 0.1 + torch.rand(n, d, generator=generator).double()
    return latent_of(mean, variance, k=2, generator=generator)


def by_loops(latent, weight):
    """The three parts with scipy's density and a loop for every sum; weight(i, j) of image j for a sample of image i."""
    z, mean, std = latent.z.numpy(), latent.posterior.mean.numpy(), latent.posterior.stddev.numpy()
    k, b, d = z.shape
    parts = []
    for s, i in itertools.product(range(k), range(b)):
        log_q = sum(norm.logpdf(z[s, i, a], mean[i, a], std[i, a]) for a in range(d))
        joint = sum(
            weight(i, j) * math.prod(norm.pdf(z[s, i, a], mean[j, a], std[j, a]) for a in range(d)) for j in range(b)
        )
        product = math.prod(
            sum(weight(i, j) * norm.pdf(z[s, i, a], mean[j, a], std[j, a]) for j in range(b)) for a in range(d)
        )
        prior = sum(norm.logpdf(z[s, i, a]) for a in range(d))
        parts.append([log_q - math.log(joint), math.log(joint / product), math.log(product) - prior])
    return np.mean(parts, 0)


def three(parts):
    return [v.item() for v in (parts.mutual_information, parts.total_correlation, parts.dimension_wise_kl)]


# -- estimators


def test_weighted_sampling_by_hand():
    latent = images()
    assert three(decompose(latent, 50, "weighted")) == pytest.approx(by_loops(latent, lambda i, j: 1 / (50 * 3)))


def test_stratified_sampling_by_hand():
    latent = images()
    expected = by_loops(latent, lambda i, j: 1 / 50 if i == j else 49 / (50 * 2))
    assert three(decompose(latent, 50, "stratified")) == pytest.approx(expected)


def test_stratified_weights_are_the_papers_averaged_over_who_comes_last():
    """Stratified sampling: 1/N for the image, 1/M for M - 1 of the others, (N - M) / (N M) for the last; M = B - 1."""
    n, b = 50, 5
    m = b - 1
    average = ((m - 1) / m + (n - m) / (n * m)) / m
    assert average == pytest.approx((n - 1) / (n * (b - 1)))


@pytest.mark.parametrize("b", [2, 3, 5])
def test_the_stratified_estimate_of_the_density_is_unbiased(b):
    """Averaged over every batch that holds image 0, the estimate of q(z) at a sample of it is q(z) of the whole data set."""
    data = images(6)
    z = data.z[:1, :1]
    density = data.posterior.distribution().log_prob(z[:, 0][:, None]).exp().mean()
    estimates = []
    for rest in itertools.combinations(range(1, 6), b - 1):
        chosen = [0, *rest]
        q = DiagonalGaussian(data.posterior.mean[chosen], data.posterior.logvar[chosen])
        # Every row has the sample of image 0; row 0 is the one that counts as its own.
        codes = z.expand(1, b, 2)
        log_q = q.log_prob(codes)
        found = [
            decompose(Latent(q, standard(b, 2), codes, log_q), 6).mutual_information,
            log_q.mean(),
        ]
        # log q(z) averaged over rows; all rows but 0 take another image as their own, so subtract what they would give.
        each = log_q[0].exp()
        own, others = 1 / 6, 5 / (6 * (b - 1))
        rows = torch.stack([others * each.sum() + (own - others) * each[i] for i in range(b)])
        assert (found[1] - found[0]).item() == pytest.approx(rows.log().mean().item())
        estimates.append(rows[0])
    assert torch.stack(estimates).mean().item() == pytest.approx(density.item())


def test_a_batch_of_everything_is_exact():
    latent = images(6)
    assert three(decompose(latent, 6, "stratified")) == pytest.approx(by_loops(latent, lambda i, j: 1 / 6))


@pytest.mark.parametrize("estimator", ["weighted", "stratified"])
def test_the_parts_add_up_to_the_kl(estimator):
    torch.manual_seed(0)
    mean = torch.randn(8, 4).double()
    variance = 0.1 + torch.rand(8, 4).double()
    latent = latent_of(mean, variance, k=3)
    sampled = (latent.log_q - latent.prior.log_prob(latent.z)).mean()
    assert sum(three(decompose(latent, 100, estimator))) == pytest.approx(sampled.item())
    # ... and that estimate is of the KL loss.
    runs = [sum(three(decompose(latent_of(mean, variance, k=200), 100, estimator))) for _ in range(20)]
    error = np.std(runs, ddof=1) / math.sqrt(20)
    assert abs(np.mean(runs) - KL()(output_of(latent), {"x": torch.zeros(8, 1)}).item()) < 4 * error


def test_a_gaussian_aggregate_posterior_has_the_closed_form():
    """x ~ N(0, I), q(z|x) = N(A x, V): the aggregate is N(0, A A' + V), and all three parts are in the books."""
    torch.manual_seed(3)
    cov = MIXING @ MIXING.T + VARIANCE.diag()
    mi = 0.5 * (torch.logdet(cov) - VARIANCE.log().sum())
    tc = 0.5 * (cov.diagonal().log().sum() - torch.logdet(cov))
    dims = 0.5 * (cov.diagonal() - 1 - cov.diagonal().log()).sum()
    runs = []
    for _ in range(10):
        mean = torch.randn(800, 2).double() @ MIXING.T
        runs.append(three(decompose(latent_of(mean, VARIANCE), 800, "stratified")))
    error = np.std(runs, axis=0, ddof=1) / math.sqrt(len(runs))
    truth = np.array([mi.item(), tc.item(), dims.item()])
    # The logarithm of an average over N images is off by a term of order 1 / N.
    assert np.all(np.abs(np.mean(runs, 0) - truth) < 4 * error + 5 / 800)
    assert truth.min() > 0.02


def test_small_batches_come_nearer_to_the_truth_as_they_grow():
    torch.manual_seed(4)
    cov = MIXING @ MIXING.T + VARIANCE.diag()
    tc = 0.5 * (cov.diagonal().log().sum() - torch.logdet(cov)).item()
    off = []
    for b in (4, 32, 256):
        values = [
            decompose(latent_of(torch.randn(b, 2).double() @ MIXING.T, VARIANCE), 10**4).total_correlation.item()
            for _ in range(1024 // b)
        ]
        off.append(abs(np.mean(values) - tc))
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.1


def test_the_normalisers_are_kept():
    """Codes that say nothing: q(z|x) is the same for all x. Stratified finds nothing, and weighted its (D - 1) log N."""
    n, d = 1000, 5
    latent = latent_of(torch.zeros(10, d).double(), torch.ones(d).double())
    assert three(decompose(latent, n, "stratified")) == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    expected = [math.log(n), (d - 1) * math.log(n), -d * math.log(n)]
    assert three(decompose(latent, n, "weighted")) == pytest.approx(expected)


# -- the loss


def test_alpha_beta_and_gamma_weight_the_three_parts():
    latent = images()
    mi, tc, dims = three(decompose(latent, 50))
    value = TC(alpha=0.5, beta=4.0, gamma=2.0, dataset_size=50)(output_of(latent), {"x": torch.zeros(3, 1)})
    assert value.item() == pytest.approx(0.5 * mi + 4 * tc + 2 * dims)


def test_the_order_of_the_batch_changes_nothing():
    latent = images(5)
    order = [3, 1, 4, 0, 2]
    q = DiagonalGaussian(latent.posterior.mean[order], latent.posterior.logvar[order])
    other = Latent(q, latent.prior, latent.z[:, order], latent.log_q[:, order])
    assert three(decompose(other, 9)) == pytest.approx(three(decompose(latent, 9)))


# -- refusals


def test_what_the_estimators_cannot_do_is_refused():
    latent = images(3)
    with pytest.raises(ValueError, match="dataset_size=2"):
        decompose(latent, 2)
    with pytest.raises(ValueError, match=r"training\.batch_size"):
        decompose(images(1), 9, "stratified")
    with pytest.raises(ValueError, match="sample=True"):
        decompose(Latent(latent.posterior, latent.prior, latent.z, None), 9)
    mixture = MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3, 2)), Independent(Normal(torch.zeros(3, 2, 2), 1.0), 1)
    )
    with pytest.raises(ValueError, match="use kl, or a gaussian posterior with the standard normal prior"):
        decompose(Latent(latent.posterior, mixture, latent.z, latent.log_q), 9)
    spatial = DiagonalGaussian(torch.zeros(3, 2, 4), torch.zeros(3, 2, 4))
    z, log_q = spatial.rsample()
    with pytest.raises(ValueError, match="use kl or mmd in its place, or use a model with a vector latent"):
        decompose(Latent(spatial, Independent(Normal(torch.zeros(3, 2, 4), 1.0), 2), z, log_q), 9)


@pytest.mark.parametrize(
    "arguments", [{"alpha": -1.0}, {"beta": math.inf}, {"gamma": -0.1}, {"dataset_size": 0}, {"estimator": "exact"}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        TC(**arguments)


def test_the_size_of_the_data_must_be_known():
    with pytest.raises(ValueError, match="give dataset_size"):
        TC()(output_of(images()), {"x": torch.zeros(3, 1)})
