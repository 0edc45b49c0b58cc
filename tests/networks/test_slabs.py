"""Convolutions in slabs: the numbers of a whole convolution, and MONAI's rule of which cuts are legal."""

import pytest
import torch
from torch.nn import functional as F

from omnivae.networks.slabs import SlabConv3d, SlabConvTranspose3d, check_splits, legal_splits


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (3, 2, 0), (3, 2, 1)])
def test_a_convolution_in_slabs_is_the_whole_convolution(axis, n, kernel, stride, padding):
    torch.manual_seed(0)
    conv = SlabConv3d(2, 3, kernel, stride=stride, padding=padding, num_splits=n, dim_split=axis).double()
    x = torch.randn(2, 2, 11, 12, 13, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv3d(x, conv.weight, conv.bias, stride, padding), atol=1e-13, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_transposed_convolution_in_slabs_is_the_whole_one(axis, n):
    torch.manual_seed(0)
    conv = SlabConvTranspose3d(2, 3, num_splits=n, dim_split=axis).double()
    x = torch.randn(2, 2, 5, 6, 7, dtype=torch.float64)
    whole = F.conv_transpose3d(x, conv.weight, conv.bias, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(conv(x), whole, atol=1e-13, rtol=0)


def test_slabs_have_the_gradients_of_the_whole():
    torch.manual_seed(0)
    conv = SlabConv3d(1, 2, 3, padding=1, num_splits=3, dim_split=1).double()
    assert torch.autograd.gradcheck(conv, torch.randn(1, 1, 3, 6, 3, dtype=torch.float64, requires_grad=True))


def test_legal_numbers_are_those_for_which_monai_computes_the_whole():
    maisi = pytest.importorskip("monai.apps.generation.maisi.networks.autoencoderkl_maisi")
    arguments = {
        "spatial_dims": 3,
        "num_channels": (4, 4),
        "in_channels": 1,
        "out_channels": 1,
        "num_res_blocks": (1, 1),
    }
    arguments |= {
        "norm_num_groups": 2,
        "norm_eps": 1e-6,
        "attention_levels": (False, False),
        "with_nonlocal_attn": False,
    }

    def monai(n):
        torch.manual_seed(0)
        return maisi.MaisiEncoder(num_splits=n, dim_split=0, save_mem=False, **arguments).eval()

    whole = monai(1)
    for length in (6, 8, 12, 14, 16, 18, 24):
        x = torch.randn(1, 1, length, 4, 4, generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            want = whole(x)
            for n in range(2, 5):
                try:
                    got = monai(n)(x)
                    right = got.shape == want.shape and torch.allclose(got, want, atol=1e-4)
                except (RuntimeError, ZeroDivisionError):
                    right = False
                assert right == (n in legal_splits(length, 2)), f"{n} slabs of {length}"


def test_an_illegal_number_is_refused_with_those_that_are_legal():
    with pytest.raises(
        ValueError, match=r"num_splits=8 along axis 1 of 80 voxels.*num_splits to 1 or 2 or 4 or 5|1, 2, 4 or 5"
    ):
        check_splits((64, 80, 64), 4, 8, 1)
    check_splits((64, 96, 64), 4, 8, 1)
