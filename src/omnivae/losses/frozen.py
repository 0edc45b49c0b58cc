"""Frozen feature networks (LPIPS, DINOv2): weights from a file, never trained, never saved, never downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from omnivae.losses.base import target_of
from omnivae.types import Batch, VAEOutput


class FrozenFeatures(nn.Module):
    """Holds a network that is looked through and never changed.

    It stays in evaluation mode whatever :meth:`train` says, its parameters get no gradients, and it is no part of the
    state dict, the parameters (so neither of an optimiser nor of a moving average) or a copy of the loss. Gradients pass
    through it to its input. It follows its input to another device.

    Args:
        network: the network, its weights loaded.

    Example:
        >>> features = FrozenFeatures(nn.BatchNorm2d(3)).train()
        >>> features.network.training, list(features.parameters()), dict(features.state_dict())
        (False, [], {})
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # A tuple: a module as an attribute would be registered.
        self._held = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self._held[0]

    def on(self, device: torch.device) -> nn.Module:
        """Return the network, moved to ``device`` where it is elsewhere."""
        parameter = next(self.network.parameters(), None)
        if parameter is not None and parameter.device != device:
            self.network.to(device)
        return self.network

    def forward(self, x: Tensor) -> Any:
        """Return the network's output for ``x``."""
        return self.on(x.device)(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A moving average copies the losses too; a second copy of weights that never change would be waste.
        return self


def read_weights(path: str | Path | None, *, loss: str, source: str) -> dict[str, Tensor]:
    """Read a state dict from a file; nothing is downloaded and nothing unpickled but tensors.

    Args:
        path: ``.pth`` or ``.pt`` as ``torch.save`` writes it, or ``.safetensors``.
        loss: name of the loss that needs it, for the message.
        source: where such weights come from, for the message.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        ValueError: without a path, or when the file holds something else.
        FileNotFoundError: when there is no such file.
    """
    option = f"losses.{loss}.weights_path"
    leave_out = f"add --losses.{loss}.weight 0 to train without it"
    if path is None:
        raise ValueError(
            f"the loss {loss!r} needs weights, which are not downloaded: give --{option} FILE ({source}), or {leave_out}"
        )
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {option}={path}; expected {source}, or {leave_out}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error}); expected {source}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or one that would have to run code, raises whatever it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of plain tensors ({reason}); expected {source}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (names and tensors); expected {source}")
    return dict(state)


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], *, path: str | Path | None, source: str) -> nn.Module:
    """Load a state dict that must fit name by name and shape by shape.

    Args:
        network: what to load into; may be on the meta device.
        state: name to tensor.
        path: file that it came from, for the message.
        source: what the file should be, for the message.

    Returns:
        The network.

    Raises:
        ValueError: names the first differences.
    """
    own = network.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)} and not {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ValueError(f"the weights in {path} do not fit ({shown}); expected {source}")
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network


def compared_images(name: str, output: VAEOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return reconstruction and target for a loss that looks at whole images.

    Args:
        name: the loss, for the message.
        output: the model's output.
        batch: the batch.

    Returns:
        Two tensors ``[B, C, *S]``; no gradient goes to the second.

    Raises:
        ValueError: when the batch has a mask: such a loss cannot leave pixels out.
    """
    if "mask" in batch:
        raise ValueError(
            f"{name} looks at whole images and cannot leave masked pixels out; use l1 or mse with a mask, or drop the mask"
        )
    return output.reconstruction, target_of(batch, output).detach()


def as_rgb(name: str, x: Tensor) -> Tensor:
    """Return 2-D images with three channels: grey ones are repeated.

    Args:
        name: the loss, for the message.
        x: ``[B, 1 or 3, H, W]``.

    Returns:
        ``[B, 3, H, W]``.

    Raises:
        ValueError: for volumes, and for another number of channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"the loss {name!r} needs 2-D images of 1 or 3 channels for its feature network, got {tuple(x.shape)}: "
            f"drop {name!r}, or use l1 or ms_ssim"
        )
    return x.expand(-1, 3, -1, -1)
