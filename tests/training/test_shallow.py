"""Gradients of three-dimensional convolutions of thin inputs in low precision."""

import pytest
import torch
from torch import nn

from omnivae.training.shallow import ShallowConvolutions, is_shallow

LAYERS = {
    "kernel 3": lambda: nn.Conv3d(8, 16, 3, padding=1),
    "kernel 5": lambda: nn.Conv3d(8, 16, 5, padding=2),
    "kernel 3 in depth only": lambda: nn.Conv3d(8, 16, (3, 1, 1), padding=(1, 0, 0)),
    "strided": lambda: nn.Conv3d(8, 16, (3, 4, 4), stride=(1, 2, 2), padding=1),
    "transposed": lambda: nn.ConvTranspose3d(8, 16, 3, padding=1),
}


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_those_of_float32(layer: str, depth: int) -> None:
    torch.manual_seed(0)
    module, shallow = LAYERS[layer](), ShallowConvolutions()
    x, outer = torch.randn(2, 8, depth, 8, 8), None
    exact = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    shallow.watch(module)
    for _ in range(3):  # the error comes and goes with what lies in memory
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
            outer = torch.is_autocast_enabled("cpu")
        assert outer, "autocast is on again after the layer"
        assert y.dtype == torch.bfloat16
        found = torch.autograd.grad(y.float().square().sum(), list(module.parameters()))
        for a, b in zip(found, exact, strict=True):
            assert float((a - b).norm() / b.norm()) < 0.03
    shallow.remove()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_autocast_is_left_for_shallow_inputs_only() -> None:
    module, shallow = nn.Conv3d(1, 1, 3, padding=1), ShallowConvolutions()
    shallow.watch(module)
    kinds = []
    module.register_forward_pre_hook(lambda _, args: kinds.append(torch.is_autocast_enabled("cpu")))
    for depth in (2, 3):
        with torch.autocast("cpu", torch.bfloat16):
            module(torch.zeros(1, 1, depth, 4, 4))
    assert kinds == [False, True]
    assert is_shallow(nn.Conv3d(1, 1, 3, dilation=2), 4)


def test_an_error_inside_leaves_autocast_as_it_was() -> None:
    module, shallow = nn.Conv3d(1, 1, 3, padding=1), ShallowConvolutions()
    shallow.watch(module)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            module(torch.zeros(1, 2, 2, 4, 4))
        assert torch.is_autocast_enabled("cpu")
