"""The VF loss: its two terms by hand, a tiny vision transformer, gradients and the balance."""

import math

import pytest
import timm
import torch
from torch.distributions import Independent, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import VF
from omnivae.losses.adaptive import reconstruction_gradient
from omnivae.losses.alignment import marginal_losses
from omnivae.types import Latent, VAEOutput

MODEL = "test_vit"  # 64 features, patches of 16


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(timm.create_model(MODEL, pretrained=False).state_dict(), file)
    return file


def make(path, **arguments):
    loss = VF(weights_path=path, **{"model": MODEL, "value_range": (-1, 1)} | arguments)
    loss.build(in_channels=3, latent_dim=4, dim=2, latent_axes=2)
    return loss


def output_of(z, decoder=None):
    """An output with one sample z, decoded by ``decoder``."""
    samples = z[None]
    r = torch.zeros(len(z), 3, 8, 8) if decoder is None else decoder(samples[0])
    q = DiagonalGaussian(z, torch.zeros_like(z))
    return VAEOutput((Latent(q, None, samples, None),), Independent(Normal(r[None], torch.ones(1)), r.ndim - 1))


# -- the formula

# Two positions in two dimensions. z: orthogonal; f: 60 degrees apart, the first as z's.
Z = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
F = torch.tensor([[[3.0, 0.5], [0.0, math.sqrt(0.75)]]])


def test_both_terms_by_hand():
    # cos(z1, f1) = 1, cos(z2, f2) = sqrt(3)/2; cos(z1, z2) = 0, cos(f1, f2) = 1/2: half of the four pairs differ by 1/2.
    cosine, distance = marginal_losses(Z, F, margin_cosine=0.0, margin_distance=0.0)
    assert cosine.item() == pytest.approx((1 - math.sqrt(0.75)) / 2, rel=1e-5)
    assert distance.item() == pytest.approx(0.25, rel=1e-5)


def test_margins_are_subtracted_before_the_hinge():
    cosine, distance = marginal_losses(Z, F, margin_cosine=0.1, margin_distance=0.2)
    assert cosine.item() == pytest.approx((0.9 - math.sqrt(0.75)) / 2, rel=1e-4)
    assert distance.item() == pytest.approx((0.5 - 0.2) / 2, rel=1e-5)
    assert marginal_losses(Z, F, margin_cosine=0.5, margin_distance=0.5).tolist() == [0.0, 0.0]


def test_equal_features_cost_nothing_and_opposite_ones_two():
    x = torch.randn(2, 5, 3, 3)
    assert marginal_losses(x, 2 * x, margin_cosine=0.0, margin_distance=0.0).abs().max() < 1e-6
    cosine, distance = marginal_losses(x, -x, margin_cosine=0.0, margin_distance=0.0)
    assert (cosine.item(), distance.item()) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-6))


def test_terms_are_means_over_images():
    one, two = torch.randn(1, 5, 2, 2), torch.randn(1, 5, 2, 2)
    f, g = torch.randn(1, 5, 2, 2), torch.randn(1, 5, 2, 2)
    margins = {"margin_cosine": 0.5, "margin_distance": 0.25}
    both = marginal_losses(torch.cat([one, two]), torch.cat([f, g]), **margins)
    apart = torch.stack([marginal_losses(one, f, **margins), marginal_losses(two, g, **margins)]).mean(0)
    assert torch.allclose(both, apart, atol=1e-6)


# -- the feature network


def test_features_are_those_of_the_transformer_at_the_latents_grid(path):
    loss = make(path)
    net = timm.create_model(MODEL, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    net.load_state_dict({k: v for k, v in torch.load(path, weights_only=True).items() if not k.startswith("head.")})
    images = torch.rand(2, 3, 32, 48)
    expected = net.forward_features((images - 0.5) / 0.5)[
        :, 1:
    ].detach()  # this model's images are normalised by 0.5, 0.5
    found = loss.extract(images, (2, 3))
    assert found.shape == (2, 64, 2, 3)
    assert torch.allclose(found[:, :, 1, 2], expected[:, 5], atol=1e-5)
    assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=1e-5)


def test_images_are_resized_to_one_patch_a_position(path):
    assert make(path).extract(torch.rand(1, 3, 40, 40), (4, 5)).shape == (1, 64, 4, 5)


def test_grey_images_are_repeated(path):
    loss, grey = make(path), torch.rand(1, 1, 32, 32)
    assert torch.allclose(loss.extract(grey, (2, 2)), loss.extract(grey.repeat(1, 3, 1, 1), (2, 2)), atol=1e-6)


def test_the_loss_is_the_sum_of_the_terms_on_projected_latents(path):
    loss, z, x = make(path), torch.randn(2, 4, 2, 2), torch.rand(2, 3, 32, 32) * 2 - 1
    projected = torch.einsum("fc,bchw->bfhw", loss.projection.weight[:, :, 0, 0], z)
    terms = marginal_losses(projected, loss.extract((x + 1) / 2, (2, 2)), margin_cosine=0.5, margin_distance=0.25)
    assert loss(output_of(z), {"x": x}).item() == pytest.approx(terms.sum().item(), rel=1e-5)


def test_only_the_projection_is_trained_and_saved(path):
    loss = make(path)
    assert {name: p.shape for name, p in loss.named_parameters()} == {"projection.weight": (64, 4, 1, 1)}
    assert list(loss.state_dict()) == ["projection.weight"]
    x = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    z = torch.randn(2, 4, 2, 2, requires_grad=True)
    loss.train()(output_of(z), {"x": x}).backward()
    assert z.grad.abs().sum() > 0
    assert loss.projection.weight.grad.abs().sum() > 0
    assert x.grad is None
    assert all(p.grad is None for p in loss.features.network.parameters())
    assert not any(m.training for m in loss.features.network.modules())


def test_it_can_be_minimised(path):
    loss, x = make(path, margin_cosine=0.1, margin_distance=0.1), torch.rand(2, 3, 32, 32) * 2 - 1
    z = torch.randn(2, 4, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([z, loss.projection.weight], lr=0.05)
    first = loss(output_of(z), {"x": x}).item()
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(output_of(z), {"x": x})
        value.backward()
        optimizer.step()
    assert value.item() < 0.3 * first


# -- the balance


def test_balance_is_the_ratio_of_gradient_norms_at_z(path):
    loss, x = make(path), torch.rand(2, 3, 32, 32) * 2 - 1
    z = torch.randn(2, 4, 2, 2, requires_grad=True)
    decoder = torch.nn.ConvTranspose2d(4, 3, 16, 16)
    output = output_of(z, decoder)
    total = (
        3 * (output.reconstruction - x).abs().mean() + 1e3 * z.square().sum()
    )  # the second is no reconstruction term
    value = loss(output, {"x": x})
    loss.rebalance(value, output, reconstruction_gradient("vf", total, output))
    (own,) = torch.autograd.grad(value, z, retain_graph=True)
    (theirs,) = torch.autograd.grad(3 * (decoder(z) - x).abs().mean(), z)
    expected = theirs.norm() / (own.norm() + 1e-4)
    assert loss.balance.item() == pytest.approx(expected.item(), rel=1e-4)
    assert not loss.balance.requires_grad
    assert float(loss.current_weight()) == pytest.approx(0.1 * expected.item(), rel=1e-4)


def test_with_a_frozen_encoder_the_balance_stays(path):
    loss, x = make(path), torch.rand(2, 3, 32, 32)
    z = torch.randn(2, 4, 2, 2)
    output = output_of(z, torch.nn.ConvTranspose2d(4, 3, 16, 16))
    value = loss(output, {"x": x})
    loss.rebalance(value, output, reconstruction_gradient("vf", output.reconstruction.sum(), output))
    assert loss.current_weight() == 0.1


# -- refusals


def test_refusals(path, tmp_path):
    with pytest.raises(ValueError, match=r"losses\.vf\.weights_path.*dinov2.*--losses\.vf\.weight 0"):
        VF()
    with pytest.raises(ValueError, match="no model"):
        VF(weights_path=path, model="vit_of_nobody")
    with pytest.raises(ValueError, match="no plain vision transformer"):
        VF(weights_path=path, model="resnet18")
    with pytest.raises(ValueError, match="do not fit"):
        VF(weights_path=path, model="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="margin_cosine"):
        VF(weights_path=path, model=MODEL, margin_cosine=1.5)
    with pytest.raises(ValueError, match="margin_distance"):
        VF(weights_path=path, model=MODEL, margin_distance=-0.1)
    loss = VF(weights_path=path, model=MODEL)
    with pytest.raises(ValueError, match="does not know the model"):
        loss(output_of(torch.zeros(1, 4, 2, 2)), {"x": torch.zeros(1, 3, 32, 32)})
    for model in ({"dim": 2, "latent_axes": 0}, {"dim": 3, "latent_axes": 3}):
        with pytest.raises(ValueError, match="2-D latent"):
            loss.build(in_channels=1, latent_dim=4, **model)


def test_dinov2s_own_file_fits(tmp_path):
    """The published DINOv2 files use timm's names, with a mask token and without a classifier."""
    torch.manual_seed(1)
    net = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, depth=1)
    assert {"cls_token", "pos_embed", "blocks.0.ls2.gamma", "norm.weight"} <= set(net.state_dict())
    state = net.state_dict() | {"mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "dinov2.pth")
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1\.weight is missing"):  # one block of twelve: all else fits
        VF(weights_path=tmp_path / "dinov2.pth", model="vit_small_patch14_dinov2")
