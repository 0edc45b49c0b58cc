import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omnivae.networks import layers
from omnivae.networks.layers import (
    ChannelLayerNorm,
    ChannelRMSNorm,
    channels_to_space,
    check_dim,
    convolution,
    normalization,
    pointwise,
    space_to_channels,
    upsample_nearest,
    upsampled_convolution,
)

SIZES = {1: (6,), 2: (4, 6), 3: (2, 6, 4)}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_convolutions_keep_the_size(dim):
    size = SIZES.get(dim, ())
    assert convolution(dim, 3, 5)(torch.randn(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3])
def test_strided_convolutions_divide_the_size(dim, kernel):
    y = convolution(dim, 4, 6, kernel, stride=2)(torch.randn(2, 4, *SIZES[dim]))
    assert y.shape == (2, 6, *(n // 2 for n in SIZES[dim]))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("factor", [2, 3])
def test_space_to_channels_by_hand(dim, factor):
    size = [factor * n for n in (2, 3, 1)[:dim]]
    x = torch.randn(2, 3, *size)
    y = space_to_channels(x, factor)
    assert y.shape == (2, 3 * factor**dim, *(n // factor for n in size))
    for channel in range(3):
        for i, offset in enumerate(itertools.product(range(factor), repeat=dim)):
            want = x[(slice(None), channel, *(slice(o, None, factor) for o in offset))]
            assert torch.equal(y[:, channel * factor**dim + i], want)
    assert torch.equal(channels_to_space(y, factor), x)


def test_in_two_dimensions_these_are_torchs_pixel_shuffles():
    x = torch.randn(2, 12, 4, 6)
    assert torch.equal(space_to_channels(x, 2), F.pixel_unshuffle(x, 2))
    assert torch.equal(channels_to_space(x, 2), F.pixel_shuffle(x, 2))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("function", [space_to_channels, channels_to_space, upsample_nearest])
def test_resampling_keeps_channels_last(dim, function):
    x = torch.randn(2, 16, *SIZES[dim])
    y = function(x.to(memory_format=LAST[dim]), 2)
    assert y.is_contiguous(memory_format=LAST[dim])
    assert torch.equal(y, function(x, 2))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_nearest_upsampling_repeats(dim):
    x = torch.randn(2, 3, *SIZES[dim])
    want = x
    for axis in range(2, 2 + dim):
        want = want.repeat_interleave(2, dim=axis)
    assert torch.equal(upsample_nearest(x, 2), want)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_upsampled_convolution_is_nearest_neighbour_and_convolution(dim, last, folded, monkeypatch):
    monkeypatch.setattr(layers, "FOLD_POSITIONS", 0 if folded else 1000)
    module = convolution(dim, 3, 5).double()
    for size in [(4, 6, 3)[:dim], (1, 3, 2)[:dim]]:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        if last and dim in LAST:
            x = x.to(memory_format=LAST[dim])
        x.requires_grad_()
        want = module(upsample_nearest(x, 2))
        got = upsampled_convolution(module, x)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        if folded and last and dim in LAST and size[0] > 1:
            assert got.is_contiguous(memory_format=LAST[dim])
        weight = torch.randn_like(want)
        inputs = [x, module.weight, module.bias]
        for a, b in zip(
            torch.autograd.grad((got * weight).sum(), inputs),
            torch.autograd.grad((want * weight).sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_folded_kernels_are_rounded_once(monkeypatch):
    monkeypatch.setattr(layers, "FOLD_POSITIONS", 0)
    module, x = convolution(2, 32, 16), torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        want = module(upsample_nearest(x, 2))
        with torch.autocast("cpu", torch.bfloat16):
            got = upsampled_convolution(module, x)
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 0.005 * want.norm()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_pointwise_is_the_convolution(dim):
    module, x = convolution(dim, 3, 5, 1), torch.randn(2, 3, *SIZES[dim])
    torch.testing.assert_close(pointwise(module, x), module(x))


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize("last", [False, True])
def test_rms_norm_formula(dim, last):
    norm = ChannelRMSNorm(5).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, *SIZES.get(dim, ()), dtype=torch.float64)
    if last and dim in LAST:
        x = x.to(memory_format=LAST[dim])
    weight = norm.weight.reshape(1, 5, *[1] * dim)
    want = x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(norm(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_layer_norm_formula(dim):
    norm = ChannelLayerNorm(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, *SIZES.get(dim, ()), dtype=torch.float64)
    weight, bias = (p.reshape(1, 5, *[1] * dim) for p in (norm.weight, norm.bias))
    centred = x - x.mean(1, keepdim=True)
    want = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * weight + bias
    torch.testing.assert_close(norm(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dim", [2, 3])
def test_normalisation_keeps_channels_last_and_the_precision(kind, dim):
    norm = normalization(kind, 16)
    x = torch.randn(2, 16, *SIZES[dim]).to(memory_format=LAST[dim])
    assert norm(x).is_contiguous(memory_format=LAST[dim])
    low = norm(x.bfloat16())  # float32 weights, as under autocast
    assert low.dtype == torch.bfloat16
    assert low.is_contiguous(memory_format=LAST[dim])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x.bfloat16()), low)
    torch.testing.assert_close(low.float(), norm(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normalisation_gradients(kind):
    norm = normalization(kind, 4).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


def test_normalisation_does_not_overflow_in_low_precision():
    # bf16 holds 3e38, fp16 only 65504: squares must be summed in float32.
    x = torch.full((1, 8, 2, 2), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(ChannelRMSNorm(8).half()(x), torch.ones_like(x))


@pytest.mark.parametrize("kind", ["rms", "layer", "group", "batch", "none"])
def test_every_normalisation_keeps_the_shape(kind):
    x = torch.randn(2, 8, 4, 6)
    assert normalization(kind, 8, num_groups=4)(x).shape == x.shape


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="got norm='instance'; expected 'rms', 'layer', 'group', 'batch' or 'none'"):
        normalization("instance", 8)
    with pytest.raises(ValueError, match="got 10 channels and 4 groups; expected groups that divide"):
        normalization("group", 10, num_groups=4)
    for dim in (0, 4):
        with pytest.raises(ValueError, match=f"got dim={dim}; expected 1, 2 or 3"):
            check_dim(dim)
