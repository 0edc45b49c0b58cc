"""The ``training`` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from omnivae.component import suggestion
from omnivae.training.corruption import Corruption, Kind

Precision = Literal["auto", "32", "bf16", "16"]
Switch = bool | Literal["auto"]


@dataclass
class TrainingConfig:
    """How a model is trained.

    Args:
        batch_size: images in a batch, over all processes together: each of N processes gets a share of ``batch_size / N``,
            so that the number of processes does not change what is computed.
        learning_rate: peak learning rate, > 0.
        num_epochs: passes over the training images; used where ``max_steps`` is not given.
        max_steps: optimiser steps; 1,000 where neither is given.
        warmup_steps: linear warm-up from zero; by default 1,000 or a twentieth of the run, whichever is less.
        schedule: learning rate after the warm-up: "cosine" to zero, or "constant".
        optimizer: "adamw" or "adam".
        weight_decay: AdamW's decoupled weight decay.
        betas: Adam's moment decays.
        gradient_clip: largest gradient norm (or value); 0 switches clipping off.
        gradient_clip_algorithm: "norm" clips the global norm, "value" each element.
        accumulate: batches whose gradients are added up before a step.
        precision: "32", "bf16" (autocast; weights stay float32), "16" (float16 with gradient scaling), or "auto": bf16
            where the device computes in it natively, else 32.
        channels_last: memory layout for convolutions; "auto" switches it on for 2-D and 3-D models.
        compile: ``torch.compile`` the model; "auto" is off on CPUs, where it was measured not to pay.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        ema: decay of the weights' moving average, which is what evaluation and ``model/`` hold; 0 switches it off.
        seed: of weights, data order and noise.
        devices: processes on this machine, each with a GPU of its own where there are any; "auto" is one, or what
            ``torchrun`` started.
        num_nodes: machines; "auto" is one, or those that ``torchrun`` started on.
        strategy: "ddp" keeps the whole model in every process, "fsdp" shards it; "auto" is ddp where there are several
            processes.
        corrupt: what happens to images on their way into the encoder, while the target stays as it is: "gaussian" noise,
            "salt_and_pepper", "mask" (pixels set to 0), "missing" (the same, and the loss leaves those pixels out), "none".
        corrupt_strength: of gaussian noise its standard deviation as a share of the value range, of the others the share of pixels.
        freeze: submodules that are not trained, such as ``[encoder, posterior]``.
        freeze_epochs: passes over the data for which they are not trained, and afterwards are; by default the whole run.
        lr_multipliers: submodule to the multiple of the learning rate that it is trained at, such as ``{encoder: 0.1}``.
        on_nonfinite: what a loss or gradient that is not finite does: "stop" the run, or "skip" the update and count it. Both
            leave a flight record with the cause and a command that repeats the step.
        on_collapse: what a posterior that carries nothing about its image does, once that is certain: "warn", "stop" the run,
            or "ignore". It is looked for from the first hundred steps on.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations; by default ``checkpoint_every``, or a tenth of the run if that is less.
        log_every: steps between rows of ``metrics.csv``.
        draw_every: steps between pictures of reconstructions and samples; by default ``checkpoint_every``, or a fifth of
            the run if that is less.
        val_images: validation images used while training.
    """

    batch_size: int = 32
    learning_rate: float = 1e-4
    num_epochs: int | None = None
    max_steps: int | None = None
    warmup_steps: int | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 1.0
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    accumulate: int = 1
    precision: Precision = "auto"
    channels_last: Switch = "auto"
    compile: Switch = "auto"
    gradient_checkpointing: bool = False
    ema: float = 0.999
    seed: int = 0
    devices: int | Literal["auto"] = "auto"
    num_nodes: int | Literal["auto"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    corrupt: Kind = "none"
    corrupt_strength: float = 0.0
    freeze: tuple[str, ...] = ()
    freeze_epochs: int | None = None
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    on_collapse: Literal["warn", "stop", "ignore"] = "warn"
    checkpoint_every: int = 500
    validate_every: int | None = None
    log_every: int = 1
    draw_every: int | None = None
    val_images: int = 256

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ValueError: names the field, what was got and what is expected.
        """
        for name in ("batch_size", "accumulate", "checkpoint_every", "log_every", "val_images"):
            self._at_least(name, getattr(self, name), 1)
        for name in ("num_epochs", "max_steps", "validate_every", "draw_every"):
            if getattr(self, name) is not None:
                self._at_least(name, getattr(self, name), 1)
        if self.warmup_steps is not None:
            self._at_least("warmup_steps", self.warmup_steps, 0)
        for name, known in (
            ("precision", get_args(Precision)),
            ("schedule", ("cosine", "constant")),
            ("optimizer", ("adamw", "adam")),
            ("gradient_clip_algorithm", ("norm", "value")),
            ("strategy", ("auto", "ddp", "fsdp")),
            ("on_nonfinite", ("stop", "skip")),
            ("on_collapse", ("warn", "stop", "ignore")),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"got training.{name}={value!r}{suggestion(value, known)}; expected {', '.join(known)}"
                )
        for name in ("devices", "num_nodes"):
            if getattr(self, name) != "auto":
                self._at_least(name, getattr(self, name), 1)
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"got training.learning_rate={self.learning_rate}; expected a positive number such as 1e-4"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(
                f"got training.ema={self.ema}; expected a decay in [0, 1), such as 0.999; 0 switches it off"
            )
        if not 0 <= self.gradient_clip < float("inf"):
            raise ValueError(
                f"got training.gradient_clip={self.gradient_clip}; expected a norm > 0, or 0 to switch it off"
            )
        if self.freeze_epochs is not None:
            self._at_least("freeze_epochs", self.freeze_epochs, 1)
            if not self.freeze:
                raise ValueError(
                    f"got training.freeze_epochs={self.freeze_epochs} and nothing in training.freeze; say what to freeze, "
                    "such as [encoder, posterior]"
                )
        for name, rate in self.lr_multipliers.items():
            if not 0 < rate < float("inf"):
                raise ValueError(
                    f"got training.lr_multipliers.{name}={rate}; expected a number > 0, such as 0.1; training.freeze leaves "
                    "a part untrained"
                )
        Corruption(self.corrupt, self.corrupt_strength)
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"got training.weight_decay={self.weight_decay}; expected a number >= 0")

    @staticmethod
    def _at_least(name: str, value: int, least: int) -> None:
        if value < least:
            raise ValueError(f"got training.{name}={value}; expected a whole number, at least {least}")

    def total_steps(self, num_images: int) -> int:
        """Return the number of optimiser steps of the run.

        Args:
            num_images: training images.

        Returns:
            ``max_steps``, or ``num_epochs`` in steps.
        """
        if self.max_steps is not None:
            return self.max_steps
        if self.num_epochs is not None:
            return max(1, self.num_epochs * (num_images // (self.batch_size * self.accumulate)))
        return 1000

    def warmup(self, total_steps: int) -> int:
        """Return the warm-up steps of a run of ``total_steps``."""
        return min(1000, total_steps // 20) if self.warmup_steps is None else self.warmup_steps
