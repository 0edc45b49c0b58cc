"""EQ-VAE's loss on models that are equivariant by construction, and deep features against timm itself."""

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import DFC, Equivariance, Refusal
from omnivae.losses.equivariance import padded, resized, turned
from omnivae.recipes import kl_autoencoder
from omnivae.types import Latent, VAEOutput


def output_of(z):
    q = DiagonalGaussian(z, torch.zeros_like(z))
    return VAEOutput((Latent(q, None, z[None], q.log_prob(z[None])),), Independent(Normal(z[None], 1.0), z.ndim - 1))


def identity(z):
    return Independent(Normal(z, 1.0), z.ndim - 1)


CONSTANT = 0.5 * torch.log(torch.tensor(2 * torch.pi))


@pytest.mark.parametrize("size", [(8,), (8, 6), (6, 4, 8)])
def test_an_equivariant_model_has_no_error(size):
    """A decoder that is the identity commutes with every transformation: the loss is the density's constant."""
    loss = Equivariance(per_element=True)
    loss.decode = identity
    for seed in range(12):
        torch.manual_seed(seed)
        x = torch.randn(2, 3, *size)
        assert loss(output_of(x), {"x": x}).item() == pytest.approx(CONSTANT.item(), abs=1e-5)


def test_a_decoder_that_depends_on_the_place_has_an_error():
    loss, ramp = Equivariance(per_element=True, scales=(1.0, 1.0)), torch.linspace(0, 5, 8)
    loss.decode = lambda z: identity(z + ramp)
    x = torch.randn(2, 1, 8, 8)
    output = output_of(x - ramp)
    # The decoder is right for the image as it is, and wrong for each of the three that are turned.
    values = []
    for seed in range(12):
        torch.manual_seed(seed)
        values.append(round(loss(output, {"x": x}).item(), 4))
    assert min(values) == pytest.approx(CONSTANT.item(), abs=1e-3)
    assert max(values) > 2


def test_the_transformed_image_is_what_is_compared():
    loss = Equivariance(scales=(0.5, 0.5))
    seen = []
    loss.decode = lambda z: (seen.append(z), identity(torch.zeros_like(z)))[1]
    x = torch.randn(1, 1, 8, 4)
    value = loss(output_of(x), {"x": x})
    assert sorted(seen[0].shape[2:]) == [2, 4]
    assert value.item() == pytest.approx(-identity(torch.zeros_like(seen[0])).log_prob(seen[0]).item(), rel=1e-5)


def test_turning_resizing_and_padding():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert turned(x, 1, (2, 3))[0, 0].tolist() == [[2.0, 5.0], [1.0, 4.0], [0.0, 3.0]]
    assert torch.equal(turned(turned(x, 1, (2, 3)), 3, (2, 3)), x)
    assert padded(x, (3, 4))[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert resized(torch.ones(1, 1, 6, 4), (3, 2)).unique().tolist() == [1.0]


@pytest.mark.parametrize("size", [(16, 16), (13, 22)])
def test_a_real_model_gets_gradients_in_both_halves(size):
    model = kl_autoencoder(channels=(8, 8), num_res_blocks=1, num_groups=4, mid_attention=False).train()
    loss = Equivariance()
    loss.decode = model.likelihood
    x = torch.rand(2, 3, *size)
    loss(model(x), {"x": x}).backward()
    for part in (model.encoder, model.posterior, model.decoder):
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())


def test_what_eq_cannot_do_is_refused():
    with pytest.raises(Refusal, match="drop 'eq', or use a model with a spatial latent"):
        Equivariance().build(in_channels=1, latent_dim=4, dim=2, latent_axes=0)
    with pytest.raises(ValueError, match="scales"):
        Equivariance(scales=(0.5, 2.0))
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match="as the trainer does"):
        Equivariance()(output_of(x), {"x": x})
    loss = Equivariance()
    loss.decode = identity
    with pytest.raises(ValueError, match="without a mask"):
        loss(output_of(x), {"x": x, "mask": x})


# -- deep features


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    import timm

    path = tmp_path_factory.mktemp("dfc") / "resnet.pth"
    net = timm.create_model("test_resnet", num_classes=0)
    torch.save(net.state_dict(), path)
    return path, net.eval()


def test_dfc_is_half_the_mean_squared_difference_of_feature_maps(weights):
    path, net = weights
    x, y = torch.rand(2, 2, 3, 32, 32)
    output = VAEOutput((), Independent(Normal(y[None], 1.0), 3))
    found = DFC(weights_path=str(path), model="test_resnet", stages=(0, 1), value_range=(0.0, 1.0))(output, {"x": x})
    mean = torch.tensor(net.default_cfg["mean"])[:, None, None]
    std = torch.tensor(net.default_cfg["std"])[:, None, None]
    maps = []
    # The stages of a residual network: after its first activation, and after its first group of blocks.
    hooks = [part.register_forward_hook(lambda m, args, out: maps.append(out)) for part in (net.act1, net.layer1)]
    with torch.no_grad():
        for image in (x, y):
            net((image - mean) / std)
    for hook in hooks:
        hook.remove()
    expected = sum(0.5 * (maps[i] - maps[i + 2]).square().mean() for i in range(2))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dfc_holds_a_frozen_network_and_passes_gradients_through_it(weights):
    path, _ = weights
    loss = DFC(weights_path=str(path), model="test_resnet", stages=(0, 1), value_range=(0.0, 1.0)).train()
    image = nn.Parameter(torch.rand(1, 1, 3, 32, 32))
    loss(VAEOutput((), Independent(Normal(image, 1.0), 3)), {"x": torch.rand(1, 3, 32, 32)}).backward()
    assert bool(image.grad.any())
    assert list(loss.parameters()) == []
    assert not loss.features.network.training


def test_what_dfc_needs_is_asked_for(weights):
    with pytest.raises(ValueError, match=r"give --losses.dfc.weights_path FILE \(timm's weights of vgg19\)"):
        DFC()
    with pytest.raises(ValueError, match="timm has no model"):
        DFC(weights_path=str(weights[0]), model="vgg")
    with pytest.raises(ValueError, match=r"no feature maps|stages"):
        DFC(weights_path=str(weights[0]), model="test_resnet", stages=(99,))
