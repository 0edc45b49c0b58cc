"""The Haar transform is orthonormal and invertible; LiteVAE's encoder reads through it."""

import math

import numpy as np
import pytest
import torch

from omnivae.networks.kl import KLEncoder
from omnivae.networks.wavelet import WaveletEncoder, haar, inverse_haar

SIZES = {1: (12,), 2: (6, 8), 3: (4, 6, 2)}


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_inverse_gives_the_image_back_and_energy_is_kept(dim):
    x = torch.randn(2, 3, *SIZES[dim], dtype=torch.float64)
    bands = haar(x)
    assert bands.shape == (2, 3 * 2**dim, *(n // 2 for n in SIZES[dim]))
    torch.testing.assert_close(inverse_haar(bands), x, atol=1e-14, rtol=0)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_transform_is_the_matrix_that_haar_wrote(dim):
    # Kronecker product of the 2x2 matrix with itself, applied to each block of 2^dim positions.
    matrix = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    whole = np.eye(1)
    for _ in range(dim):
        whole = np.kron(whole, matrix)
    block = torch.randn(1, 1, *[2] * dim, dtype=torch.float64)
    expected = whole @ block.flatten().numpy()
    np.testing.assert_allclose(haar(block).flatten().numpy(), expected, atol=1e-12)


def test_a_constant_has_only_a_low_band():
    bands = haar(torch.full((1, 1, 4, 4), 3.0))
    torch.testing.assert_close(bands[:, :1], torch.full((1, 1, 2, 2), 6.0))
    assert float(bands[:, 1:].abs().max()) < 1e-6


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match=r"size \(5, 4\); the Haar transform takes even sizes"):
        haar(torch.zeros(1, 1, 5, 4))


def test_every_level_of_the_pyramid_reaches_the_features():
    torch.manual_seed(0)
    encoder = WaveletEncoder(1, 4, channels=8, num_groups=4, num_res_blocks=1).double()
    seen = []
    for unet in encoder.extract:
        unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 1, 16, 24, dtype=torch.float64)
    assert encoder(x).shape == (1, 4, 2, 3)
    # Levels are the transform of the low band before, scaled so that a constant keeps its value.
    low = x
    for bands in seen:
        torch.testing.assert_close(bands, haar(low) / 2)
        low = bands[:, :1]
    assert [tuple(b.shape[2:]) for b in seen] == [(8, 12), (4, 6), (2, 3)]
    torch.testing.assert_close(low, torch.nn.functional.avg_pool2d(x, 8))


def test_it_is_several_times_smaller_than_the_encoder_of_latent_diffusion():
    sizes = [sum(p.numel() for p in cls(3, 8).parameters()) for cls in (WaveletEncoder, KLEncoder)]
    assert sizes == [6_088_960, 34_163_592]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="num_levels=0"):
        WaveletEncoder(num_levels=0)
    with pytest.raises(ValueError, match="takes multiples of 8"):
        WaveletEncoder(1, 4, channels=8, num_groups=4)(torch.zeros(1, 1, 12, 8))
