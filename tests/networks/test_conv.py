import copy

import pytest
import torch

from omnivae.likelihoods import GaussianLikelihood
from omnivae.models import VAE
from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.recipes.convolutional import beta_vae, conv_vae


def small(**arguments):
    torch.manual_seed(0)
    return conv_vae(**({"in_channels": 2, "channels": (4, 8), "latent_dim": 3, "image_size": 12} | arguments))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_networks_mirror_each_other_in_every_dimension(dim, norm):
    size = (8, 12, 4)[:dim]
    encoder = ConvEncoder(2, (4, 12), dim, norm=norm)
    features = encoder(torch.randn(2, 2, *size))
    assert features.shape == (2, 12, *(n // 4 for n in size))
    assert (encoder.in_channels, encoder.out_channels, encoder.stride, encoder.dim) == (2, 12, 4, dim)
    decoder = ConvDecoder(12, 5, (12, 4), dim=dim, norm=norm)
    assert decoder(features).shape == (2, 5, *size)
    assert (decoder.in_channels, decoder.out_channels, decoder.stride, decoder.dim) == (12, 5, 4, dim)


def test_stack_is_that_of_the_guide():
    # Conv 3-32-64-128, k4 s2; Linear(latent, 128*4*4) and the mirror image; batch norm and ReLU between.
    model = conv_vae(image_size=32, latent_dim=32)
    encoder = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    decoder = [m for m in model.decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in encoder] == [(3, 32), (32, 64), (64, 128)]
    assert [(m.in_channels, m.out_channels) for m in decoder] == [(128, 64), (64, 32), (32, 3)]
    assert all(m.kernel_size == (4, 4) and m.stride == (2, 2) and m.padding == (1, 1) for m in encoder + decoder)
    assert model.decoder.stem.out_features == 128 * 4 * 4
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == 5
    assert model.posterior.projection.out_features == 64


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_every_size_comes_back(latent):
    for size in range(1, 21):
        model = small(image_size=(size, 21 - size), latent=latent).eval()
        x = torch.randn(1, 2, size, 21 - size)
        assert model.decode(model.encode(x)).shape == x.shape


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_odd_sizes_in_one_and_three_dimensions(dim, latent):
    size = (7, 5, 9)[:dim]
    model = small(dim=dim, image_size=size, latent=latent)
    reconstruction, mean, _ = model(torch.randn(3, 2, *size))
    assert reconstruction.shape == (3, 2, *size)
    assert mean.shape == ((3, 3) if latent == "vector" else (3, 3, 2, 2, 3)[: 2 + dim])


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_gradients_reach_every_parameter(norm, latent):
    model = small(norm=norm, latent=latent)
    x = torch.randn(4, 2, 12, 12)
    output = model(x)
    (output.latents[0].posterior.kl().mean() - output.likelihood.log_prob(x).mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_group_norm_keeps_information_of_a_single_position():
    encoder = ConvEncoder(1, (8, 8), norm="group").eval()
    x = torch.randn(2, 1, 4, 4)
    features = encoder(x)
    assert features.shape[2:] == (1, 1)
    assert not torch.allclose(features[0], features[1])


def test_evaluation_is_deterministic_and_files_are_exact(tmp_path):
    model = small()
    model(torch.randn(4, 2, 12, 12))  # moves the batch statistics
    model.eval()
    x = torch.randn(2, 2, 11, 12)
    first = model(x)
    assert torch.equal(first.reconstruction, model(x).reconstruction)
    model.save_pretrained(tmp_path)
    loaded = VAE.from_pretrained(tmp_path)
    assert torch.equal(first.reconstruction, loaded(x).reconstruction)
    assert torch.equal(first.logvar, loaded(x).logvar)


def test_autocast_keeps_densities_in_float32_and_layouts_agree():
    model = small(latent="spatial").eval()
    x = torch.randn(2, 2, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.mean.dtype == output.reconstruction.dtype == output.likelihood.log_prob(x).dtype == torch.float32
    exact = model(x).reconstruction
    torch.testing.assert_close(output.reconstruction, exact, atol=0.03, rtol=0.03)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)).reconstruction, exact)


@pytest.mark.parametrize(
    ("name", "value_range"),
    [("bernoulli", (0, 1)), ("laplace", (-1, 1)), ("categorical", (-1, 1)), ("gaussian_per_pixel", (-1, 1))],
)
def test_likelihoods_by_name(name, value_range):
    model = small(likelihood=name)
    assert model.value_range == value_range
    x = torch.rand(2, 2, 12, 12)
    assert model(x).likelihood.log_prob(x).shape == (1, 2)


def test_value_range_reaches_the_levels():
    assert small(likelihood="discretized_logistic", value_range=(0, 1)).likelihood_head.value_range == (0, 1)
    assert small(likelihood=GaussianLikelihood(0.5)).likelihood_head.scale == 0.5


def test_beta_vae_has_four_stages_without_normalisation():
    model = beta_vae()
    assert model(torch.rand(2, 1, 64, 64)).mean.shape == (2, 10)
    assert list(model.encoder.state_dict()) == [f"stages.{i}.conv.{w}" for i in range(4) for w in ("weight", "bias")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": None}, "latent='spatial'"),
        ({"image_size": (8, 8, 8)}, "one number or 2"),
        ({"latent": "tokens"}, "'vector' or 'spatial'"),
        ({"likelihood": "gausian"}, "did you mean 'gaussian'"),
        ({"norm": "layer"}, "'batch', 'group' or 'none'"),
        ({"dim": 4}, "1, 2 or 3"),
        ({"channels": ()}, "one a stage"),
        ({"likelihood": "bernoulli", "value_range": (-1, 1)}, "defined on"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_conditions_and_wrong_sizes_are_refused():
    cond = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="built without"):
        ConvEncoder(1, (4,))(torch.zeros(1, 1, 4, 4), cond)
    with pytest.raises(ValueError, match="built without"):
        ConvDecoder(2, 1, (4,))(torch.zeros(1, 2, 4, 4), cond)
    with pytest.raises(ValueError, match="multiples of 2"):
        ConvEncoder(1, (4,))(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match=r"takes \(8, 8\)"):
        ConvEncoder(1, (4,), image_size=(8, 7))(torch.zeros(1, 1, 8, 10))


def test_sample_knows_the_size_it_was_built_for():
    assert small(latent="spatial", image_size=(8, 12)).eval().sample(2).shape == (2, 2, 8, 12)
    assert small(image_size=(9, 12)).eval().sample(2).shape == (2, 2, 9, 12)
    with pytest.raises(ValueError, match="which size"):
        small(latent="spatial", image_size=None).eval().sample(1)
