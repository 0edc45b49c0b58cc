"""Metrics of the latent space against closed forms, perfect models and engineered failures."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from linear_model import LATENTS, NOISE, PIXELS, LinearDecoderForTests, ListDataset
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import omnivae
from omnivae.distributions import DiagonalGaussian
from omnivae.metrics import METRICS, evaluate
from omnivae.metrics.aggregate import aggregate_samples, log_aggregate, prior_at_samples
from omnivae.metrics.population import MAX_IMAGES, Population, codes, gaussian_codes
from omnivae.metrics.registry import GROUPS, resolve
from omnivae.metrics.uniformity import coefficient_of_variation, gini, normalised_entropy
from omnivae.priors import ConditionalGaussianPrior, StandardNormal

AGGREGATE = list(GROUPS["aggregate"])


class Labelled(ListDataset):
    """Images with labels."""

    def __init__(self, images, labels, keys=None):
        super().__init__(images, keys)
        self.labels = labels

    def __getitem__(self, index):
        return {**super().__getitem__(index), "label": self.labels[index]}


class CodeModel(nn.Module):
    """A stand-in whose code is a function of the image; decodes by another function."""

    value_range, in_channels = (-4.0, 4.0), 1

    def __init__(self, code, decoder=None, stride=1, prior=None):
        super().__init__()
        self.prior = prior or StandardNormal()
        self.code, self.decoder_function, self.stride = code, decoder, stride

    @property
    def encoder(self):
        return self

    def encode(self, x, cond=None):
        z = self.code(x)
        return DiagonalGaussian(z, torch.full_like(z, -4.0), input_size=tuple(x.shape[2:]))

    def decode(self, z, cond=None, size=None):
        return self.decoder_function(z)


def draws(n, seed=0):
    """Images of the linear model's own p(x)."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, LATENTS, generator=g)
    x = z @ LinearDecoderForTests().weight.data.T + NOISE * torch.randn(n, PIXELS, generator=g)
    return x.reshape(-1, 1, 2, 2).clamp(-4, 4)


def means(result):
    return {name: r.mean for name, r in result.metrics.items()}


# -- the aggregate posterior


def test_the_parts_add_up_to_the_kl_of_the_same_samples(loose_model, images):
    loose_model.requires_grad_(False)
    population = Population([gaussian_codes])
    inference = omnivae.metrics.Inference(loose_model, images, [f"{i}" for i in range(len(images))])
    population.add([(key, None) for key in inference.keys], inference)
    population.finish(loose_model, torch.device("cpu"))
    samples = population.once(aggregate_samples)
    sampled_kl = (samples.own - population.once(prior_at_samples)).mean()
    parts = {name: METRICS[name].function(population).value for name in AGGREGATE}
    assert parts["mutual_information"] + parts["aggregate_kl"] == pytest.approx(float(sampled_kl), abs=1e-9)
    split = parts["total_correlation"] + parts["dimension_wise_kl"]
    assert split == pytest.approx(parts["aggregate_kl"], abs=1e-6)
    exact_kl = loose_model.encode(images).kl().mean()
    assert float(sampled_kl) == pytest.approx(float(exact_kl), abs=0.05)


def test_the_mixture_density_is_torchs(images):
    g = torch.Generator().manual_seed(0)
    mean, logvar, z = (torch.randn(n, 3, dtype=torch.float64, generator=g) for n in (7, 7, 5))
    each = Independent(Normal(mean, (0.5 * logvar).exp()), 1).log_prob(z[:, None])
    everything, without = log_aggregate(z, mean, logvar, torch.arange(5))
    torch.testing.assert_close(everything, each.logsumexp(1) - math.log(7))
    left = torch.stack([each[i][torch.arange(7) != i].logsumexp(0) for i in range(5)]) - math.log(6)
    torch.testing.assert_close(without, left)


def test_linear_gaussian_world_has_its_closed_forms(exact_model):
    """q(z|x) is the posterior, so I(x;z) = 1/2 log det(Cov[z] / Cov[z|x]) and q(z) is the prior."""
    result = means(evaluate(exact_model, ListDataset(draws(800)), AGGREGATE, bootstrap=0))
    expected = -0.5 * float(exact_model.posterior.logvar.detach().sum())
    assert result["mutual_information"] == pytest.approx(expected, abs=0.06)
    for name in ("aggregate_kl", "total_correlation", "dimension_wise_kl"):
        assert abs(result[name]) < 0.06
    assert abs(result["prior_holes"]) < 0.02


def test_total_correlation_of_correlated_codes():
    rho = 0.8
    g = torch.Generator().manual_seed(0)
    z = torch.randn(700, 2, generator=g) @ torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]])).T
    model = CodeModel(lambda x: x.flatten(1)[:, :2])
    result = means(evaluate(model, ListDataset(z.reshape(-1, 1, 1, 2).clamp(-4, 4)), AGGREGATE, bootstrap=0))
    # The codes' own noise (e^-4 of variance) is part of the aggregate posterior.
    covariance = torch.tensor([[1 + math.exp(-4), rho], [rho, 1 + math.exp(-4)]])
    marginal = torch.diag(covariance.diagonal())
    zero = torch.zeros(2)
    truth = torch.distributions.kl_divergence(MultivariateNormal(zero, covariance), MultivariateNormal(zero, marginal))
    assert result["total_correlation"] == pytest.approx(float(truth), abs=0.1)


def test_mutual_information_is_bounded_by_the_number_of_images():
    # Codes far apart: every image is known from its code.
    x = torch.linspace(-4, 4, 40).reshape(-1, 1, 1, 1)
    result = evaluate(CodeModel(lambda x: 50 * x.flatten(1)), ListDataset(x), ["mutual_information"])
    assert result.metrics["mutual_information"].mean == pytest.approx(math.log(40), abs=1e-6)
    assert "at least 3.689" in result.remarks["mutual_information"]
    # The same code for all: nothing is known.
    nothing = evaluate(CodeModel(lambda x: 0 * x.flatten(1)), ListDataset(x), ["mutual_information"])
    assert abs(nothing.metrics["mutual_information"].mean) < 1e-9


def test_holes_are_seen_and_not_invented():
    g = torch.Generator().manual_seed(1)
    normal = torch.randn(400, 1, 1, 6, generator=g).clamp(-4, 4)
    model = CodeModel(lambda x: x.flatten(1) * math.sqrt(1 - math.exp(-4)))
    perfect = evaluate(model, ListDataset(normal), ["prior_holes"]).metrics["prior_holes"]
    assert perfect.low <= 0.02
    assert abs(perfect.mean) < 0.05
    # Half of the prior's mass (one sign of the first dimension) is never used.
    half = CodeModel(lambda x: torch.cat([x.flatten(1)[:, :1].abs(), x.flatten(1)[:, 1:]], 1))
    holes = evaluate(half, ListDataset(normal[..., :2]), ["prior_holes"]).metrics["prior_holes"]
    assert holes.low < holes.mean < holes.high
    assert holes.mean == pytest.approx(0.5, abs=0.1)
    # Everything far from the prior's mass.
    away = evaluate(CodeModel(lambda x: x.flatten(1) + 9), ListDataset(normal), ["prior_holes"])
    assert away.metrics["prior_holes"].mean > 0.95


def test_order_and_batch_size_change_no_digit(loose_model, images):
    keys = [f"k{i}" for i in range(len(images))]
    labels = torch.arange(len(images)) % 2
    names = [*AGGREGATE, "probe_accuracy", "interpolation_roughness", "equivariance_flip"]
    one = evaluate(loose_model, Labelled(images, labels, keys), names, bootstrap=20)
    back = torch.arange(len(images)).flip(0)
    two = evaluate(loose_model, Labelled(images[back], labels[back], keys[::-1]), names, bootstrap=20, batch_size=5)
    assert one.metrics == two.metrics


def test_large_populations_are_sampled_by_key(monkeypatch):
    monkeypatch.setattr("omnivae.metrics.population.MAX_IMAGES", 8)
    x = torch.linspace(-4, 4, 30).reshape(-1, 1, 1, 1)
    model = CodeModel(lambda x: 50 * x.flatten(1))
    result = evaluate(model, ListDataset(x), ["mutual_information"])
    assert result.metrics["mutual_information"].mean == pytest.approx(math.log(8), abs=1e-6)
    assert "of 8 of the 30 images" in result.remarks["mutual_information"]
    reverse = evaluate(
        model, ListDataset(x.flip(0), [f"image/{i:03d}" for i in range(30)][::-1]), ["mutual_information"]
    )
    assert reverse.metrics == result.metrics
    assert MAX_IMAGES == 4096


# -- probes


def clusters(spread, n=200):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    centres = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    x = centres[labels] + spread * torch.randn(n, 2, generator=g)
    return Labelled(x.reshape(n, 1, 1, 2).clamp(-4, 4), labels)


def test_probes_read_what_is_there_and_no_more():
    flat = CodeModel(lambda x: x.flatten(1))
    for name in ("probe_accuracy", "knn_accuracy"):
        clear = evaluate(flat, clusters(0.1), [name])
        assert clear.metrics[name].mean == 1.0
        assert "40 test it" in clear.remarks[name]
        assert "largest class: 0.25" in clear.remarks[name]
        blind = evaluate(CodeModel(lambda x: x.flatten(1)), clusters(1e3), [name]).metrics[name]
        assert blind.low < 0.25 + 0.1 < 0.6
        assert blind.mean < 0.5


def test_probe_r2_of_a_linear_factor():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(120, 1, 1, 2, generator=g)
    factors = torch.stack([3 * x[:, 0, 0, 0] - x[:, 0, 0, 1], x[:, 0, 0, 1]], 1)
    model = CodeModel(lambda x: x.flatten(1))
    assert evaluate(model, Labelled(x, factors), ["probe_r2"]).metrics["probe_r2"].mean > 0.999
    noise = torch.randn(120, 2, generator=g)
    assert evaluate(model, Labelled(x, noise), ["probe_r2"]).metrics["probe_r2"].mean < 0.2


def test_probes_refuse_what_they_cannot_use(images):
    model = CodeModel(lambda x: x.flatten(1))
    with pytest.raises(ValueError, match="a label of every image"):
        evaluate(model, ListDataset(images), ["probe_accuracy"])
    with pytest.raises(ValueError, match="measure probe_r2"):
        evaluate(model, Labelled(images, torch.rand(24, 3)), ["knn_accuracy"])
    with pytest.raises(ValueError, match="measure probe_accuracy"):
        evaluate(model, Labelled(images, torch.arange(24)), ["probe_r2"])
    with pytest.raises(ValueError, match="two classes or more"):
        evaluate(model, Labelled(images, torch.zeros(24)), ["probe_accuracy"])


# -- uniformity


def test_uniformity_figures_have_their_definitions():
    g = np.random.default_rng(0)
    density = g.random(50) + 0.01
    assert coefficient_of_variation(density) == pytest.approx(np.std(density) / np.mean(density))
    p = density / density.sum()
    assert normalised_entropy(density) == pytest.approx(-(p * np.log2(p)).sum() / np.log2(50))
    pairs = np.abs(density[:, None] - density[None]).mean() / (2 * density.mean())
    assert gini(density) == pytest.approx(pairs)
    assert (coefficient_of_variation(np.ones(9)), normalised_entropy(np.ones(9)), round(gini(np.ones(9)), 12)) == (
        0,
        1,
        0,
    )


def test_clumped_codes_are_less_even():
    g = torch.Generator().manual_seed(0)
    even = torch.rand(150, 1, 1, 2, generator=g)
    clumped = torch.cat([even[:75], 1e-3 * even[75:] + 0.5])
    model = CodeModel(lambda x: x.flatten(1))
    names = list(GROUPS["uniformity"])
    a, b = (means(evaluate(model, ListDataset(x), names, bootstrap=50)) for x in (even, clumped))
    assert a["density_cv"] < b["density_cv"]
    assert a["density_entropy"] > b["density_entropy"]
    assert a["density_gini"] < b["density_gini"]
    with pytest.raises(ValueError, match="collapse"):
        evaluate(CodeModel(lambda x: 0 * x.flatten(1)), ListDataset(even), names)
    with pytest.raises(ValueError, match="more than 30 codes"):
        evaluate(model, ListDataset(even[:10]), names)


# -- equivariance


def pooled(x):
    return nn.functional.avg_pool2d(x, 2)


@pytest.fixture
def pictures():
    g = torch.Generator().manual_seed(0)
    return ListDataset(torch.randn(30, 1, 8, 8, generator=g).clamp(-4, 4))


def test_an_equivariant_codec_has_no_error(pictures):
    result = means(evaluate(CodeModel(pooled, stride=2), pictures, ["equivariance"]))
    assert set(result) == set(GROUPS["equivariance"])
    assert max(result.values()) < 1e-6


def test_a_codec_that_knows_positions_has_one(pictures):
    ramp = torch.linspace(-2, 2, 4)
    marked = CodeModel(lambda x: pooled(x) * ramp[: x.shape[-1] // 2], stride=2)
    for value in means(evaluate(marked, pictures, ["equivariance"])).values():
        assert value > 0.4
    # A random code has nothing to do with the transformed one: twice the spread.
    shuffled = CodeModel(lambda x: pooled(x)[..., torch.randperm(x.shape[-1] // 2), :], stride=2)
    torch.manual_seed(0)
    assert means(evaluate(shuffled, pictures, ["equivariance_flip"]))["equivariance_flip"] > 1


def test_a_vector_code_moves_by_an_affine_map():
    g = torch.Generator().manual_seed(0)
    data = ListDataset(torch.rand(200, 1, 4, 4, generator=g))
    linear = CodeModel(lambda x: torch.cat([x.flatten(1), x.flatten(1).sum(1, keepdim=True)], 1))
    result = means(evaluate(linear, data, ["equivariance_flip", "equivariance_rotation", "equivariance_shift"]))
    assert max(result.values()) < 0.01
    # The sign of one pixel after another does not follow from the signs before a turn of another half.
    chaotic = CodeModel(lambda x: torch.frac(1e3 * x.flatten(1)[:, :2]))
    assert means(evaluate(chaotic, data, ["equivariance_rotation"]))["equivariance_rotation"] > 0.9


def test_equivariance_refuses_small_images_and_marks_constant_codes():
    small = ListDataset(torch.zeros(4, 1, 4, 4))
    with pytest.raises(ValueError, match="at least 6 x 6 pixels"):
        evaluate(CodeModel(pooled, stride=2), small, ["equivariance_shift"])
    flat = evaluate(CodeModel(pooled, stride=2), ListDataset(torch.zeros(4, 1, 8, 8)), ["equivariance_flip"])
    assert math.isnan(flat.metrics["equivariance_flip"].mean)
    assert "undefined" in flat.notes["equivariance_flip"]


# -- smoothness


def test_linear_decoders_are_smooth_and_their_path_length_is_known():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, 2, 2, generator=g).clamp(-4, 4)
    model = CodeModel(lambda x: x.flatten(1), lambda z: 3 * z.reshape(-1, 1, 2, 2))
    result = evaluate(model, ListDataset(x), ["smoothness"])
    assert result.metrics["interpolation_roughness"].mean < 1e-9
    order = sorted(range(20), key=lambda i: __import__("hashlib").sha256(f"image/{i:03d}".encode()).digest())
    steps = (3 * x[order]).diff(dim=0).square().flatten(1).mean(1)
    assert result.metrics["path_length"].mean == pytest.approx(float(steps.mean()), rel=1e-3)
    assert "19 pairs" in result.remarks["path_length"]


def test_decoded_lines_are_not_kept():
    decoded, alive = [], []

    def decoder(z):
        picture = z.double().reshape(-1, 1, 2, 2).clone()
        decoded.append(weakref.ref(picture))
        alive.append(sum(ref() is not None for ref in decoded))
        return picture

    x = torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    evaluate(CodeModel(lambda x: x.flatten(1), decoder), ListDataset(x), ["smoothness"], bootstrap=0)
    # 256 pairs of 256 x 256 colour pictures would be 5 GB.
    assert len(alive) == 29
    assert max(alive) <= 2


def test_a_decoder_that_jumps_is_rough():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, 2, 2, generator=g).clamp(-4, 4)
    jumping = CodeModel(lambda x: x.flatten(1), lambda z: torch.sin(1e4 * z).reshape(-1, 1, 2, 2))
    roughness = evaluate(jumping, ListDataset(x), ["interpolation_roughness"]).metrics["interpolation_roughness"]
    # Values without memory: second differences have variance 6 s², first ones 2 s².
    assert roughness.mean == pytest.approx(3, abs=0.2)


# -- what models lack


def test_models_without_what_a_metric_needs_are_refused(images):
    torch.manual_seed(0)
    spatial = omnivae.conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=[4, 8], latent="spatial")
    data = ListDataset(torch.rand(6, 1, 8, 8) * 2 - 1)
    with pytest.raises(ValueError, match="vector latent"):
        evaluate(spatial, data, ["total_correlation"])
    mixed = ListDataset([torch.zeros(1, 8, 8), torch.zeros(1, 8, 12)])
    with pytest.raises(ValueError, match="images of one size"):
        evaluate(spatial, mixed, ["mutual_information"])
    quantised = omnivae.vq_vae(in_channels=1, image_size=8)
    with pytest.raises(ValueError, match="diagonal Gaussian"):
        evaluate(quantised, ListDataset(torch.rand(3, 1, 16, 16) * 2 - 1), ["mutual_information"])
    with pytest.raises(ValueError, match="at least 2 images"):
        evaluate(spatial, ListDataset(torch.zeros(1, 1, 8, 8)), ["mutual_information"])
    model = CodeModel(lambda x: x.flatten(1)[:, :2], prior=ConditionalGaussianPrior(3, 2))
    with pytest.raises(ValueError, match="depends on a condition"):
        evaluate(
            model, [{"x": x, "key": str(i), "cond": torch.zeros(3)} for i, x in enumerate(images)], ["aggregate_kl"]
        )


def test_groups_stand_for_their_metrics():
    assert [m.name for m in resolve(["aggregate", "psnr", "prior_holes"])] == [*AGGREGATE, "psnr"]
    assert {name for group in GROUPS.values() for name in group} <= set(METRICS)
    population = [m for m in METRICS.values() if m.scope == "population"]
    assert all(m.collect is not None for m in population)
    assert codes in [m.collect for m in population]
