"""Priors: densities integrate to one, agree with torch's and with their own samples, and serve a whole model."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from omnivae import VAE, kl_divergence, mixture_vae, vamp_vae
from omnivae.distributions import DiagonalGaussian, kl_elements
from omnivae.likelihoods import GaussianLikelihood
from omnivae.losses import KL, NLL
from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import ConditionalGaussianPrior, MixturePrior, VampPrior
from omnivae.priors.densities import MixtureOfGaussians

TINY = {"image_size": 8, "latent_dim": 2, "channels": (4,), "num_components": 3}


def mixture(latent_dim=2, components=3):
    torch.manual_seed(3)
    prior = MixturePrior(latent_dim, components, spread=1.5)
    with torch.no_grad():
        prior.logits.normal_()
        prior.logvars.normal_(-1.0, 0.5)
    return prior


def spatial_vamp():
    torch.manual_seed(0)
    size = (8, 12)
    return VAE(
        ConvEncoder(1, (4, 4), norm="none"),
        GaussianPosterior(4, 2, 2),
        ConvDecoder(2, 1, (4, 4), norm="none"),
        GaussianLikelihood(1.0),
        VampPrior(1, size, 3),
    )


def grid(low=-12.0, high=12.0, steps=601):
    axis = torch.linspace(low, high, steps, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    return points, float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("kind", ["mixture", "vamp", "conditional"])
def test_density_integrates_to_one(kind):
    points, cell = grid()
    shape = torch.Size((len(points), 2))
    if kind == "mixture":
        p = mixture().double()(shape)
    elif kind == "vamp":
        torch.manual_seed(0)
        model = vamp_vae(**TINY)
        p = model.prior(shape, model.encode)
    else:
        prior = ConditionalGaussianPrior(3, 2)
        torch.nn.init.normal_(prior.head.weight, std=0.1)
        p = prior(shape, cond=torch.tensor([[1.0, 0.0, 2.0]]).expand(len(points), 3))
    assert float(p.log_prob(points.to(p.mean.dtype)).detach().double().exp().sum() * cell) == pytest.approx(1, abs=1e-4)


def test_mixture_equals_torchs():
    prior = mixture(4, 5)
    z = torch.randn(7, 3, 4)
    own = prior(torch.Size((3, 4)))
    components = Independent(Normal(prior.means, torch.exp(0.5 * prior.logvars)), 1)
    reference = MixtureSameFamily(Categorical(logits=prior.logits), components)
    torch.testing.assert_close(own.log_prob(z), reference.log_prob(z))
    torch.testing.assert_close(own.mean[0], reference.mean)
    torch.testing.assert_close(own.variance[1], reference.variance)


def test_one_component_is_the_gaussian():
    prior = MixturePrior(3, 1)
    q = DiagonalGaussian(torch.randn(2, 3), torch.randn(2, 3))
    p = prior(torch.Size((2, 3)))
    torch.manual_seed(0)
    z, log_q = q.rsample(20_000)
    exact = kl_divergence(q, Independent(Normal(prior.means, torch.ones(1, 3)), 1))
    error = (log_q - p.log_prob(z)).std(0) / math.sqrt(len(z))
    assert bool(((kl_divergence(q, p, z=z, log_q=log_q) - exact).abs() < 4 * error).all())


def test_samples_have_the_components_shares_means_and_spreads():
    prior = mixture(1, 2)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[-20.0], [20.0]]))
        prior.logits.copy_(torch.tensor([0.2, 0.8]).log())
        prior.logvars.copy_(torch.tensor([[0.0], [1.0]]))
    torch.manual_seed(0)
    n = 40_000
    z = prior(torch.Size((n, 1))).sample()[:, 0]
    right = z > 0
    assert float(right.double().mean()) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / n))
    assert float(z[right].mean()) == pytest.approx(20, abs=0.05)
    assert float(z[right].std()) == pytest.approx(math.exp(0.5), rel=0.03)
    assert float(z[~right].std()) == pytest.approx(1, rel=0.03)
    # The temperature belongs to the components: both stay where they are, with their shares.
    cold = prior(torch.Size((n, 1))).sample_at(0.0)[:, 0]
    assert set(cold.tolist()) == {-20.0, 20.0}
    assert float((cold > 0).double().mean()) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / n))


def test_positions_of_a_spatial_latent_are_independent_draws_of_the_mixture():
    prior = mixture(2, 3)
    z = torch.randn(5, 4, 2, 3, 2)  # [K, B, C, H, W]
    spatial = prior(torch.Size((4, 2, 3, 2)))
    vector = prior(torch.Size((4, 2)))
    expected = sum(vector.log_prob(z[..., i, j]) for i in range(3) for j in range(2))
    torch.testing.assert_close(spatial.log_prob(z), expected)
    assert spatial.sample().shape == spatial.mean.shape == (4, 2, 3, 2)
    torch.testing.assert_close(spatial.mean[0, :, 0, 0], vector.mean[0])
    torch.manual_seed(0)
    many = prior(torch.Size((2000, 2, 3, 2))).sample()
    correlation = torch.corrcoef(torch.stack([many[:, 0, 0, 0], many[:, 0, 2, 1]]))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(2000)


@pytest.mark.parametrize("make", [lambda: vamp_vae(**TINY), spatial_vamp], ids=["vector", "spatial"])
def test_vamp_prior_is_the_mean_of_the_pseudo_inputs_posteriors(make):
    torch.manual_seed(0)
    model = make()
    u = model.prior.pseudo_inputs
    q = model.encode(u)
    p = model.prior(torch.Size((4, *q.shape[1:])), model.encode)
    z = torch.randn(4, *q.shape[1:])
    expected = torch.stack(
        [Independent(Normal(m, s), m.ndim).log_prob(z) for m, s in zip(q.mean, q.stddev, strict=True)]
    ).logsumexp(0) - math.log(len(u))
    torch.testing.assert_close(p.log_prob(z), expected)
    low, high = model.value_range
    assert bool(((u > low) & (u < high)).all())
    assert model.sample(5, size=(8, 12) if model.image_size is None else None).shape[0] == 5


def test_vamp_gradients_reach_encoder_and_pseudo_inputs_and_nothing_is_saved_twice(tmp_path):
    model = vamp_vae(**TINY)
    x = torch.rand(4, 1, 8, 8)
    output = model.train()(x)
    KL()(output, {"x": x}).backward()
    assert bool(model.prior.logits.grad.any())
    names = set(model.state_dict())
    assert [n for n in names if n.startswith("prior")] == ["prior.logits"]
    model.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    z = torch.randn(3, 2)
    model.eval()
    assert torch.equal(model.prior(z.shape, model.encode).log_prob(z), again.prior(z.shape, again.encode).log_prob(z))


def test_mixture_training_finds_two_clusters():
    """Maximum likelihood on two bells: the prior alone must find their centres, spreads and shares."""
    torch.manual_seed(0)
    side = (torch.rand(512) < 0.25).float()
    data = torch.stack([8 * side - 4, torch.zeros(512)], 1) + 0.5 * torch.randn(512, 2)
    prior = MixturePrior(2, 2)
    optimiser = torch.optim.Adam(prior.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        (-prior(data.shape).log_prob(data).mean()).backward()
        optimiser.step()
    order = prior.means[:, 0].argsort()
    share = float(side.mean())
    torch.testing.assert_close(prior.means[order], torch.tensor([[-4.0, 0.0], [4.0, 0.0]]), atol=0.25, rtol=0)
    torch.testing.assert_close(prior.logits.softmax(0)[order], torch.tensor([1 - share, share]), atol=0.02, rtol=0)
    torch.testing.assert_close(prior.logvars.exp().sqrt(), torch.full((2, 2), 0.5), atol=0.1, rtol=0)


def test_conditional_gaussian_follows_its_condition_with_a_closed_form_kl():
    torch.manual_seed(0)
    prior = ConditionalGaussianPrior(4, 3, hidden=(8,))
    torch.nn.init.normal_(prior.head.weight, std=0.5)
    cond = torch.eye(4)[:2]
    for size in ((), (2, 5)):
        shape = torch.Size((2, 3, *size))
        p = prior(shape, cond=cond)
        assert not torch.equal(p.mean[0], p.mean[1])
        q = DiagonalGaussian(torch.randn(shape), torch.randn(shape))
        exact = kl_divergence(q, p)
        torch.testing.assert_close(kl_elements(q, p).flatten(1).sum(1), exact)
        z, log_q = q.rsample(20_000)
        ratio = log_q - p.log_prob(z)
        assert bool(((ratio.mean(0) - exact).abs() < 4 * ratio.std(0) / math.sqrt(len(z))).all())
    exact.sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in prior.parameters())


def test_refusals():
    shape = torch.Size((2, 3))
    with pytest.raises(ValueError, match="needs one of shape"):
        ConditionalGaussianPrior(4, 3)(shape)
    with pytest.raises(ValueError, match="needs one of shape"):
        ConditionalGaussianPrior(4, 3)(shape, cond=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="built for 3"):
        ConditionalGaussianPrior(4, 3)(torch.Size((2, 5)), cond=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="cannot use a condition"):
        MixturePrior(3)(shape, cond=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="built for 4"):
        MixturePrior(4)(shape)
    with pytest.raises(ValueError, match="pass the model's encode"):
        VampPrior(1, (8, 8), 3)(shape)
    with pytest.raises(ValueError, match="diagonal Gaussian"):
        VampPrior(1, (8, 8), 3)(shape, lambda x: x.mean)
    model = spatial_vamp()
    with pytest.raises(ValueError, match="resize the images"):
        model(torch.zeros(1, 1, 16, 16))
    for wrong in ({"num_components": 0}, {"value_range": (1, 0)}):
        with pytest.raises(ValueError, match="expected"):
            VampPrior(1, (8, 8), **wrong)


@pytest.mark.parametrize("make", [lambda: vamp_vae(**TINY), lambda: mixture_vae(**TINY)], ids=["vamp", "mixture"])
def test_sampling_is_seeded_and_the_temperature_counts(make):
    torch.manual_seed(0)
    model = make().eval()
    draws = [model.sample(4, generator=torch.Generator().manual_seed(5), temperature=t) for t in (1.0, 1.0, 0.0)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    # At temperature zero every sample is the decoded centre of a component.
    p = model.prior(torch.Size((1, 2)), model.encode)
    centres = model.decode(p.component_mean).detach()
    assert all(min(float((image - c).abs().max()) for c in centres) < 1e-5 for image in draws[2])


def test_bf16_autocast_keeps_the_density_in_float32():
    model = vamp_vae(**TINY).train()
    x = torch.rand(4, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        total = NLL()(output, {"x": x}) + KL()(output, {"x": x})
        p = output.latents[0].prior
        assert isinstance(p, MixtureOfGaussians)
        assert p.log_prob(output.z).dtype == p.mean.dtype == total.dtype == torch.float32
    assert bool(torch.isfinite(total))
