"""Stacks of frames: nothing is scrambled, every number of frames comes back, and the boundary error is what it says."""

import math

import pytest
import torch
from torch import nn

import omnivae
from omnivae import VAE
from omnivae.component import Component
from omnivae.distributions import DiagonalGaussian
from omnivae.likelihoods import LaplaceLikelihood
from omnivae.models.stacked import StackedVAE, stack_boundary, stacked
from omnivae.priors import StandardNormal


class Blocks(nn.Module, Component):
    """Identity codec: blocks of 4 x 2 x 2 voxels become channels, or channels blocks."""

    def __init__(self, channels: int, decode: bool = False) -> None:
        super().__init__()
        self.in_channels = self.out_channels = channels
        self.dim, self.decode, self.stride = 3, decode, (4, 2, 2)

    def forward(self, x, cond=None):
        if self.decode:
            x = x.unflatten(1, (-1, 4, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
            return x.flatten(2, 3).flatten(3, 4).flatten(4, 5)
        b, c, t, h, w = x.shape
        blocks = x.reshape(b, c, t // 4, 4, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return blocks.flatten(1, 4)


class Certain(nn.Module, Component):
    """A posterior head whose mean are the features."""

    provides = frozenset({"density", "diagonal"})

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, features):
        return DiagonalGaussian(features, torch.full_like(features, -30.0))


def identity_codec(channels, stack_size, overlap=0, scaling_factor=1.0):
    return StackedVAE(
        Blocks(channels),
        Certain(channels * 16),
        Blocks(channels, decode=True),
        LaplaceLikelihood(1.0),
        StandardNormal(),
        stack_size=stack_size,
        overlap=overlap,
        scaling_factor=scaling_factor,
    ).eval()


def toy(**arguments):
    torch.manual_seed(0)
    whole = omnivae.kl_autoencoder(
        in_channels=1, channels=(4, 4, 8), num_res_blocks=1, num_groups=2, dim=3, mid_attention=False, **arguments
    )
    return whole.eval()


STACKS = [(None, 0), (4, 0), (8, 0), (8, 4), (16, 12), (12, 8)]


@pytest.mark.parametrize(("stack_size", "overlap"), STACKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_identity_codec_is_an_identity_for_every_number_of_frames(stack_size, overlap, channels):
    model = identity_codec(channels, stack_size, overlap)
    for frames in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31):
        x = torch.randn(2, channels, frames, 4, 6)
        posterior = model.encode(x)
        assert tuple(posterior.shape[2:]) == model.latent_size(x.shape[2:])
        torch.testing.assert_close(model.decode(posterior), x)


def test_a_latent_channel_that_holds_its_number_stays_that_channel():
    model = identity_codec(1, 4)
    # Voxel (i, j, k) of each block holds its own number, in every block of every stack.
    block = torch.arange(16.0).reshape(4, 2, 2)
    clip = block.repeat(4, 3, 2)[None, None]
    mean = model.encode(clip).mean
    assert mean.shape == (1, 16, 4, 3, 2)
    expected = torch.arange(16.0).reshape(1, 16, 1, 1, 1).expand_as(mean)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(model.decode(expected), clip)


def test_time_stays_in_order():
    model = identity_codec(3, 8, 4)
    frames = torch.arange(12.0).reshape(1, 1, 12, 1, 1) + 100 * torch.arange(3.0).reshape(1, 3, 1, 1, 1)
    clip = frames.expand(1, 3, 12, 2, 2)
    mean = model.encode(clip).mean
    # The first of each four frames is the first channel of its block: 0, 4, 8 for red, 100, 104, 108 for green, ...
    assert mean[0, 0, :, 0, 0].tolist() == [0, 4, 8]
    assert mean[0, 16, :, 0, 0].tolist() == [100, 104, 108]


@pytest.mark.parametrize("stack_size", [4, 8])
def test_a_stack_is_what_the_volume_model_makes_of_it_alone(stack_size):
    whole = toy().double()
    model = stacked(whole, stack_size=stack_size)
    x = torch.rand(2, 1, 16, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        q = model.encode(x)
        recon = model.decode(q)
        parts = [whole.encode(part) for part in x.split(stack_size, 2)]
        assert q.shape == (2, 4, 4, 2, 3)
        torch.testing.assert_close(q.mean, torch.cat([p.mean for p in parts], 2))
        torch.testing.assert_close(q.logvar, torch.cat([p.logvar for p in parts], 2))
        torch.testing.assert_close(recon, torch.cat([whole.decode(p) for p in parts], 2))


def test_the_last_frame_is_repeated_and_the_repetition_cropped():
    whole = toy()
    model = stacked(whole, stack_size=8)
    x = torch.rand(1, 1, 11, 8, 8)
    longer = torch.cat([x, x[:, :, -1:].expand(-1, -1, 5, -1, -1)], 2)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).mean, model.encode(longer).mean)
        torch.testing.assert_close(model.decode(model.encode(x)), model.decode(model.encode(longer))[:, :, :11])


def test_without_stacks_it_is_the_volume_model():
    whole = toy()
    model = stacked(whole, stack_size=None)
    x = torch.rand(1, 1, 9, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.encode(x).mean, whole.encode(x).mean)
        assert torch.equal(model(x).reconstruction, whole(x).reconstruction)
    assert list(model.state_dict()) == list(whole.state_dict())


def test_windows_blend_linearly_where_they_overlap():
    whole = toy().double()
    model = stacked(whole, stack_size=8, overlap=4)
    x = torch.rand(1, 1, 12, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        first, second = (whole.encode(x[:, :, a : a + 8]).mean for a in (0, 4))
        mean = model.encode(x).mean
        torch.testing.assert_close(mean[:, :, 0], first[:, :, 0])
        torch.testing.assert_close(mean[:, :, 1], 0.5 * first[:, :, 1] + 0.5 * second[:, :, 0])
        torch.testing.assert_close(mean[:, :, 2], second[:, :, 1])
        left, right = whole.decode(mean[:, :, :2]), whole.decode(mean[:, :, 1:])
        weights = torch.arange(1, 5, dtype=torch.float64).reshape(1, 1, 4, 1, 1) / 5
        blended = (1 - weights) * left[:, :, 4:] + weights * right[:, :, :4]
        torch.testing.assert_close(model.decode(mean)[:, :, 4:8], blended)


def test_the_scaling_factor_scales_latents_and_is_undone_and_saved(tmp_path):
    plain = toy()
    model = stacked(plain, stack_size=4)
    x = torch.rand(2, 1, 8, 8, 8)
    with torch.no_grad():
        before, recon = model.encode(x), model.decode(model.encode(x))
        std = torch.distributions.Independent(torch.distributions.Normal(before.mean, before.stddev), 0)
        draws = std.sample((2000,))
    factor = model.measure_scaling_factor([x[:1], x[1:]])
    assert factor == pytest.approx(1 / draws.std().item(), rel=0.01)
    with torch.no_grad():
        after = model.encode(x)
        torch.testing.assert_close(after.mean, before.mean * factor)
        torch.testing.assert_close(after.stddev, before.stddev * factor)
        torch.testing.assert_close(model.decode(after), recon, atol=1e-5, rtol=1e-4)
    # Measured again, with the factor in force, it is the same.
    assert model.measure_scaling_factor([x]) == pytest.approx(factor)
    model.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    assert isinstance(again, StackedVAE)
    assert again.scaling_factor == model.scaling_factor
    with torch.no_grad():
        assert torch.equal(again.encode(x).mean, model.encode(x).mean)


def test_colour_becomes_grey_by_its_mean():
    model = stacked(toy(), stack_size=4)
    x = torch.rand(1, 3, 5, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).mean, model.encode(x.mean(1, keepdim=True)).mean)
        assert model.decode(model.encode(x)).shape == (1, 1, 5, 8, 8)
    with pytest.raises(ValueError, match="got 2 channels"):
        model.encode(torch.rand(1, 2, 5, 8, 8))


def test_the_boundary_error_is_the_difference_to_the_whole_clip():
    whole = toy()
    model = stacked(whole, stack_size=4)
    x = torch.rand(2, 1, 10, 8, 8)
    assert model.boundaries(10) == [4, 8]
    assert model.boundaries(8) == [4]
    found = stack_boundary(model, x)
    with torch.no_grad():
        difference = (model(x).reconstruction - whole(x).reconstruction).abs() / 2
    assert found.boundaries == 4
    assert found.rmse == pytest.approx(difference.square().mean().sqrt().item(), rel=1e-4)
    assert found.max_error == pytest.approx(difference.max().item(), rel=1e-4)
    near = difference[:, :, [3, 4, 7, 8]].square().mean().sqrt().item()
    assert found.rmse_at_boundaries == pytest.approx(near, rel=1e-4)
    assert model.stack_size == 4
    assert stack_boundary(identity_codec(1, 4), x).max_error == 0
    assert stack_boundary(identity_codec(1, 4), x).jump_ratio == pytest.approx(1)
    with pytest.raises(ValueError, match="no boundary"):
        stack_boundary(model, x[:, :, :4])
    with pytest.raises(ValueError, match="the whole clip at a time"), model.stacking(None):
        stack_boundary(model, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stack_size": 6}, "multiple of 4, such as 8"),
        ({"stack_size": 3}, "such as 4"),
        ({"stack_size": 8, "overlap": 8}, "multiple of 4 below 8"),
        ({"stack_size": 8, "overlap": 2}, "multiple of 4 below 8"),
        ({"stack_size": None, "overlap": 4}, "without a stack_size"),
        ({"stack_size": 8, "scaling_factor": 0.0}, "number > 0"),
        ({"stack_size": 8, "scaling_factor": math.nan}, "number > 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        stacked(toy(), **arguments)


def test_latents_of_another_length_are_refused():
    model = stacked(toy(), stack_size=16, overlap=4)
    with pytest.raises(ValueError, match="has 4 or 7 frames"):
        model.decode(torch.zeros(1, 4, 6, 2, 2))


def test_models_of_images_and_vectors_are_refused():
    with pytest.raises(ValueError, match="build them with dim=3"):
        stacked(omnivae.kl_autoencoder(channels=(8, 8), num_res_blocks=1, num_groups=4), stack_size=4)
    with pytest.raises(ValueError, match="vector latent"):
        stacked(omnivae.conv_vae(dim=3, image_size=16, channels=(4, 8)), stack_size=4)
    points = omnivae.autoencoder(dim=3, image_size=None, latent="spatial", channels=(4, 8), latent_dim=2)
    with pytest.raises(ValueError, match="choose a GaussianPosterior"):
        stacked(points, stack_size=4)
