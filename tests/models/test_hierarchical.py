"""Models with several latents, held to a linear-Gaussian world, and what goes with them and what does not."""

import math

import pytest
import torch
from hierarchical_world import EVIDENCE, PRIOR, S1, A, X, joint, true_posterior, world
from torch.distributions import kl_divergence as torch_kl

from omnivae.distributions import SampledGaussian, kl_elements
from omnivae.losses import IWAE, KL, NLL, LinearSchedule, loss_classes
from omnivae.metrics.inference import Inference
from omnivae.models import HierarchicalVAE
from omnivae.recipes import deep_hierarchical_vae, hierarchical_vae, ladder_vae
from omnivae.training.module import check

WRONG = {"shift": 0.25, "widen": 1.4}


def mean_and_error(values):
    return float(values.mean()), float(values.std() / math.sqrt(values.numel()))


# -- the bounds


@pytest.mark.parametrize("k", [1, 5])
def test_at_the_true_posterior_every_weight_is_the_evidence(k):
    output = world()(X, num_samples=k, sample=True)
    log_ratio = sum(v.prior.log_prob(v.z) - v.log_q for v in output.latents)
    log_w = output.likelihood.log_prob(X) + log_ratio
    assert log_w.shape == (k, 2)
    torch.testing.assert_close(log_w, EVIDENCE.log_prob(X[..., 0]).expand(k, 2))
    torch.testing.assert_close(
        IWAE(num_samples=k)(output, {"x": X}), -EVIDENCE.log_prob(X[..., 0]).mean(), check_dtype=False
    )


def test_elbo_is_below_iwae_and_that_is_below_the_evidence():
    torch.manual_seed(0)
    model, x = world(**WRONG), X.repeat(4000, 1, 1)
    bounds = []
    for k in (1, 5, 50):
        output = model(x, num_samples=k, sample=True)
        log_w = output.likelihood.log_prob(x) + sum(v.prior.log_prob(v.z) - v.log_q for v in output.latents)
        bounds.append(mean_and_error(log_w.logsumexp(0) - math.log(k)))
        torch.testing.assert_close(-IWAE(num_samples=k)(output, {"x": x}), torch.tensor(bounds[-1][0]).double())
    exact = float(EVIDENCE.log_prob(X[..., 0]).mean())
    gap = float(torch_kl(joint(model, X), true_posterior(X)).mean())
    (elbo, error), (five, _), (fifty, last) = bounds
    # The ELBO's gap is the divergence from the true posterior, which here is known.
    assert elbo == pytest.approx(exact - gap, abs=4 * error)
    assert elbo + 4 * error < five < fifty < exact + 4 * last
    assert exact - fifty < 0.1 * gap


def test_kl_of_all_levels_is_that_of_the_joint_gaussians():
    torch.manual_seed(1)
    model = world(**WRONG)
    exact = torch_kl(joint(model, X), PRIOR)
    output = model(X, num_samples=20000, sample=True)
    by_level = [kl_elements(v.posterior, v.prior).sum(1) for v in output.latents]
    # The top one is exact; the other is an average over the samples above of a KL in closed form.
    spread = torch_kl(output.latents[1].posterior.distribution(), output.latents[1].prior).std(0) / math.sqrt(20000)
    assert bool(((sum(by_level) - exact).abs() < 4 * spread + 1e-12).all())
    torch.testing.assert_close(KL()(output, {"x": X}), sum(by_level).mean(), check_dtype=False)


def test_free_bits_count_a_level_below_by_its_mean_over_samples_and_batch():
    output = world(**WRONG)(X, num_samples=7, sample=True)
    by_hand = sum(
        torch_kl(v.posterior.distribution().base_dist, v.prior.base_dist).flatten(0, -2).mean(0).clamp(min=0.9).sum()
        for v in output.latents
    )
    torch.testing.assert_close(KL(free_bits=0.9)(output, {"x": X}), by_hand, check_dtype=False)
    assert float(by_hand) > float(KL()(output, {"x": X}))


def test_free_bits_may_be_those_of_a_channel_or_a_level():
    output = deep_model().train()(torch.rand(3, 3, 8, 8))
    kls = [torch_kl(v.posterior.distribution().base_dist, v.prior.base_dist).mean(0) for v in output.latents]
    assert [tuple(kl.shape) for kl in kls] == [(3, 2, 2), (3, 2, 2), (3, 4, 4), (3, 8, 8)]
    free = float(kls[0].detach().sum()) * 0.9
    for over, groups in (
        ("element", [kl.flatten() for kl in kls]),
        ("channel", [kl.sum((1, 2)) for kl in kls]),
        ("level", [kl.sum() for kl in kls]),
    ):
        by_hand = sum(group.clamp(min=free).sum() for group in groups)
        loss = KL(free_bits=free, free_bits_over=over)
        torch.testing.assert_close(loss(output, {"x": torch.zeros(1)}), by_hand)
    # A vector's channels are its elements.
    output = world(**WRONG)(X, sample=True)
    one, other = (KL(free_bits=0.9, free_bits_over=over)(output, {"x": X}) for over in ("element", "channel"))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="free_bits_over='group'"):
        KL(free_bits_over="group")


def test_metrics_see_the_evidence():
    log_weights = Inference(world(), X, ["a", "b"], num_samples_nll=6).log_weights
    torch.testing.assert_close(log_weights, EVIDENCE.log_prob(X[..., 0]).expand(6, 2))
    one, two = (Inference(world(**WRONG), X, ["a", "b"], seed=3).elbo_terms for _ in range(2))
    assert torch.equal(one[0], two[0])
    alone = Inference(world(**WRONG), X[1:], ["b"], seed=3).elbo_terms
    assert torch.equal(alone[1], one[1][1:])


def test_metrics_know_the_kl_of_each_dimension():
    model = world(**WRONG)
    found = Inference(model, X, ["a", "b"], num_samples_elbo=4000, seed=0).kl_elements
    assert found.shape == (2, 2)
    assert float((found.sum(1) - torch_kl(joint(model, X), PRIOR)).abs().max()) < 0.02


# -- prior and posterior as one distribution


def test_joint_densities_are_those_of_the_world():
    model = world(**WRONG)
    q = model.encode(X)
    z, log_q = q.rsample(5)
    torch.testing.assert_close(log_q, joint(model, X).log_prob(z))
    prior = model.prior(q.shape)
    torch.testing.assert_close(prior.log_prob(z), PRIOR.log_prob(z))
    torch.testing.assert_close(prior.log_prob(z[0]), PRIOR.log_prob(z[0]))
    assert prior.sample((4,)).shape == (4, 2, 2)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_of_every_level_have_the_priors_moments(temperature):
    torch.manual_seed(2)
    z = world().prior(torch.Size((40000, 2))).sample_at(temperature)
    t = temperature**2
    covariance = torch.tensor([[t, A * t], [A * t, A**2 * t + S1**2 * t]], dtype=torch.float64)
    variances = covariance.diagonal()
    assert bool(((z.mean(0) - PRIOR.mean).abs() < 4 * (variances / len(z)).sqrt()).all())
    # The variance of a sample covariance of Gaussians is (v_i v_j + c_ij^2) / n.
    error = ((torch.outer(variances, variances) + covariance.square()) / len(z)).sqrt()
    assert bool(((z.T.cov() - covariance).abs() < 4 * error).all())
    if temperature == 1:
        images = world().likelihood(z).base_dist.loc[..., 0]
        assert bool((images.mean(0) - EVIDENCE.mean).abs().max() < 0.03)


def test_decoding_the_encoding_is_the_deterministic_reconstruction():
    for model, shape in ((hierarchical_vae(), (1, 28, 28)), (deep_model(), (3, 19, 22)), (ladder_vae(), (1, 28, 28))):
        model.eval()
        x = torch.rand(3, *shape)
        q = model.encode(x)
        assert torch.equal(model.decode(q), model(x).reconstruction)
        assert torch.equal(model.decode(q.mode(), size=shape[1:]), model(x).reconstruction)
        assert torch.equal(model.resample(x, model.num_levels), model.decode(q).clamp(*model.value_range))
        z, _ = q.rsample(4)
        many = model.likelihood(z, size=shape[1:])
        assert many.batch_shape == (4, 3)
        torch.testing.assert_close(many.mean[2], model.decode(z[2], size=shape[1:]), atol=1e-5, rtol=1e-4)


def deep_model(**arguments):
    torch.manual_seed(0)
    return deep_hierarchical_vae(channels=(8, 8, 8), num_groups=(1, 1, 2), latent_dim=3, **arguments)


# -- levels in one tensor


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_packing_loses_nothing_and_keeps_places(dim):
    model = deep_model(dim=dim).eval()
    size = (12, 20, 8)[:dim]
    grid = tuple(n // 4 for n in size)
    levels = [
        torch.randn(2, 3, *(g * s for g in grid))
        for s in model.decoder.level_scales
    ]  # fmt: skip
    packed = model.pack(levels)
    assert packed.shape == (2, model.latent_dim, *grid)
    assert model.latent_dim == 3 * (1 + 1 + 2**dim + 4**dim)
    assert all(torch.equal(a, b) for a, b in zip(model.unpack(packed), levels, strict=True))
    with_samples = model.pack([torch.stack([v, v + 1]) for v in levels])
    assert torch.equal(with_samples[0], packed)
    # What lies in the first cell of the top grid stays in it.
    first = tuple(slice(0, 1) for _ in range(dim))
    changed = [v.clone() for v in levels]
    for v, s in zip(changed, model.decoder.level_scales, strict=True):
        v[(..., *(slice(0, s) for _ in range(dim)))] += 1
    difference = model.pack(changed) - packed
    assert bool((difference[(..., *first)] - 1).abs().max() < 1e-6)
    assert float(difference.sum()) == pytest.approx(difference[(..., *first)].sum().item(), rel=1e-5)


def test_lower_levels_are_resampled_and_upper_ones_kept():
    model = deep_model().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    reconstruction = model(x).reconstruction.clamp(-1, 1)
    seeds = [torch.Generator().manual_seed(s) for s in (0, 0, 1)]
    one, same, other = (model.resample(x, 2, generator=g) for g in seeds)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    # Without any level of the image, images are not told apart; with more levels they come nearer.
    nothing = model.resample(x, 0, temperature=0.0)
    torch.testing.assert_close(nothing[0], nothing[1])
    kept = world(**WRONG)
    means = [kept.resample(X, k, temperature=0.0) for k in range(3)]
    torch.testing.assert_close(means[2], kept(X).reconstruction.clamp(-1, 1))
    # z1 is then at its prior's mean given the posterior's z0.
    z0 = kept.encode(X).mode()[:, :1]
    by_hand = kept.decode(torch.cat([z0, A * z0 - 0.3], 1)).clamp(-1, 1)
    torch.testing.assert_close(means[1], by_hand)
    assert reconstruction.shape == x.shape
    with pytest.raises(ValueError, match="keep=5; this model has 4 levels"):
        model.resample(x, 5)


def test_samples_follow_their_generator_and_any_size():
    model = deep_model().eval()
    one, two = (model.sample(3, size=(9, 13), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.shape == (3, 3, 9, 13)
    assert torch.equal(one, two)
    mean = model.sample(2, size=(8, 8), temperature=0.0)
    assert torch.equal(mean[0], mean[1])


# -- training


def test_checkpointing_gives_the_same_gradients():
    x = torch.rand(2, 3, 16, 16)
    gradients = []
    for checkpointing in (False, True):
        model = deep_model(block="vdvae").train()
        model.enable_gradient_checkpointing(checkpointing)
        torch.manual_seed(3)
        output = model(x)
        (NLL()(output, {"x": x}) + KL()(output, {"x": x})).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-5) for a, b in zip(*gradients, strict=True))


def patterns(n, generator):
    """Images of one of four patterns with a little noise."""
    kinds = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(9)).round()
    index = torch.randint(4, (n,), generator=generator)
    return (kinds[index] + 0.1 * torch.rand(n, 1, 8, 8, generator=generator)).clamp(0, 1)


def trained_kl(weight, **kl):
    torch.manual_seed(0)
    model = hierarchical_vae(image_size=8, latent_dims=(2, 3), widths=(8, 16), channels=(4,)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss, generator = KL(weight=weight, **kl), torch.Generator().manual_seed(1)
    for step in range(50):
        x = patterns(32, generator)
        output = model(x)
        loss.step = step
        optimizer.zero_grad()
        (NLL()(output, {"x": x}) + loss.current_weight() * loss(output, {"x": x})).backward()
        optimizer.step()
    with torch.no_grad():
        output = model.eval()(patterns(256, generator))
        return [float(kl_elements(v.posterior, v.prior).sum(1).mean()) for v in output.latents]


def test_the_top_level_stays_in_use_with_the_papers_remedies():
    warmed, freed = trained_kl(LinearSchedule(length=50)), trained_kl(1.0, free_bits=0.25)
    assert warmed[0] > 0.4
    assert freed[0] > 0.4
    # A weight that forbids any information empties both levels: the measure can fail.
    assert max(trained_kl(100.0)) < 0.1


# -- what does not go


@pytest.mark.parametrize("name", ["tc", "dip", "mmd", "factor", "aae"])
def test_losses_about_one_latent_are_refused(name):
    arguments = {"tc": {"dataset_size": 10}}.get(name, {})
    with pytest.raises(ValueError, match=f"the loss '{name}' .*, or "):
        check(hierarchical_vae(), {"nll": NLL(), name: loss_classes()[name](**arguments)})


def test_other_mistakes_are_named():
    model = hierarchical_vae()
    with pytest.raises(ValueError, match="gradient to standard"):
        check(model, {"iwae": IWAE(gradient="dreg")})
    with pytest.raises(ValueError, match="is built without one"):
        model(torch.zeros(1, 1, 28, 28), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="num_samples=2 and sample=False"):
        model(torch.zeros(1, 1, 28, 28), num_samples=2, sample=False)
    with pytest.raises(ValueError, match="k=0"):
        model.eval().encode(torch.zeros(1, 1, 28, 28)).rsample(0)
    with pytest.raises(ValueError, match="expected one positive number of each a level"):
        hierarchical_vae(latent_dims=(2, 3, 4))
    with pytest.raises(ValueError, match="finest resolution first"):
        deep_hierarchical_vae(num_groups=(1, 2, 0))
    with pytest.raises(ValueError, match="latent_dim=7"):
        HierarchicalVAE(
            model.encoder,
            type(model.posterior)(7),
            model.decoder,
            model.likelihood_head,
            value_range=(0, 1),
            image_size=(28, 28),
        )
    with pytest.raises(ValueError, match="one sample for each"):
        SampledGaussian(torch.zeros(3, 1, 2), torch.zeros(3, 1, 2)).rsample(2)
