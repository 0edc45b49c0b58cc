"""Fit a VAE: one call from model, losses and images to a run directory that the same call continues."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.utils.data import DataLoader, default_collate

from omnivae.losses import Loss
from omnivae.training.autocast import HalfPrecision
from omnivae.training.callbacks import Checkpoints, GracefulStop, Pictures, RunLog
from omnivae.training.checkpoint_io import SUFFIX, SafetensorsCheckpointIO, checkpoint_step
from omnivae.training.codes import Codebooks, check_codebook, followers
from omnivae.training.collapse import CollapseMonitor
from omnivae.training.combinations import check_size
from omnivae.training.config import TrainingConfig
from omnivae.training.device import native_bf16
from omnivae.training.distributed import (
    CHECKPOINT,
    copy_from_rank_zero,
    from_rank_zero,
    is_lost_connection,
    join,
    lost_sentence,
    note,
)
from omnivae.training.ema import Ema
from omnivae.training.flight import FlightRecorder
from omnivae.training.loader import TimedLoader
from omnivae.training.module import VAEModule
from omnivae.training.opponents import Opponents, has_opponent
from omnivae.training.order import EpochView, StepOrder, UnreadableData, ValidationOrder
from omnivae.training.progress import Progress
from omnivae.training.result import CHECKPOINTS, FitResult
from omnivae.training.shallow import ShallowConvolutions
from omnivae.training.sharded import ShardedEma, ShardedModule, check_sharded
from omnivae.training.strategies import AverageStatistics, trainer_arguments
from omnivae.training.world import World, check_world, world

log = logging.getLogger(__name__)

#: Largest batch in validation: the same for any number of processes, and small enough for each of them.
VALIDATION_BATCH = 32


def fit(
    vae: nn.Module,
    losses: Mapping[str, Loss],
    train: Any,
    val: Any,
    *,
    config: TrainingConfig,
    directory: Path,
    save_model: Callable[[nn.Module], None],
    collate: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    draw: Callable[[nn.Module, int], None] | None = None,
    resolutions: Sequence[int] = (),
    progress: bool = True,
) -> FitResult:
    """Train, or continue the run that is in ``directory``.

    In a program started by ``torchrun`` each process calls this with the same arguments; only rank 0 writes.

    Args:
        vae: the model; its weights are trained in place (the average goes to ``save_model``).
        losses: name to loss.
        train: map-style data set of ``{"x": [C, *S], ...}``.
        val: map-style data set, or ``None``.
        config: how to train.
        directory: the run.
        save_model: writes a model directory.
        collate: joins items into a batch; torch's own by default.
        num_workers: processes that load images; 0 loads in this one.
        draw: draws pictures of a model at a step.
        resolutions: sides of the squares to train on, one a batch; ``train`` then has ``set_resolution``.
        progress: show progress on standard error.

    Returns:
        How far it came.

    Raises:
        ValueError: for a batch larger than the data, or losses that the model cannot have.
        FloatingPointError: when a loss stops being finite.
        ChildProcessError: when another process of the run is lost.
    """
    place = world()
    check_world(config, place)
    sharded = config.strategy == "fsdp"
    if sharded:
        check_sharded(config, losses)
        config = replace(config, compile=False, channels_last=False)
    join(place)
    if place.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
    total_steps = config.total_steps(len(train))
    last = directory / CHECKPOINTS / f"last{SUFFIX}"
    start = _start(last, place)
    if start >= total_steps:
        return FitResult(start, total_steps, None)
    if start and place.rank == 0:
        log.info("continuing at step %d of %d", start, total_steps)
    order = StepOrder(
        len(train),
        config.batch_size // place.size,
        total_steps * config.accumulate,
        seed=config.seed,
        start=start * config.accumulate,
        permutation=getattr(train, "permutation", None),
        resolutions=resolutions,
        rank=place.rank,
        world_size=place.size,
    )
    if config.gradient_checkpointing:
        vae.enable_gradient_checkpointing()  # type: ignore[operator]
    for loss in losses.values():
        if getattr(loss, "dataset_size", 0) is None:
            loss.dataset_size = len(train)  # type: ignore[assignment]
    steps_per_epoch = max(1, order.batches_per_epoch // config.accumulate)
    kind = ShardedModule if sharded else VAEModule
    module = kind(vae, losses, config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if max(loss.least_size for loss in losses.values()) > 1:
        check_size(losses, [min(resolutions)] if resolutions else EpochView(train)[0, 0]["x"].shape[1:])
    # Weights that were not drawn from a common seed become common here, before anything is copied from them.
    copy_from_rank_zero(module.state_dict().values())
    # Ten points make a curve: a short run validates and draws more often than it saves.
    tenth = max(1, total_steps // 10)
    validate_every = min(config.validate_every or min(config.checkpoint_every, tenth), total_steps)
    stop = GracefulStop()
    callbacks: list[pl.Callback] = []
    if hasattr(getattr(vae, "posterior", None), "num_codes"):
        # Other sizes of an image leave more vectors or fewer; the first one's is what the data is.
        check_codebook(vae, len(train), tuple(EpochView(train)[0, 0]["x"].shape[1:]))
    if followers(vae):
        callbacks.append(Codebooks(train, collate, config.batch_size, config.seed))
    if any(has_opponent(loss) for loss in losses.values()):
        callbacks.append(Opponents(losses, config.learning_rate))
    callbacks += [AverageStatistics()] if place.size > 1 else []
    callbacks += [(ShardedEma if sharded else Ema)(config.ema)] if config.ema else []
    monitor = CollapseMonitor(total_steps, config.on_collapse)
    recorder = FlightRecorder(directory)
    callbacks += [HalfPrecision(), ShallowConvolutions(), RunLog(directory, config.log_every), recorder, stop]
    if progress:
        callbacks.append(Progress(total_steps))
    if draw is not None:
        callbacks.append(Pictures(config.draw_every or min(config.checkpoint_every, 2 * tenth), draw))
    callbacks.append(Checkpoints(directory, config.checkpoint_every, save_model))
    if config.on_collapse != "ignore":
        callbacks.append(monitor)
    half_on_cpu = _half_on_cpu(config.precision)

    def reaches_all() -> bool:
        batch = (collate or default_collate)([EpochView(train)[0, i] for i in range(min(2, len(train)))])
        return module.reaches_all(move_data_to_device(batch, trainer.strategy.root_device))

    where = trainer_arguments(config, place, reaches_all)
    where["plugins"] += [SafetensorsCheckpointIO(), *half_on_cpu]
    with _quiet():
        trainer = pl.Trainer(
            # The whole run is one Lightning epoch: the order of images is ours (see StepOrder), and a run continues at a
            # step, not at an epoch.
            max_steps=total_steps,
            max_epochs=1,
            precision=None if half_on_cpu else resolve_precision(config.precision),  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            val_check_interval=validate_every * config.accumulate if val is not None else None,
            check_val_every_n_epoch=None if val is not None else 1,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if val is not None else 0,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=str(directory),
            **where,
        )
        if _compiles(config.compile, losses, trainer.strategy.root_device):
            for part in vae.modules():
                if hasattr(part, "leave_to_python"):
                    part.leave_to_python()  # type: ignore[operator]
            vae.compile()
        loading: dict[str, Any] = {
            "collate_fn": collate,
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        # Own generators: starting an iterator draws a seed, which must not come from the stream of the training.
        loader = TimedLoader(EpochView(train), batch_sampler=order, generator=torch.Generator(), **loading)
        val_loader = None
        if val is not None:
            subset = torch.utils.data.Subset(val, range(min(len(val), config.val_images)))
            size = min(config.batch_size, VALIDATION_BATCH, len(subset))
            module.validation_order = ValidationOrder(len(subset), size, rank=place.rank, world_size=place.size)
            val_loader = DataLoader(
                subset, batch_sampler=module.validation_order, generator=torch.Generator(), **loading
            )
        try:
            trainer.fit(module, loader, val_loader, ckpt_path=str(last) if start else None, weights_only=True)
        except UnreadableData as error:
            raise ValueError(recorder.sentence()) from error
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            raise ChildProcessError(lost_sentence(trainer.global_step, _saved(last))) from error
    return FitResult(trainer.global_step, total_steps, "posterior collapse" if monitor.stopped else stop.received)


def resolve_precision(precision: str) -> str:
    """Return Lightning's name for a precision.

    Args:
        precision: "auto", "32", "bf16" or "16".

    Returns:
        "32-true", "bf16-mixed" or "16-mixed".

    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if native_bf16(device) else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


def _half_on_cpu(precision: str) -> list[Any]:
    """Return the plug-in for float16 on a CPU: Lightning would take bfloat16 in its place without being asked."""
    if precision != "16" or torch.cuda.is_available():
        return []
    from lightning.pytorch.plugins import MixedPrecision

    log.warning("float16 on a CPU is emulated and slow, and has no advantage over bf16 there")
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]


def _compiles(switch: bool | str, losses: Mapping[str, Loss], device: torch.device) -> bool:
    # A compiled model is one step for autograd: there is no gradient between z and the pixels to compare.
    inside = [f"losses.{name}.{loss.inside}" for name, loss in losses.items() if loss.inside]
    if switch is True and inside:
        raise ValueError(
            f"got training.compile=true and {inside[0]}, which takes gradients inside the model; change one of them"
        )
    return switch is True or (switch == "auto" and device.type == "cuda" and not inside)


def _start(last: Path, place: World) -> int:
    """Return the step to start at, which rank 0 decides."""
    found = _saved(last)
    start = from_rank_zero(found)
    if start != found:
        raise ValueError(
            f"rank 0 continues from step {start or 0} and rank {place.rank} finds {found or 'no checkpoint'} at {last}: the run's "
            "directory must be on a file system that all machines share"
        )
    if start is not None:
        note(CHECKPOINT, start)
    return start or 0


def _saved(last: Path) -> int | None:
    return checkpoint_step(last) if last.exists() else None


class _quiet:
    """Keep Lightning's advice about loggers and workers out of the user's way while it runs."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        # Channels-last weights of 1 x 1 convolutions have two spellings of the same layout.
        warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view")
        # Nothing here changes a network's output in place.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
        self._loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: Any) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
        self._warnings.__exit__(*error)
