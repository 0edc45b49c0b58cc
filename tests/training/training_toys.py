"""A model without normalisation statistics, small enough that a step takes milliseconds, and a recording ``fit``."""

import copy
from pathlib import Path

import torch

from omnivae.losses import KL, NLL
from omnivae.recipes import conv_vae
from omnivae.training import TrainingConfig, fit
from omnivae.training.checkpoint_io import read_tree


def toy_model(norm="none", **arguments):
    torch.manual_seed(5)
    return conv_vae(**{"in_channels": 1, "image_size": 8, "latent_dim": 3, "channels": [4], "norm": norm} | arguments)


def toy_losses(weight=0.5):
    return {"nll": NLL(), "kl": KL(weight=weight)}


class Images:
    """``n`` fixed random images in [-1, 1] of 8 x 8 pixels."""

    def __init__(self, n=24, seed=0):
        self.x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index]}


def run(directory: Path, model=None, losses=None, *, train=None, val=None, draw=None, **config):
    """Return the result of ``fit``, the model, and every state that was saved as ``model/``."""
    directory.mkdir(parents=True, exist_ok=True)
    model = toy_model() if model is None else model
    settings = {"batch_size": 4, "precision": "32", "warmup_steps": 0, "learning_rate": 1e-2, "schedule": "constant"}
    saved = []
    # The noise of a run comes from the global generator: every run here starts from the same state, as jobs.train has it.
    torch.manual_seed(99)
    result = fit(
        model,
        toy_losses() if losses is None else losses,
        Images() if train is None else train,
        val,
        config=TrainingConfig(**settings | config),
        directory=directory,
        save_model=lambda trained: saved.append(copy.deepcopy(trained.state_dict())),
        draw=draw,
        progress=False,
    )
    return result, model, saved


def rows(directory: Path, name="metrics.csv"):
    """Return a run's table as a list of dicts of numbers, empty cells left out."""
    import csv

    with (directory / name).open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]


def training_rows(directory: Path):
    return [row for row in rows(directory) if "train/total" in row]


def last_checkpoint(directory: Path):
    return read_tree(directory / "checkpoints" / "last.safetensors")


def tensors_of(tree, prefix=""):
    """Return every tensor of a nested structure by its path."""
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    return {k: t for key, value in items for k, t in tensors_of(value, f"{prefix}/{key}").items()}


def assert_equal_tensors(left, right):
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
