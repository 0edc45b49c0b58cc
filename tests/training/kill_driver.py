"""Runs a small training in child processes and kills them with SIGKILL at random moments; prints what happened as JSON.

A process of its own, which imports everything once and forks: starting Python for each of the children would take minutes.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from training_toys import Images, run, tensors_of, toy_model

from omnivae.losses import GAN, KL, NLL, LinearSchedule
from omnivae.training.checkpoint_io import checkpoint_step, read_tree

STEPS, EVERY = 40, 4


def train(directory):
    losses = {
        "nll": NLL(),
        "kl": KL(weight=LinearSchedule(start=0.0, end=1.0, length=40)),
        "gan": GAN(weight=0.1, channels=4, num_layers=1),
    }
    run(
        directory, toy_model("batch", channels=[4, 6]), losses, train=Slow(), val=Images(8, seed=1),
        max_steps=STEPS, checkpoint_every=EVERY, validate_every=12, ema=0.9, schedule="cosine", warmup_steps=3,
    )  # fmt: skip


class Slow(Images):
    """Images that take a moment to load, so that the moments of the kills spread over the run."""

    def __getitem__(self, index):
        time.sleep(0.002)
        return super().__getitem__(index)


def child(directory):
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        train(directory)
        os._exit(0)
    except BaseException:
        import traceback

        (directory.parent / "error.txt").write_text(traceback.format_exc())
        os._exit(1)


def digest(directory):
    """Hash of everything that decides how a run goes on: weights, average, optimisers, schedules, random state."""
    tree = read_tree(directory / "checkpoints" / "last.safetensors")
    sha = hashlib.sha256()
    for name, tensor in tensors_of(tree).items():
        sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest(), int(tree["global_step"])


def main(folder, kills, seed):
    torch.set_num_threads(1)
    folder = Path(folder)
    whole = folder / "whole"
    start = time.perf_counter()
    assert os.waitpid(child(whole), 0)[1] == 0, (folder / "error.txt").read_text()
    duration = time.perf_counter() - start
    expected, steps = digest(whole)
    random.seed(seed)
    table = []
    for number in range(kills):
        directory = folder / f"killed-{number}"
        row = {"run": number, "kills": []}
        while True:
            pid = child(directory)
            after = random.uniform(0.3, 1.1) * duration
            deadline = time.perf_counter() + after
            ended = False
            # Each run is killed at least once; its next children may get to the end.
            while time.perf_counter() < deadline and not ended:
                ended = os.waitpid(pid, os.WNOHANG)[0] == pid
                time.sleep(0.001)
            if ended and not row["kills"]:
                # Quicker than the run that was timed: no kill, no evidence.
                shutil.rmtree(directory)
                continue
            if ended:
                break
            if len(row["kills"]) == 2:
                assert os.waitpid(pid, 0)[1] == 0, (folder / "error.txt").read_text()
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            last = directory / "checkpoints" / "last.safetensors"
            logged = (
                (directory / "metrics.csv").read_text().splitlines() if (directory / "metrics.csv").exists() else []
            )
            half_written = len(list(directory.glob("checkpoints/.*.tmp")))
            row["kills"].append(
                {
                    "after_s": round(after, 2),
                    "checkpoint": checkpoint_step(last) if last.exists() else 0,
                    "rows": max(0, len(logged) - 1),
                    "half_written": half_written,
                }
            )
        row["digest"], row["steps"] = digest(directory)
        row["equal"] = row["digest"] == expected
        row["left_over"] = len(list(directory.glob("checkpoints/.*.tmp")))
        table.append(row)
    print(json.dumps({"expected": expected, "steps": steps, "seconds": round(duration, 2), "runs": table}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
