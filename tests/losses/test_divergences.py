"""MMD against a double loop, and DIP against numpy's covariance."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import DIP, MMD, mmd
from omnivae.types import Latent, VAEOutput


def output_of(mean, logvar=None, *, prior=True, seed=0):
    q = DiagonalGaussian(mean, torch.zeros_like(mean) if logvar is None else logvar)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), mean.ndim - 1) if prior else None
    torch.manual_seed(seed)
    z, log_q = q.rsample()
    pixels = Independent(Normal(torch.zeros(1, len(mean), 1), torch.ones(1, len(mean), 1)), 1)
    return VAEOutput((Latent(q, p, z, log_q),), pixels)


BATCH = {"x": torch.zeros(6, 1)}


# -- MMD


def by_loops(x, y, widths, kernel, unbiased):
    def k(a, b):
        r = sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True))
        return sum(c / (c + r) if kernel == "imq" else math.exp(-r / c) for c in widths)

    def within(s):
        pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if not unbiased or i != j]
        return sum(k(s[i], s[j]) for i, j in pairs) / len(pairs)

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_is_the_double_loop(kernel, unbiased):
    x, y = torch.randn(5, 3).double(), 1 + torch.randn(7, 3).double()
    widths = [0.7, 4.0]
    found = mmd(x, y, widths, kernel=kernel, unbiased=unbiased)
    assert found.item() == pytest.approx(by_loops(x, y, widths, kernel, unbiased), rel=1e-10)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_equal_distributions_have_mmd_zero_in_expectation_and_the_biased_one_is_positive(kernel):
    torch.manual_seed(0)
    values = {u: [] for u in (True, False)}
    for _ in range(400):
        x, y = torch.randn(2, 16, 2).double()
        for u, found in values.items():
            found.append(mmd(x, y, [4.0], kernel=kernel, unbiased=u).item())
    mean, error = np.mean(values[True]), np.std(values[True]) / 20
    assert abs(mean) < 4 * error
    assert min(values[False]) >= 0
    assert np.mean(values[False]) > 10 * error


def test_rbf_mmd_of_two_gaussians_has_a_closed_form():
    """E exp(-|u - v|^2 / c) with u - v ~ N(m, s I) is (c / (c + 2 s))^(d/2) exp(-|m|^2 / (c + 2 s))."""
    torch.manual_seed(1)
    c, d, shift = 3.0, 2, 0.8

    def expected(m2, s):
        return (c / (c + 2 * s)) ** (d / 2) * math.exp(-m2 / (c + 2 * s))

    truth = 2 * expected(0.0, 2.0) - 2 * expected(d * shift**2, 2.0)
    runs = [mmd(torch.randn(200, d), shift + torch.randn(200, d), [c], kernel="rbf").item() for _ in range(100)]
    assert abs(np.mean(runs) - truth) < 4 * np.std(runs) / 10
    assert truth > 0.1


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 4)])
def test_the_loss_is_mmd_of_codes_and_prior_samples_at_the_default_width(shape):
    output = output_of(torch.randn(*shape) + 1)
    d = math.prod(shape[1:])
    torch.manual_seed(5)
    samples = output.latents[0].prior.sample().flatten(1)
    codes = output.z.flatten(1)
    torch.manual_seed(5)
    found = MMD(scales=(0.5, 2.0))(output, BATCH)
    assert found.item() == pytest.approx(by_loops(codes, samples, [d, 4 * d], "imq", True), rel=1e-4)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_minimising_mmd_takes_codes_to_the_prior(kernel):
    torch.manual_seed(2)
    shift, log_scale = torch.tensor(1.5, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    loss, optimiser = MMD(kernel=kernel), torch.optim.Adam([shift, log_scale], lr=0.03)
    for step in range(300):
        optimiser.zero_grad()
        mean, logvar = shift.expand(256, 1), (2 * log_scale).expand(256, 1)
        loss(output_of(mean, logvar, seed=step), BATCH).backward()
        optimiser.step()
    assert abs(shift.item()) < 0.2
    assert abs(log_scale.item()) < 0.2


def test_mmd_under_autocast_is_float32():
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mmd(x, y, [6.0])
    assert torch.equal(found, mmd(x, y, [6.0]))


def test_what_mmd_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"training\.batch_size"):
        mmd(torch.zeros(1, 2), torch.zeros(1, 2), [1.0])
    with pytest.raises(ValueError, match="drop 'mmd', or use a gaussian posterior"):
        MMD()(output_of(torch.zeros(6, 2), prior=False), BATCH)


@pytest.mark.parametrize("arguments", [{"kernel": "laplace"}, {"scales": ()}, {"scales": (1, -1)}, {"bandwidth": 0.0}])
def test_arguments_of_mmd_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MMD(**arguments)


# -- DIP


@pytest.mark.parametrize(("kind", "diagonal"), [("i", 100.0), ("ii", 10.0)])
def test_dip_is_the_distance_of_numpys_covariance_from_the_identity(kind, diagonal):
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 6, 3, generator=generator).double()
    covariance = np.cov(mean.T.numpy(), bias=True)
    if kind == "ii":
        covariance += np.diag(np.exp(logvar.numpy()).mean(0))
    apart = covariance - np.diag(np.diag(covariance))
    expected = 10 * (apart**2).sum() + diagonal * ((np.diag(covariance) - 1) ** 2).sum()
    assert DIP(kind=kind)(output_of(mean, logvar), BATCH).item() == pytest.approx(expected)


def test_the_covariance_of_dip_ii_is_that_of_z():
    torch.manual_seed(3)
    mean, logvar = torch.randn(2, 6, 2).double()
    q = DiagonalGaussian(mean, logvar)
    z = q.rsample(200_000)[0].flatten(0, 1)
    diagonal = np.diag(np.cov(z.T.numpy(), bias=True))
    found = DIP(kind="ii", off_diagonal=0.0, diagonal=1.0)(output_of(mean, logvar), BATCH).item()
    assert found == pytest.approx(((diagonal - 1) ** 2).sum(), rel=0.03)


def test_dip_is_zero_for_uncorrelated_codes_of_variance_one():
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert DIP()(output_of(corners), {"x": torch.zeros(4, 1)}).item() == pytest.approx(0.0, abs=1e-6)


def test_minimising_dip_decorrelates():
    torch.manual_seed(4)
    base = torch.randn(64, 1)
    mean = torch.cat([base, base + 0.3 * torch.randn(64, 1)], 1).requires_grad_()
    optimiser = torch.optim.Adam([mean], lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        DIP()(output_of(mean), BATCH).backward()
        optimiser.step()
    torch.testing.assert_close(
        torch.from_numpy(np.cov(mean.T.detach().numpy(), bias=True)).float(), torch.eye(2), atol=0.02, rtol=0
    )


def test_what_dip_cannot_do_is_refused():
    with pytest.raises(ValueError, match="kind"):
        DIP(kind="iii")
    with pytest.raises(ValueError, match="off_diagonal"):
        DIP(off_diagonal=-1.0)
    with pytest.raises(ValueError, match="diagonal"):
        DIP(diagonal=math.nan)
    with pytest.raises(ValueError, match=r"training\.batch_size"):
        DIP()(output_of(torch.zeros(1, 2)), {"x": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="use kl or mmd in its place, or use a model with a vector latent"):
        DIP().build(in_channels=1, latent_dim=2, dim=2, latent_axes=2)
