"""What is fast and safe on this device: precision and process settings that inference and training choose by themselves."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from omnivae.training.precision import Guard, sample_calls, to_float16

log = logging.getLogger(__name__)

Precision = Literal["auto", "bf16", "16", "32"]
_LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


def native_bf16(device: torch.device | str = "cpu") -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware.

    Args:
        device: "cpu" or "cuda".

    Returns:
        ``True`` on CUDA devices of compute capability 8.0 or later and on CPUs with AMX or AVX-512 BF16.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities:
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def for_inference(
    model: nn.Module,
    *,
    precision: Precision = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    sample: Tensor | None = None,
) -> nn.Module:
    """Set a VAE up for fast inference on the device that it is on, in place.

    Encoder and decoder change precision and memory layout. Posterior, prior, likelihood and batch statistics stay as they
    are, so latents and densities are still computed in float32. Outputs stay within 3 % (relative RMSE) of float32 in
    bfloat16, within 2 % in float16. The layout changes them by rounding only, but on a CPU torch's group normalisation rounds
    coarsely in channels last: by 2.4e-4 in an image of 512 x 512, where the plain layout is right to 6e-7.

    float16 ends at 65,504. What a model computes beyond it, or below float16's digits, is found by running sample images
    and stays in float32 (see :func:`~omnivae.training.precision.to_float16` for what that costs); ``model.float32_modules``
    lists those parts, and a warning names them. In both low precisions a result that is not finite is computed again in
    float32, and the part at fault stays there from then on.

    Args:
        model: a VAE; not for training afterwards: its weights are rounded.
        precision: "16" (for GPUs; CPUs compute it slowly), "bf16", "32" (leaves the weights alone), or "auto": bf16 where
            the device computes in it natively.
        channels_last: layout of convolution weights; "auto" switches it on, except for volumes in float32 on a CPU, where
            torch's group normalisation of that layout loses digits.
        sample: images in the value range ``[B, C, *S]`` to look for overflow with; noise, black, white and smooth images
            by default. Only float16 needs it.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"got precision={precision!r}; expected 'auto', 'bf16', '16' or '32'")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    networks = {"encoder": cast("nn.Module", model.encoder), "decoder": cast("nn.Module", model.decoder)}
    model.eval()
    bf16 = precision == "bf16" or (precision == "auto" and native_bf16(device))
    if channels_last == "auto":
        # torch's group normalisation on CPUs sums channels-last voxels one by one in float32: of a CT of 128 x 128 x 64 it is
        # wrong by 1e-3, where it is right to 5e-7 in the plain layout, which takes a tenth more time. In bfloat16 that drowns in
        # the rounding of the weights, and the plain layout takes a third more.
        channels_last = bf16 or not (device.type == "cpu" and getattr(model, "dim", 2) == 3)
    if channels_last:
        for module in (module for network in networks.values() for module in network.modules()):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim in _LAYOUT and isinstance(module, nn.modules.conv._ConvNd):
                    parameter.data = parameter.data.contiguous(memory_format=_LAYOUT[parameter.ndim])
    if precision == "16":
        if device.type == "cpu":
            log.warning("float16 on a CPU is emulated and slow; bf16 or 32 give the same pictures sooner")
        for name, calls in sample_calls(model, networks, sample).items():
            to_float16(networks[name], name, calls)
    elif bf16:
        for name, network in networks.items():
            Guard(network, name, torch.bfloat16).keep(())
    return model


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory in the process instead of unmapping and faulting it in again for every activation.

    Measured 1.2 to 1.5 times faster for image VAEs on CPUs at unchanged peak memory. For programs; a library must not
    change its host process unasked, so only the command line calls this.

    Returns:
        Whether the setting was made: on Linux with glibc, unless ``MALLOC_MMAP_THRESHOLD_`` is already set.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3
    return bool(libc.mallopt(m_mmap_threshold, 1 << 30)) and bool(libc.mallopt(m_trim_threshold, (1 << 31) - 1))
