"""One training step: TransVAE tiny and KL autoencoders against plain eager float32 loops, and the cost of Lightning's loop."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import DEVICE, Row, counted, first_call, interleave, medians
from benchmarks.peers import copy_weights, diffusers_kl
from benchmarks.plain import plain
from omnivae.losses import KL, NLL
from omnivae.recipes.convolutional import conv_vae, kl_autoencoder
from omnivae.recipes.transvae import TransVAE
from omnivae.training.config import TrainingConfig
from omnivae.training.loop import fit
from omnivae.training.module import VAEModule

Step = Callable[[], Tensor]


def our_loss(model: nn.Module, x: Tensor) -> Tensor:
    """NLL and KL of a VAE of ours, as its training module computes them."""
    output = model(x)
    return NLL()(output, {"x": x}) + 1e-6 * KL()(output, {"x": x})


def diffusers_loss(model: Any, x: Tensor) -> Tensor:
    """Return the same loss of a diffusers AutoencoderKL: unit Laplace likelihood and KL."""
    q = model.encode(x).latent_dist
    reconstruction = model.decode(q.sample()).sample
    return (reconstruction.float() - x).abs().flatten(1).sum(1).mean() + 1e-6 * q.kl().mean()


def make_step(
    model: nn.Module, loss: Callable[[Any, Tensor], Tensor], x: Tensor, *, fast: bool, lr: float = 1e-4
) -> Step:
    """Return an optimiser step: bf16 autocast, channels last and fused AdamW, or none of them."""
    if fast:
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True if fast else None)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=fast):
            total = loss(model, x)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total.detach()

    return step


def steps(rounds: int, budget_s: float) -> list[Row]:
    """Time steps of batch 4 at 128 x 128."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 128, 128, device=DEVICE) * 2 - 1
    transvae, peer, mine = TransVAE("tiny").to(DEVICE), diffusers_kl().to(DEVICE), kl_autoencoder().to(DEVICE)
    copy_weights(peer, mine)
    families = {
        "TransVAE-tiny": {
            ("plain PyTorch", "fp32", "fp32 NCHW"): make_step(plain(transvae), our_loss, x, fast=False),
            ("omnivae", "fp32", "fp32, our code alone"): make_step(copy.deepcopy(transvae), our_loss, x, fast=False),
            ("omnivae", "bf16", "bf16, our settings"): make_step(transvae, our_loss, x, fast=True),
        },
        "AutoencoderKL f8": {
            ("diffusers", "fp32", "fp32 NCHW"): make_step(copy.deepcopy(peer), diffusers_loss, x, fast=False),
            ("diffusers", "bf16", "bf16 channels-last"): make_step(peer, diffusers_loss, x, fast=True),
            ("omnivae", "bf16", "bf16, our settings"): make_step(mine, our_loss, x, fast=True),
        },
    }
    rows = []
    for family, variants in families.items():
        functions: dict[str, Step] = {"|".join(key): step for key, step in variants.items()}
        first = next(iter(functions))
        plainly, counter = counted(functions[first])
        memories = {name: first_call(plainly if name == first else function)[1] for name, function in functions.items()}
        median = medians(interleave(functions, rounds=rounds, budget_s=budget_s / 2))
        flops = counter.get_total_flops() / 1e9
        work = "train step, batch 4, 128x128"
        for key, (who, dtype, how) in zip(functions, variants, strict=True):
            speedup = median[first] / median[key]
            rows.append(Row(work, f"{family}, {who}", how, median[key], 4, flops, dtype, speedup, memories[key]))
    return rows


def loss_curves(num_steps: int = 10) -> dict[str, Any]:
    """Train TransVAE tiny from the same weights on the same batch, plain float32 and fast, and compare the losses."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64, device=DEVICE) * 2 - 1
    model = TransVAE("tiny").to(DEVICE)
    curves = {}
    for name, fast in (("plain fp32", False), ("fast", True)):
        trained = copy.deepcopy(model) if fast else plain(model)
        step = make_step(trained, our_loss, x, fast=fast)
        curve = []
        for i in range(num_steps):
            torch.manual_seed(i)  # the same posterior noise
            curve.append(float(step()))
        curves[name] = curve
    relative = [abs(a / b - 1) for a, b in zip(curves["fast"], curves["plain fp32"], strict=True)]
    return {"losses": curves, "largest_relative_difference": max(relative)}


class _Images(Dataset):
    def __init__(self, count: int) -> None:
        self.x = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index]}


def lightning_overhead(num_steps: int = 60, rounds: int = 3, skip: int = 10) -> dict[str, Any]:
    """Compare ``fit`` (moving average, clipping, a logged row each step) with a bare loop on an MNIST-size model.

    Args:
        num_steps: steps timed.
        rounds: repeats, in turns.
        skip: first steps, which are not timed.

    Returns:
        Milliseconds per step and the overhead.
    """
    data = _Images(6400)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return conv_vae(in_channels=1, image_size=28, latent_dim=32, likelihood="bernoulli")

    def batches() -> Iterator[Any]:
        while True:
            yield from DataLoader(data, batch_size=64, shuffle=True)

    def bare() -> float:
        model = build().to(DEVICE).train()
        loss, optimizer = (NLL(), KL()), torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        start = 0.0
        for i, batch in enumerate(batches()):
            if i == skip:
                start = time.perf_counter()
            if i == skip + num_steps:
                break
            batch = {"x": batch["x"].to(DEVICE)}
            optimizer.zero_grad()
            output = model(batch["x"])
            total = loss[0](output, batch) + loss[1](output, batch)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return 1e3 * (time.perf_counter() - start) / num_steps

    def fitted(**arguments: Any) -> float:
        marks: list[float] = []
        real = VAEModule.training_step

        def marked(self: VAEModule, batch: Any, index: int) -> Tensor:
            marks.append(time.perf_counter())
            return real(self, batch, index)

        never = 10**6
        config = TrainingConfig(
            batch_size=64, max_steps=skip + num_steps, learning_rate=1e-3, precision="32", channels_last=False,
            checkpoint_every=never, draw_every=never, **arguments,
        )  # fmt: skip
        VAEModule.training_step = marked  # type: ignore[method-assign]
        try:
            with tempfile.TemporaryDirectory() as folder:
                run = {"config": config, "directory": Path(folder), "save_model": lambda model: None}
                fit(build(), {"nll": NLL(), "kl": KL()}, data, None, **run, progress=False)  # type: ignore[arg-type]
        finally:
            VAEModule.training_step = real  # type: ignore[method-assign]
        return 1e3 * (marks[-1] - marks[skip]) / (len(marks) - 1 - skip)

    variants = {"bare loop": bare, "fit": fitted, "fit, no EMA, a row in 50": lambda: fitted(ema=0.0, log_every=50)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, function in variants.items():
            times[name].append(function())
    median = {name: statistics.median(values) for name, values in times.items()}
    overhead = {name: value / median["bare loop"] - 1 for name, value in median.items() if name != "bare loop"}
    return {"ms_per_step": median, "overhead": overhead}
