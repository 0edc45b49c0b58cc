"""The Gumbel-softmax posterior against enumeration, quadrature, torch's relaxed distribution, and many samples."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, RelaxedOneHotCategorical
from torch.distributions import kl_divergence as torch_kl

import omnivae
from omnivae import kl_divergence
from omnivae.distributions import closed_form_kl
from omnivae.losses import IWAE, KL, NLL
from omnivae.posteriors import CategoricalCodes, CategoricalPosterior
from omnivae.priors import UniformCategories


def posterior(groups=2, categories=3, batch=2, size=(), **arguments):
    torch.manual_seed(0)
    logits = torch.randn(batch, groups * categories, *size, dtype=torch.float64)
    return CategoricalCodes(logits, categories, **arguments)


def all_codes(groups, categories):
    """Every one-hot code, [C^G, G * C]."""
    index = torch.tensor(list(itertools.product(range(categories), repeat=groups)))
    return F.one_hot(index, categories).flatten(1).double()


def test_probabilities_of_all_codes_add_up_to_one():
    q = posterior(relaxed=False)
    codes = all_codes(2, 3).unsqueeze(1).expand(-1, 2, -1)
    torch.testing.assert_close(q.log_prob(codes).exp().sum(0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close((q.log_prob(codes).exp().unsqueeze(-1) * codes).sum(0), q.mean)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_relaxed_density_is_torchs_relative_to_the_uniform_one(temperature):
    q = posterior(relaxed=True, temperature=temperature)
    z, log_q = q.rsample(5)
    per_group = z.unflatten(2, (2, 3))
    ours = RelaxedOneHotCategorical(torch.tensor(temperature).double(), logits=q.log_probs)
    uniform = RelaxedOneHotCategorical(torch.tensor(temperature).double(), logits=torch.zeros(3).double())
    ratio = (ours.log_prob(per_group) - uniform.log_prob(per_group)).sum(-1)
    prior = UniformCategories(3).double()(q.shape)
    # torch's density clamps what nears the corners of the simplex.
    torch.testing.assert_close(log_q - prior.log_prob(z), ratio, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(q.log_prob(z), log_q, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(prior.log_prob(z), torch.full((5, 2), -2 * math.log(3)).double())


def test_relaxed_density_integrates_to_one():
    # Two categories: z = (s, 1 - s), with the uniform Concrete density written down from Maddison et al., 2017, eq. 9.
    temperature = 0.8
    q = posterior(1, 2, 1, relaxed=True, temperature=temperature)
    s = torch.sigmoid(torch.linspace(-40, 40, 40_001, dtype=torch.float64))
    z = torch.stack([s, torch.sigmoid(torch.linspace(40, -40, 40_001, dtype=torch.float64))], 1)
    uniform = temperature * (z[:, 0] * z[:, 1]).pow(-temperature - 1) / z.pow(-temperature).sum(1).square()
    total = torch.trapezoid(2 * uniform * q.log_prob(z.unsqueeze(1)).squeeze(1).exp(), s)
    assert float(total) == pytest.approx(1, abs=1e-4)


def test_one_hot_samples_have_the_probabilities_and_relaxed_ones_choose_alike():
    for relaxed in (False, True):
        z, _ = posterior(relaxed=relaxed, temperature=0.7).rsample(40_000)
        q = posterior()
        chosen = F.one_hot(z.unflatten(2, (2, 3)).argmax(-1), 3).double().flatten(2)
        error = (q.mean * (1 - q.mean) / len(z)).sqrt()
        assert bool(((chosen.mean(0) - q.mean).abs() < 4.5 * error).all())
        torch.testing.assert_close(z.unflatten(2, (2, 3)).sum(-1), torch.ones(40_000, 2, 2, dtype=torch.float64))


def test_straight_through_values_are_one_hot_to_the_last_bit_with_the_relaxed_gradient():
    logits = torch.randn(4, 6, requires_grad=True)
    torch.manual_seed(1)
    hard, _ = CategoricalCodes(logits, 3, temperature=0.5, relaxed=False).rsample(3)
    torch.manual_seed(1)
    soft, _ = CategoricalCodes(logits, 3, temperature=0.5, relaxed=True).rsample(3)
    assert set(hard.detach().unique().tolist()) == {0.0, 1.0}
    weight = torch.randn(6)
    torch.testing.assert_close(
        torch.autograd.grad((hard * weight).sum(), logits)[0], torch.autograd.grad((soft * weight).sum(), logits)[0]
    )


def test_relaxed_gradient_is_that_of_the_relaxed_expectation():
    # One group of two: s = sigmoid((l + logistic noise) / temperature); E[f(s)] by quadrature over the noise's quantiles.
    temperature = 0.6
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    exact = torch.sigmoid((logit + torch.logit(u)) / temperature).square().mean()
    (expected,) = torch.autograd.grad(exact, logit)
    torch.manual_seed(0)
    gradients = []
    for _ in range(100):
        q = CategoricalCodes(torch.stack([logit, logit * 0]).unsqueeze(0), 2, temperature=temperature)
        gradients.append(torch.autograd.grad(q.rsample(500)[0][..., 0].square().mean(), logit)[0])
    each = torch.stack(gradients)
    assert float(each.mean()) == pytest.approx(float(expected), abs=4 * float(each.std()) / 10)


def test_closed_form_kl_is_torchs_and_the_average_over_exact_samples():
    q = posterior(relaxed=False)
    prior = UniformCategories(3).double()(q.shape)
    reference = torch_kl(Categorical(logits=q.log_probs), Categorical(logits=torch.zeros(3).double())).sum(1)
    torch.testing.assert_close(kl_divergence(q, prior), reference)
    z, log_q = q.rsample(20_000)
    ratio = log_q - prior.log_prob(z)
    assert bool(((ratio.mean(0) - reference).abs() < 4.5 * ratio.std(0) / math.sqrt(len(z))).all())
    assert closed_form_kl(q, UniformCategories(2).double()(q.shape)) is None
    # What is relaxed says more than which is largest (data processing): its KL is no smaller.
    relaxed = posterior(relaxed=True, temperature=0.5)
    z, log_q = relaxed.rsample(20_000)
    ratio = log_q - prior.log_prob(z)
    assert bool((ratio.mean(0) + 4 * ratio.std(0) / math.sqrt(len(z)) > reference).all())


def test_spatial_groups_lie_along_the_channels():
    q = posterior(2, 3, 2, size=(4, 5), relaxed=False)
    z, log_q = q.rsample(3)
    assert z.shape == (3, 2, 6, 4, 5)
    assert torch.equal(z.detach().unflatten(2, (2, 3)).sum(3), torch.ones(3, 2, 2, 4, 5, dtype=torch.float64))
    assert q.categories.shape == (2, 4, 5, 2)
    torch.testing.assert_close(q.log_prob(z), log_q)
    mode = q.mode().unflatten(1, (2, 3)).argmax(2).movedim(1, -1)
    assert torch.equal(mode, q.categories)
    assert UniformCategories(3)(q.shape).sample((7,)).shape == (7, 2, 6, 4, 5)


def tiny():
    torch.manual_seed(0)
    return omnivae.recipes.gumbel_softmax_vae(image_size=8, num_groups=2, num_categories=3, channels=(4,))


def test_evaluation_is_of_the_discrete_model():
    # With every code enumerated log p(x) is a sum: the evaluated bounds are below it, and IWAE comes close.
    model = tiny().eval()
    x = (torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    with torch.no_grad():
        codes = all_codes(2, 3).float()
        log_px = torch.logsumexp(
            torch.stack([model.likelihood(c.expand(6, -1)).log_prob(x) for c in codes]) - 2 * math.log(3), 0
        )
        q = model.encode(x)
        assert not q.relaxed
        torch.manual_seed(1)
        output = model(x, num_samples=400)
        elbo = -float(NLL(num_samples=400)(output, {"x": x}) + KL()(output, {"x": x}))
        iwae = -float(IWAE(num_samples=400)(output, {"x": x}))
    assert elbo < float(log_px.mean()) + 1e-3
    assert iwae == pytest.approx(float(log_px.mean()), abs=0.02)
    assert model.train().encode(x).relaxed


def test_temperature_follows_the_papers_schedule_and_is_saved(tmp_path):
    head = CategoricalPosterior(4, 6, 0, num_categories=3, temperature=1.0, final_temperature=0.5, rate=1e-4)
    for step in (0, 1000, 5000, 100_000):
        head.set_step(step)
        assert float(head.temperature) == pytest.approx(max(0.5, math.exp(-1e-4 * step)))
    model = tiny()
    model.posterior.set_step(30_000)
    model.save_pretrained(tmp_path)
    again = omnivae.VAE.from_pretrained(tmp_path)
    assert float(again.posterior.temperature) == pytest.approx(math.exp(-0.3))


def test_refuses_what_makes_no_sense():
    for arguments in ({"latent_dim": 10, "num_categories": 3}, {"latent_dim": 6, "num_categories": 1}):
        with pytest.raises(ValueError, match="whole groups of at least 2 categories"):
            CategoricalPosterior(4, dim=0, **arguments)
    with pytest.raises(ValueError, match="final_temperature <= temperature"):
        CategoricalPosterior(4, 6, 0, num_categories=3, temperature=0.1)
    with pytest.raises(ValueError, match="at least 2"):
        UniformCategories(1)
    with pytest.raises(ValueError, match="whole groups"):
        UniformCategories(4)(torch.Size((2, 6)))
    with pytest.raises(ValueError, match="at least one posterior sample"):
        posterior().rsample(0)
    with pytest.raises(ValueError, match="leave it at 1"):
        tiny().sample(2, temperature=0.5)


def test_training_moves_the_temperature(tmp_path):
    from omnivae.training import TrainingConfig, fit

    class Images:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"x": torch.full((1, 8, 8), index / 8)}

    torch.manual_seed(0)
    model = omnivae.recipes.gumbel_softmax_vae(image_size=8, num_groups=2, num_categories=3, channels=(4,), rate=0.1)
    config = TrainingConfig(batch_size=4, max_steps=3, precision="32", warmup_steps=0)
    fit(
        model,
        {"nll": NLL(), "kl": KL()},
        Images(),
        None,
        config=config,
        directory=tmp_path,
        save_model=lambda _: None,
        progress=False,
    )
    # Set at the start of the steps 0, 1 and 2.
    assert float(model.posterior.temperature) == pytest.approx(math.exp(-0.2))
