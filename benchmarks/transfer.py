"""What a checkpoint is worth by how much of it was loaded: all of it, what a wrong guess at its class loads, or nothing.

``python -m benchmarks.transfer --data SCANS`` trains a narrow model of MAISI's layout on phantoms (there are no released weights
here), and then trains it on SCANS three times with the same order of patches:

- all: every tensor of it, 130 of 130;
- guessed: those tensors that a load by name and shape puts into MONAI's AutoencoderKL with attention, the class that its users
  took it for: 32 of them, no kernel of a convolution among them;
- nothing: from random weights.

The table has the PSNR of held-out patches by steps, and after how many steps each start passes what "nothing" ends with.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from omnivae import MaisiVAE
from omnivae.hub import coverage
from omnivae.models.storage import find_model
from omnivae.networks.maisi import to_monai

CHANNELS, GROUPS = (16, 32, 64), 16
ROOT = Path(__file__).resolve().parent.parent


def train(output: Path, data: str, steps: int, every: int, checkpoint: Path | None = None) -> dict[int, float]:
    """Train by the command, or continue, and return the PSNR of held-out patches by steps."""
    options = {
        "config": ROOT / "configs" / "maisi.yaml",
        "model.num_channels": f"[{','.join(map(str, CHANNELS))}]",
        "model.norm_num_groups": GROUPS,
        "data.path": data,
        "data.volume.patch_size": 32,
        "training.batch_size": 2,
        "training.learning_rate": 1e-3,
        "training.max_steps": steps,
        "training.validate_every": every,
        "training.ema": 0.0,
        "training.gradient_checkpointing": "false",
        "output": output,
    }
    if checkpoint is not None:
        options["checkpoint"] = checkpoint
    command = [sys.executable, "-m", "omnivae", "train", *(f"--{name}={value}" for name, value in options.items())]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with open(output / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row["val/psnr"]) for row in csv.DictReader(file) if row.get("val/psnr")}


def guessed(official: MaisiVAE, folder: Path) -> Path:
    """Save a model of random weights but for the tensors that the guess would load."""
    from monai.networks.nets import AutoencoderKL

    released = to_monai(official.state_dict())
    with torch.device("meta"):
        guess: Any = AutoencoderKL(
            3,
            channels=CHANNELS,
            num_res_blocks=(2, 2, 2),
            latent_channels=4,
            norm_num_groups=GROUPS,
            attention_levels=(False, False, True),
        )
    found = coverage(released, guess)
    print(found.summary(), file=sys.stderr)
    torch.manual_seed(1)
    model = MaisiVAE(num_channels=CHANNELS, norm_num_groups=GROUPS)
    names = dict(zip(to_monai(model.state_dict()), model.state_dict(), strict=True))
    own, loaded = model.state_dict(), official.state_dict()
    for name in found.loaded:
        own[names[name]].copy_(loaded[names[name]])
    model.statistics.update(official.statistics)
    model.save_pretrained(folder)
    return folder


def run(data: str, folder: Path, steps: int, phantom_steps: int, every: int) -> None:
    """Train all of it and print the table."""
    train(folder / "phantoms", "ct_phantoms", phantom_steps, phantom_steps // 4)
    official = find_model(folder / "phantoms")
    model = MaisiVAE.from_pretrained(official)
    starts = {"all": official, "guessed": guessed(model, folder / "guess"), "nothing": None}
    curves = {name: train(folder / name, data, steps, every, start) for name, start in starts.items()}
    goal = curves["nothing"][max(curves["nothing"])]
    marks = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    print(f"| loaded | {' | '.join(f'step {mark}' for mark in marks)} | steps to {goal:.1f} dB |")
    print("|---|" + "--:|" * (len(marks) + 1))
    for name, curve in curves.items():
        reached = next((str(step) for step, value in sorted(curve.items()) if value >= goal), "not reached")
        print(f"| {name} | {' | '.join(f'{curve[mark]:.1f}' for mark in marks)} | {reached} |")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of CT volumes")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="where the runs go; continued there")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--phantom_steps", type=int, default=800)
    parser.add_argument("--every", type=int, default=40)
    options = parser.parse_args()
    run(options.data, options.output, options.steps, options.phantom_steps, options.every)


if __name__ == "__main__":
    main()
