"""Encode and decode one 256 x 256 image: TransVAE tiny, our KL autoencoder, diffusers' AutoencoderKL and AutoencoderDC."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import DEVICE, DTYPES, Row, extra_mib, gflop, interleave, medians
from benchmarks.peers import copy_weights, diffusers_dc, diffusers_kl
from benchmarks.plain import plain
from omnivae.recipes.convolutional import kl_autoencoder
from omnivae.recipes.transvae import TransVAE
from omnivae.training.device import for_inference

PLAIN = [("fp32", "NCHW"), ("fp32", "channels-last"), ("bf16", "NCHW"), ("bf16", "channels-last")]
ENDS = [PLAIN[0], PLAIN[-1]]

Work = dict[str, Callable[[], Tensor]]


def as_written(model: nn.Module, dtype: str, layout: str) -> nn.Module:
    """Return a copy in a precision and layout, otherwise untouched."""
    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    return copy.deepcopy(model).to(dtype=DTYPES[dtype], memory_format=memory)


def ours(model: nn.Module, x: Tensor, z: Tensor, layout: str) -> Work:
    """Encoder with head, and decoder, of one of our models; the VAE around them takes float32."""
    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    x, z = x.to(memory_format=memory), z.to(memory_format=memory)
    return {"encode": lambda: model.encode(x).mean, "decode": lambda: model.decode(z)}


def theirs(model: Any, x: Tensor, z: Tensor, layout: str) -> Work:
    """Encode and decode of a diffusers autoencoder."""
    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    x, z = (t.to(dtype=model.dtype, memory_format=memory) for t in (x, z))
    return {"encode": lambda: latent(model, x), "decode": lambda: model.decode(z).sample}


def latent(model: Any, x: Tensor) -> Tensor:
    """Return the mean of the latents of any of the models."""
    out = model.encode(x)
    if hasattr(out, "latent_dist"):
        return out.latent_dist.mean
    return out.latent if hasattr(out, "latent") else out.mean


def compare(
    work: str,
    variants: dict[tuple[str, str, str], Work],
    *,
    rounds: int,
    budget_s: float,
) -> list[Row]:
    """Time one kind of work in all variants; the first is the plain one that the others are compared with."""
    names = {"|".join(key): key for key in variants}
    functions = {name: variants[key][work] for name, key in names.items()}
    median = medians(interleave(functions, rounds=rounds, budget_s=budget_s))
    arithmetic: dict[str, float] = {}
    for name, (model, _, _) in names.items():
        if model not in arithmetic:  # by the first, plain variant of each model
            arithmetic[model] = gflop(functions[name])
    first = next(iter(median.values()))
    rows = []
    for name, (model, dtype, how) in names.items():
        flops = next(v for m, v in arithmetic.items() if m.split(",")[0] == model.split(",")[0])
        memory = extra_mib(functions[name])
        rows.append(Row(work, model, how, median[name], 1, flops, dtype, first / median[name], memory))
    return rows


def check(want: Tensor, got: Tensor, tolerance: float, what: str) -> float:
    """Return the relative RMSE; figures of different functions are worth nothing, so it is bounded."""
    error = float((got.float() - want.float()).norm() / want.float().norm())
    if not error < tolerance:
        raise RuntimeError(f"{what}: relative RMSE {error:.2e} against plain float32, expected below {tolerance:g}")
    return error


@torch.inference_mode()
def run(rounds: int = 5, budget_s: float = 150.0) -> tuple[list[Row], dict[str, float]]:
    """Measure everything.

    Args:
        rounds: repeats of each.
        budget_s: seconds for all repeats together.

    Returns:
        Rows, and the relative RMSE of our fast settings against plain float32.
    """
    torch.manual_seed(0)
    x = torch.rand(1, 3, 256, 256, device=DEVICE) * 2 - 1
    rows: list[Row] = []
    errors: dict[str, float] = {}

    families: list[tuple[str, Any, Any, list[tuple[str, str]], float]] = []
    transvae = TransVAE("tiny").eval().to(DEVICE)
    families.append(("TransVAE-tiny", plain(transvae), transvae, PLAIN, 0.4))
    peer = diffusers_kl().to(DEVICE)
    mine = kl_autoencoder().eval().to(DEVICE)
    copy_weights(peer, mine)
    families.append(("AutoencoderKL f8", peer, mine, ENDS, 0.4))
    families.append(("AutoencoderDC f32c32", diffusers_dc().to(DEVICE), None, ENDS, 0.2))

    for name, base, model, settings, share in families:
        written = ours if name.startswith("TransVAE") else theirs
        who = "plain PyTorch" if written is ours else "diffusers"
        variants: dict[tuple[str, str, str], Work] = {}
        z = latent(base, x)  # one for all, so that the decoders' outputs can be compared
        for dtype, layout in settings:
            key = (f"{name}, {who}", dtype, f"{dtype} {layout}")
            variants[key] = written(as_written(base, dtype, layout), x, z, layout)
        if model is not None:
            for dtype, precision in (("fp32", "32"), ("bf16", "bf16")):
                fast = for_inference(copy.deepcopy(model), precision=precision)
                variants[(f"{name}, omnivae", dtype, f"{dtype}, our settings")] = ours(fast, x, z, "channels-last")
        want = next(iter(variants.values()))
        for (who_name, dtype, how), work in variants.items():
            if "omnivae" in who_name:
                for kind in ("encode", "decode"):
                    what = f"{name} {kind}, {how}"
                    errors[what] = check(want[kind](), work[kind](), 1e-4 if dtype == "fp32" else 0.05, what)
        for kind in ("encode", "decode"):
            rows += compare(kind, variants, rounds=rounds, budget_s=share * budget_s / 2)
    return rows, errors
