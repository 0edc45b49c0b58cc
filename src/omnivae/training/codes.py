"""Codebooks while they are trained: where their codes start, when they move, and how many of them are in use.

A codebook learns from what all processes have seen, and a forward pass cannot wait for them: a process whose batch cannot be
computed never comes there. It therefore only notes what its batch says; the codes move where all processes are certain to
arrive, after they have agreed that the step is made, from every batch that the step was accumulated from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import default_collate

from omnivae.metrics.codes import CodeCounts, coded
from omnivae.training.distributed import copy_from_rank_zero, gather
from omnivae.training.order import EpochView
from omnivae.training.world import world
from omnivae.types import VAEOutput

log = logging.getLogger(__name__)

#: Latent vectors for each code that the clusters of the start are found from, and images at most.
VECTORS_PER_CODE, MOST_IMAGES = 32, 2048
#: Images that are encoded at once.
AT_ONCE = 32
#: Codes in use, as if equally often, below which a codebook tells hardly any image from another; and windows in a row that say so
#: before the run is warned: an encoder that has just started may be that uniform.
FEW, AGREEING = 2.0, 2


@runtime_checkable
class Follower(Protocol):
    """Follows the training batches outside of the gradient: notes in the forward pass, moves when told."""

    deferred: bool
    pending: list[Any]

    def commit(self) -> None: ...

    def discard(self) -> None: ...


def followers(module: nn.Module) -> list[Any]:
    """Return the parts of a model that follow the batches outside of the gradient."""
    return [m for m in module.modules() if isinstance(m, Follower)]


@contextmanager
def notes_kept(module: nn.Module) -> Iterator[None]:
    """Leave no trace of the forward passes within in what followers have noted."""
    before = [(follower, list(follower.pending)) for follower in followers(module)]
    try:
        yield
    finally:
        for follower, pending in before:
            follower.pending = pending


def check_codebook(vae: nn.Module, num_images: int, size: tuple[int, ...]) -> None:
    """Refuse a codebook that the data cannot fill.

    Args:
        vae: the model.
        num_images: training images.
        size: spatial size of an image.

    Raises:
        ValueError: names both numbers and two ways out.
    """
    head: Any = getattr(vae, "posterior", None)
    num_codes = getattr(head, "num_codes", None)
    if num_codes is None or not hasattr(vae, "latent_size"):
        return
    positions = math.prod(vae.latent_size(size))  # type: ignore[operator]
    vectors = num_images * positions
    numbers = (
        f"got a codebook of {num_codes:,} codes for {vectors:,} latent vectors ({num_images:,} training images of {positions:,} "
        f"position{'s' * (positions != 1)})"
    )
    if num_codes <= vectors:
        return
    if hasattr(head, "start"):
        raise ValueError(
            f"{numbers}: set model.num_codes to {max(2, vectors // 10):,} or less, or train on more images"
        )
    log.warning("%s: most codes will never occur, and a prior over them cannot be learned", numbers)


class Codebooks(pl.Callback):
    """Starts codebooks at clusters of the training data, and lets them move with the steps.

    Args:
        train: the training images.
        collate: joins items into a batch.
        batch_size: images that are looked at, at least.
        seed: of the choice.
    """

    def __init__(self, train: Any, collate: Callable[[list[Any]], Any] | None, batch_size: int, seed: int) -> None:
        self.train, self.collate = EpochView(train), collate or default_collate
        self.batch_size, self.seed = batch_size, seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Find the first codes, unless the run continues or the model was trained before."""
        for follower in followers(pl_module.vae):
            follower.deferred = True
            follower.discard()
        head = getattr(pl_module.vae, "posterior", None)
        if head is None or not hasattr(head, "start") or head.started:
            return
        # Every process looks at the same images: they would be the same in one.
        head.start(self._features(pl_module, head), seed=self.seed)
        copy_from_rank_zero(head.buffers())

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Let the codebooks learn by themselves again."""
        for follower in followers(pl_module.vae):
            follower.deferred = False
            follower.discard()

    @torch.no_grad()
    def _features(self, pl_module: Any, head: Any) -> Tensor:
        vae, found = pl_module.vae, []
        order = torch.randperm(len(self.train.dataset), generator=torch.Generator().manual_seed(self.seed)).tolist()
        wanted, vectors, images = VECTORS_PER_CODE * head.num_codes, 0, 0
        handle = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        training = vae.training
        vae.eval()
        try:
            for start in range(0, min(len(order), MOST_IMAGES), AT_ONCE):
                items = [self.train[0, i] for i in order[start : start + AT_ONCE]]
                batch = self.collate([item for item in items if bool(torch.isfinite(item["x"]).all())] or items)
                if not bool(torch.isfinite(batch["x"]).all()):
                    continue
                batch = move_data_to_device(batch, pl_module.device)
                vae.encode(batch["x"], batch.get("cond"))
                images += len(batch["x"])
                vectors += found[-1][:, 0].numel()
                if images >= self.batch_size and vectors >= wanted:
                    break
        finally:
            handle.remove()
            vae.train(training)
        if not found:
            raise ValueError(
                "none of the training images that the codebook would start from is finite; `omnivae inspect` lists what is wrong"
            )
        rows = torch.cat([features.movedim(1, -1).flatten(0, -2) for features in found])
        if len(rows) > 2 * wanted:
            rows = rows[
                torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))[: 2 * wanted].to(
                    rows.device
                )
            ]
        return rows.reshape(len(rows), -1, *[1] * (found[0].ndim - 2))


class CodeWatch:
    """Counts the codes of a run: over an epoch of training, and over a validation.

    Args:
        window: steps that are counted together.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._counts: dict[str, list[CodeCounts]] = {"train": [], "val": []}
        self._low = 0

    def add(self, output: VAEOutput, split: str) -> None:
        """Count the codes of a batch.

        Args:
            output: the model's output.
            split: "train" or "val".
        """
        posteriors = coded(output)
        if posteriors and not self._counts[split]:
            self._counts[split] = [CodeCounts.of(q) for q in posteriors]
        for counts, posterior in zip(self._counts[split], posteriors, strict=True):
            counts.add_posterior(posterior)

    def step_done(self, step: int, last: bool) -> dict[str, float]:
        """Return the figures where a window ends, and warn of a codebook that has collapsed; all processes must call it together.

        Args:
            step: optimiser steps done.
            last: whether it is the run's last.
        """
        if step % self.window and not last:
            return {}
        figures = self.figures("train")
        self._low = self._low + 1 if figures.get("train/perplexity", FEW) < FEW else 0
        if self._low == AGREEING and world().rank == 0:
            log.warning(
                "step %d: the codebook has collapsed: over the last %d steps the codes' perplexity is %.2f, so that they tell "
                "hardly any image from another; `omnivae doctor` on this run says what to change",
                step,
                self.window,
                figures["train/perplexity"],
            )
        return figures

    def figures(self, split: str) -> dict[str, float]:
        """Return perplexity and share in use over all processes, and start again; empty for models without codes."""
        joint, self._counts[split] = self._joint(split), []
        if not joint or not len(joint[0]):
            return {}
        return {
            f"{split}/perplexity": sum(c.perplexity for c in joint) / len(joint),
            f"{split}/code_usage": sum(c.usage for c in joint) / len(joint),
        }

    def state(self) -> list[Any]:
        """Return what all processes together have counted in the present window, as plain data."""
        return [[c.num_codes, [[list(book), list(book.values())] for book in c.counts()]] for c in self._joint("train")]

    def restore(self, state: list[Any]) -> None:
        """Continue with what :meth:`state` returned; one process takes it for all.

        Args:
            state: of a checkpoint.
        """
        self._counts["train"] = []
        for num_codes, books in state:
            counts = CodeCounts(num_codes, len(books))
            counts.merge([dict(zip(*book, strict=True)) for book in books])
            self._counts["train"].append(counts)

    def _joint(self, split: str) -> list[CodeCounts]:
        parts = gather([(c.num_codes, c.counts()) for c in self._counts[split]])
        result: list[CodeCounts] = []
        for part in parts:
            for i, (num_codes, books) in enumerate(part):
                if i == len(result):
                    result.append(CodeCounts(num_codes, len(books)))
                result[i].merge(books)
        return result
