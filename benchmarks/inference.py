"""Encode and decode one 256 x 256 image: TransVAE tiny, our KL autoencoder, diffusers' AutoencoderKL and AutoencoderDC."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import DEVICE, DTYPES, Row, counted, first_call, interleave, medians
from benchmarks.peers import copy_weights, diffusers_dc, diffusers_kl
from benchmarks.plain import plain
from omnivae.recipes.convolutional import kl_autoencoder
from omnivae.recipes.transvae import TransVAE
from omnivae.training.device import for_inference

PLAIN = [("fp32", "NCHW"), ("fp32", "channels-last"), ("bf16", "NCHW"), ("bf16", "channels-last")]
ENDS = [PLAIN[0], PLAIN[-1]]

#: Largest relative RMSE against plain float32; the weights are random, and bfloat16 of the peers is measured too.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}

#: Who, precision, setting.
Key = tuple[str, str, str]
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
    family: str, kind: str, variants: dict[Key, Work], *, rounds: int, budget_s: float
) -> tuple[list[Row], dict[str, float]]:
    """Time one kind of work in all variants; the first is the plain one that the others are compared with."""
    functions = {"|".join(key): work[kind] for key, work in variants.items()}
    first = next(iter(functions))
    plainly, counter = counted(functions[first])
    want, memory = first_call(plainly)
    memories, errors = {first: memory}, {}
    for (who, dtype, how), (name, function) in list(zip(variants, functions.items(), strict=True))[1:]:
        got, memories[name] = first_call(function)
        error = float((got.float() - want).norm() / want.norm())
        # Figures of different functions are worth nothing.
        if not error < TOLERANCE[dtype]:
            raise RuntimeError(
                f"{family} {kind}, {who}, {how}: relative RMSE {error:.1e}, expected below {TOLERANCE[dtype]}"
            )
        errors[f"{family} {kind}, {who}, {how}"] = error
    median = medians(interleave(functions, rounds=rounds, budget_s=budget_s))
    rows = []
    for (who, dtype, how), name in zip(variants, functions, strict=True):
        seconds, speedup = median[name], median[first] / median[name]
        gflop = counter.get_total_flops() / 1e9
        rows.append(Row(kind, f"{family}, {who}", how, seconds, 1, gflop, dtype, speedup, memories[name]))
    return rows, errors


@torch.inference_mode()
def run(rounds: int = 3, budget_s: float = 120.0) -> tuple[list[Row], dict[str, float]]:
    """Measure everything.

    Args:
        rounds: repeats of each.
        budget_s: seconds for all repeats together.

    Returns:
        Rows, and the relative RMSE of each against plain float32.
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
        variants: dict[Key, Work] = {}
        z = latent(base, x)  # one for all, so that the decoders' outputs can be compared
        for dtype, layout in settings:
            written_so = as_written(base, dtype, layout)
            variants[who, dtype, f"{dtype} {layout}"] = written(written_so, x, z, layout)
        if model is not None:
            for dtype, precision in (("fp32", "32"), ("bf16", "bf16")):
                fast = for_inference(copy.deepcopy(model), precision=precision)
                variants["omnivae", dtype, f"{dtype}, our settings"] = ours(fast, x, z, "channels-last")
        for kind in ("encode", "decode"):
            more, close = compare(name, kind, variants, rounds=rounds, budget_s=share * budget_s / 2)
            rows, errors = rows + more, errors | close
    return rows, errors
