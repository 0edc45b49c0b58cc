"""Recipes named after objectives: the papers' networks, and configurations that train what the recipe is known for."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import omnivae
from omnivae.cli.train import read_run
from omnivae.networks import ConvDecoder, ConvEncoder
from omnivae.networks.dense import DenseAfter, DenseBefore
from omnivae.recipes import MEMBERS, RECIPES
from omnivae.recipes.bases import convolutional, fully_connected, variant

CONFIGS = Path(omnivae.__file__).parents[2] / "configs"
BURDA = ("iwae", "miwae", "ciwae")
DISENTANGLING = ("capacity_vae", "beta_tc_vae", "factor_vae", "dip_vae_i", "dip_vae_ii")


def widths(module, kind):
    return [m.out_features if kind is nn.Linear else m.out_channels for m in module.modules() if isinstance(m, kind)]


def resolved(name, arguments):
    """A loss's arguments, what is left out at its default."""
    from omnivae.losses import loss_classes

    parameters = inspect.signature(loss_classes()[name].__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    # A schedule may be written without the defaults of its fields.
    return {k: _schedule(v) for k, v in (defaults | dict(arguments)).items()}


def _schedule(value):
    if isinstance(value, dict):
        return omnivae.to_config(omnivae.from_config(value))
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", sorted(n for n in RECIPES if (CONFIGS / f"{n}.yaml").exists()))
def test_the_configuration_trains_what_the_recipe_is_known_for(name):
    weights = [f"--losses.{loss}.weights_path=x" for loss in ("lpips", "dfc") if loss in MEMBERS[name].losses]
    config = read_run(["--config", str(CONFIGS / f"{name}.yaml"), *weights]).config
    assert config.model["recipe"] == name
    known = {k: resolved(k, v) for k, v in MEMBERS[name].losses.items()}
    found = {k: resolved(k, v) for k, v in config.losses.items()}
    for loss in found:
        if weights and "weights_path" in found[loss]:
            found[loss]["weights_path"] = known[loss]["weights_path"]
    assert found == known


@pytest.mark.parametrize("name", BURDA)
def test_burdas_network(name):
    """Two layers of 200 tanh units on each side of 50 dimensions; Bernoulli pixels (Burda et al., 2016, section 5)."""
    model = RECIPES[name]()
    assert widths(model.encoder, nn.Linear) == [200, 200]
    assert widths(model.decoder, nn.Linear) == [200, 200, 784]
    assert sum(isinstance(m, nn.Tanh) for m in model.modules()) == 4
    assert model.latent_dim == 50
    assert type(model.likelihood_head).__name__ == "BernoulliLikelihood"


@pytest.mark.parametrize("name", DISENTANGLING)
def test_networks_of_the_papers_on_disentangling(name):
    model = RECIPES[name]()
    stages = [32] * 4 if name == "capacity_vae" else [32, 32, 64, 64]
    hidden = {"capacity_vae": [256, 256], "factor_vae": [128]}.get(name, [256])
    assert widths(model.encoder, nn.Conv2d) == stages
    assert widths(model.encoder, nn.Linear) == hidden
    assert widths(model.decoder, nn.Linear) == [*hidden, stages[-1] * 4 * 4]
    assert widths(model.decoder, nn.ConvTranspose2d) == [*stages[::-1][1:], 1]
    assert model.latent_dim == 10
    assert model(torch.zeros(2, 1, 64, 64)).z.shape == (2, 10)


def test_numbers_of_the_papers():
    assert MEMBERS["capacity_vae"].losses["kl"]["weight"] == 1000.0
    assert MEMBERS["factor_vae"].losses["factor"]["weight"] == 35.0
    wae = RECIPES["wae"]()
    assert widths(wae.encoder, nn.Conv2d) == [128, 256, 512, 1024]
    assert wae.latent_dim == RECIPES["aae"]().latent_dim == 8
    assert widths(RECIPES["aae"]().encoder, nn.Linear) == [1000, 1000]


def test_the_guides_reference_network_is_conv_vae():
    """3-32-64-128, 4-wide, stride 2, batch normalisation, ReLU; the mirror with a sigmoid for pixels on [0, 1]."""
    model = omnivae.conv_vae(image_size=32, latent_dim=20, likelihood="bernoulli")
    convolutions = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [(3, 32), (32, 64), (64, 128)]
    assert {(m.kernel_size, m.stride) for m in convolutions} == {((4, 4), (2, 2))}
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.encoder.modules()) == 3
    assert model.posterior.projection.out_features == 2 * 20
    assert model.decoder.stem.out_features == 128 * 4 * 4
    assert widths(model.decoder, nn.ConvTranspose2d) == [64, 32, 3]
    reconstruction = model(torch.rand(2, 3, 32, 32)).reconstruction
    assert 0 < reconstruction.min().item() < reconstruction.max().item() < 1


# -- codes that are points, and a prior all the same


@pytest.mark.parametrize("name", ["wae", "aae"])
def test_deterministic_codes_fill_a_prior_that_can_be_sampled(name):
    model = RECIPES[name](image_size=8, hidden=(4,), **({"channels": (4,)} if name == "wae" else {})).train()
    x = torch.rand(3, 1, 8, 8)
    first, second = model(x), model(x)
    assert torch.equal(first.z, second.z)
    assert first.latents[0].log_q is None
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert RECIPES[name](image_size=8, deterministic=False, hidden=(4,)).posterior.provides == {"density", "diagonal"}


# -- variants


def test_a_variant_is_a_function_of_its_own_with_the_networks_arguments():
    assert omnivae.factor_vae.__name__ == "factor_vae"
    assert inspect.signature(omnivae.factor_vae).parameters.keys() == inspect.signature(convolutional).parameters.keys()
    assert inspect.signature(omnivae.factor_vae).parameters["hidden"].default == (128,)
    assert inspect.signature(convolutional).parameters["hidden"].default == (256,)
    assert "Kim & Mnih" in omnivae.factor_vae.__doc__
    assert "latent_dim: size of the vector z" in inspect.getdoc(omnivae.iwae)
    with pytest.raises(TypeError, match=r"factor_vae|unexpected"):
        omnivae.factor_vae(width=3)


def test_a_variant_with_an_unknown_default_is_refused():
    said = {"paper": "p", "equation": "e", "purpose": "u"}
    with pytest.raises(ValueError, match="fully_connected has no argument chanels"):
        variant(fully_connected, "nothing_vae", "Return nothing.", **said, defaults={"chanels": 1})
    assert "nothing_vae" not in RECIPES


# -- fully connected layers around convolutions


def test_dense_layers_add_up_to_the_networks_in_sequence():
    torch.manual_seed(0)
    encoder, decoder = ConvEncoder(1, (4,), image_size=(8, 8)), ConvDecoder(5, 1, (4,), image_size=(8, 8))
    after, before = DenseAfter(encoder, (7, 5)), DenseBefore(3, (6, 5), decoder)
    x, z = torch.rand(2, 1, 8, 8), torch.randn(2, 3)
    first, second = after.layers.linear0, after.layers.linear1
    torch.testing.assert_close(after(x), second(first(encoder(x)).relu()).relu())
    first, second = before.layers.linear0, before.layers.linear1
    torch.testing.assert_close(before(z), decoder(second(first(z).relu()).relu()))
    assert (after.in_channels, after.out_channels, after.stride, after.dim) == (1, 5, 2, 2)
    assert (before.in_channels, before.out_channels, before.stride, before.dim) == (3, 1, 2, 2)


def test_dense_layers_refuse_what_does_not_fit():
    flat, spatial = ConvEncoder(1, (4,), image_size=(8, 8)), ConvEncoder(1, (4,))
    with pytest.raises(ValueError, match="at least one"):
        DenseAfter(flat, ())
    with pytest.raises(ValueError, match="with an image_size"):
        DenseAfter(spatial, (4,))
    with pytest.raises(ValueError, match="expected the last to be 5"):
        DenseBefore(3, (4,), ConvDecoder(5, 1, (4,), image_size=(8, 8)))
