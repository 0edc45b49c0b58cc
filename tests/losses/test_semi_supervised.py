"""M2's bound: against brute force over the classes, and against a world whose log p(x) is closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, MultivariateNormal, Normal, OneHotCategorical

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import M2
from omnivae.losses.semi_supervised import class_bounds
from omnivae.recipes import m2_vae
from omnivae.types import Latent, SemiSupervisedOutput, VAEOutput

K = 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return m2_vae(image_size=4, hidden=(8,), latent_dim=2, num_classes=K).double().eval()


def data(n=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 4, 4, generator=generator).round().double()
    cond = F.one_hot(torch.arange(n) % K, K).double()
    return x, cond


def bound_by_hand(model, x, label):
    """L(x, y) at the mode of q(z|x, y), written out with torch's own densities, for one image and class."""
    y = F.one_hot(torch.tensor([label]), K).double()
    features = model.encoder(x[None], y)
    mean, logvar = model.posterior.projection(features).chunk(2, dim=1)
    logits = model.decoder(mean, y)
    reconstruction = -F.binary_cross_entropy_with_logits(logits, x[None], reduction="sum")
    kl = torch.distributions.kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), 1.0)).sum()
    return -(reconstruction + math.log(1 / K) - kl)


def test_the_marginalisation_equals_brute_force_over_classes(model):
    x, cond = data()
    cond[2:] = 0  # two images with a class, three without
    loss = M2(alpha=7.0)(model(x, cond), {"x": x})
    log_q = model.classify(x).double()
    expected = []
    for i in range(len(x)):
        each = torch.stack([bound_by_hand(model, x[i], label) for label in range(K)])
        if i < 2:
            expected.append(each[int(cond[i].argmax())])
        else:
            expected.append((log_q[i].exp() * each).sum() + (log_q[i].exp() * log_q[i]).sum())
    classification = -torch.stack([log_q[i, int(cond[i].argmax())] for i in range(2)]).mean()
    torch.testing.assert_close(loss.double(), torch.stack(expected).mean() + 7 * classification, atol=1e-4, rtol=1e-6)


def test_its_gradient_reaches_the_classifier_through_the_bound_alone(model):
    x, cond = data()
    M2(alpha=0.0)(model(x, torch.zeros_like(cond)), {"x": x}).backward()
    assert bool(model.class_head.weight.grad.any())
    model.zero_grad()
    # With every class known, the bound says nothing about the classifier.
    M2(alpha=0.0)(model(x, cond), {"x": x}).backward()
    grad = model.class_head.weight.grad
    assert grad is None or not bool(grad.any())


def test_images_of_known_class_cost_nothing_extra(model):
    x, cond = data()
    output = model(x, cond)
    assert output.others is None
    assert class_bounds(output, x).count_nonzero() == len(x)
    partly = model(x, torch.where(torch.arange(len(x))[:, None] < 4, cond, 0.0))
    assert len(partly.others_image) == K - 1


def test_pixels_behind_a_mask_count_under_no_class(model):
    x, cond = data()
    cond[2:] = 0
    output, mask = model(x, cond), torch.ones_like(x)
    mask[..., 2:] = 0
    changed = torch.where(mask.bool(), x, 1 - x)
    one, other = (M2()(output, {"x": pixels, "mask": mask}) for pixels in (x, changed))
    torch.testing.assert_close(one, other)
    # What the mask takes away is the log-likelihood of the pixels behind it: that of the whole less that of the rest.
    rest = M2()(output, {"x": x, "mask": 1 - mask})
    no_pixels = M2()(output, {"x": x, "mask": torch.zeros_like(mask)})
    torch.testing.assert_close(M2()(output, {"x": x}), one + rest - no_pixels)


def test_a_class_that_is_not_known_is_not_a_row_of_zeros_to_the_decoder(model):
    x, cond = data()
    partly = cond.clone()
    partly[2:] = 0
    posterior = model.encode(x, partly)
    told = torch.cat([cond[:2], F.one_hot(model.classify(x)[2:].argmax(1), K).double()])
    expected = model.decode(posterior.mode(), told)
    torch.testing.assert_close(model.decode(posterior), expected)
    torch.testing.assert_close(model.decode(posterior, partly), expected)
    for unknown in (None, partly):
        with pytest.raises(ValueError, match=r"class is not known.*classify"):
            model.decode(posterior.mode(), unknown)


def test_order_of_images_does_not_matter(model):
    x, cond = data()
    cond[::2] = 0
    place = torch.tensor([3, 1, 4, 0, 2])
    one = M2()(model(x, cond), {"x": x})
    two = M2()(model(x[place], cond[place]), {"x": x[place]})
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-6)


# -- a world in closed form: y uniform over K, z ~ N(0, I_2), x = W_y z + b_y + s * noise, in 3 dimensions


class World:
    scale = 0.7

    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        self.weight = torch.randn(K, 3, 2, generator=generator, dtype=torch.float64)
        self.shift = torch.randn(K, 3, generator=generator, dtype=torch.float64)
        self.x = torch.randn(6, 3, generator=generator, dtype=torch.float64)

    def log_joint(self):
        """log p(x, y), ``[B, K]``."""
        columns = []
        for w, b in zip(self.weight, self.shift, strict=True):
            covariance = w @ w.T + self.scale**2 * torch.eye(3, dtype=torch.float64)
            columns.append(MultivariateNormal(b, covariance).log_prob(self.x) - math.log(K))
        return torch.stack(columns, dim=1)

    def output(self, log_q, known, choice, *, num_samples):
        """The output of a model with the best diagonal posterior of each class, and ``log_q`` for a classifier."""
        image = torch.arange(len(self.x))
        others = ((torch.arange(K) != choice[:, None]) & ~known[:, None]).nonzero(as_tuple=True)
        chosen = self.under(image, choice, num_samples)
        prior = OneHotCategorical(logits=torch.zeros_like(log_q))
        y = Latent(OneHotCategorical(logits=log_q), prior, F.one_hot(choice, K)[None], None)
        return SemiSupervisedOutput(
            latents=(*chosen.latents, y),
            likelihood=chosen.likelihood,
            log_class=log_q,
            known=known,
            choice=choice,
            others=self.under(*others, num_samples) if len(others[0]) else None,
            others_image=others[0],
            others_class=others[1],
        )

    def under(self, image, label, num_samples):
        w, b = self.weight[label], self.shift[label]
        precision = torch.eye(2, dtype=torch.float64) + w.mT @ w / self.scale**2
        mean = torch.linalg.solve(precision, (w.mT @ (self.x[image] - b)[..., None]) / self.scale**2)[..., 0]
        posterior = DiagonalGaussian(mean, -precision.diagonal(dim1=1, dim2=2).log())
        torch.manual_seed(3)
        z, log_q = posterior.rsample(num_samples)
        pixels = Normal((w @ z[..., None])[..., 0] + b, self.scale, validate_args=False)
        prior = Independent(Normal(torch.zeros_like(mean), 1.0), 1)
        return VAEOutput((Latent(posterior, prior, z, log_q),), Independent(pixels, 1, validate_args=False))

    def gap(self):
        """KL from the best diagonal posterior to the exact one, in closed form, ``[K]``."""
        precision = torch.eye(2, dtype=torch.float64) + self.weight.mT @ self.weight / self.scale**2
        return 0.5 * (precision.diagonal(dim1=1, dim2=2).log().sum(1) - torch.logdet(precision))


def test_the_bounds_equal_the_closed_form():
    world, samples = World(), 20_000
    nobody, choice = torch.zeros(6, dtype=torch.bool), torch.arange(6) % K
    joint, gap = world.log_joint(), world.gap()
    # The best classifier of this bound: softmax of -L(x, y).
    log_q = (joint - gap).log_softmax(1)
    value = M2(alpha=0.0)(world.output(log_q, nobody, choice, num_samples=samples), {"x": world.x})
    exact = -(joint - gap).logsumexp(1).mean()
    assert float(value) == pytest.approx(float(exact), abs=0.03)
    assert float(value) > float(-joint.logsumexp(1).mean())  # a bound: the posterior is diagonal
    # Of images whose class is known: log p(x, y) less the gap of that class.
    known = M2(alpha=0.0)(world.output(log_q, ~nobody, choice, num_samples=samples), {"x": world.x})
    each = -(joint - gap)[torch.arange(6), choice].mean()
    assert float(known) == pytest.approx(float(each), abs=0.03)
    # Any other classifier has a looser bound, by KL(q' || q).
    flat = torch.full_like(log_q, -math.log(K))
    looser = M2(alpha=0.0)(world.output(flat, nobody, choice, num_samples=samples), {"x": world.x})
    assert float(looser - value) == pytest.approx(float((flat.exp() * (flat - log_q)).sum(1).mean()), abs=0.03)


def test_it_refuses_other_models_and_values():
    with pytest.raises(ValueError, match=r"alpha=-1"):
        M2(alpha=-1)
    world = World()
    plain = world.under(torch.arange(6), torch.zeros(6, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r"needs a model with classes.*m2_vae"):
        M2()(plain, {"x": world.x})
