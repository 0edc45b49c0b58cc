"""The one LightningModule: total = sum of weight(step) * loss(output, batch), with everything logged unweighted."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from omnivae.distributions import kl_divergence
from omnivae.losses import AdaptiveLoss, Loss, pixel_parameters, reconstruction_gradient
from omnivae.losses.elbo import log_likelihood
from omnivae.training.codes import CodeWatch, followers
from omnivae.training.collapse import information_of, look_every
from omnivae.training.combinations import check
from omnivae.training.config import TrainingConfig
from omnivae.training.corruption import Corruption
from omnivae.training.diagnosis import random_state, set_random_state
from omnivae.training.distributed import gather, largest, noise_seed, several, whole_batch
from omnivae.training.freezing import Freezing, rate_groups
from omnivae.training.guard import Guard
from omnivae.training.holes import HoleWatch
from omnivae.training.inputs import inspect_inputs
from omnivae.training.levels import active_units, kl_by_dimension
from omnivae.training.opponents import detached, has_opponent
from omnivae.training.order import ValidationOrder
from omnivae.training.world import world
from omnivae.types import Batch, VAEOutput

log = logging.getLogger(__name__)


class VAEModule(pl.LightningModule):
    """Trains a VAE on a named set of losses.

    Args:
        vae: the model.
        losses: name to loss.
        config: how to train.
        total_steps: optimiser steps of the run, for the learning-rate schedule.
        steps_per_epoch: optimiser steps of one pass over the data, for schedules counted in epochs.
    """

    def __init__(
        self,
        vae: nn.Module,
        losses: Mapping[str, Loss],
        config: TrainingConfig,
        *,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        check(vae, losses)
        build(vae, losses, seed=config.seed)
        self.vae = vae
        self.losses = nn.ModuleDict(losses)
        self.config = config
        self.corruption = Corruption(config.corrupt, config.corrupt_strength)
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.num_samples = max([loss.num_samples for loss in losses.values()], default=1)
        self.channels_last = config.channels_last in (True, "auto") and vae.dim in (2, 3)
        #: Scalars of the last step, as tensors on the device: read by the callbacks, so that logging costs no wait.
        self.scalars: dict[str, Tensor | float] = {}
        self.kl_per_dimension: Tensor | None = None
        #: Nats that each latent dimension carries about the image in the last batch that was looked at (see ``collapse``).
        self.information: Tensor | None = None
        self.look_every = look_every(total_steps)
        #: Multiple of the learning rate of each of the optimiser's groups.
        self.rates: list[float] = [1.0]
        self.followers = followers(vae)
        #: Counts codes over an epoch, or over a tenth of a run that has fewer than ten epochs.
        self.codes = CodeWatch(min(steps_per_epoch, max(1, total_steps // 10)))
        self.holes = HoleWatch()
        #: Looks at every step before its update is made.
        self.guard = Guard(self, config.on_nonfinite)
        self._parts: list[dict[str, Tensor | float]] = []
        #: Parts of the model that follow a schedule of their own, such as a temperature.
        self._scheduled: list[Any] = [part for part in vae.modules() if hasattr(part, "set_step")]
        #: Which of the validation batches are this process's.
        self.validation_order: ValidationOrder | None = None
        #: The last step's output without its graph, for the opponents; kept where a loss has one.
        self.last_output: VAEOutput | None = None
        self._keep_output = any(has_opponent(loss) for loss in losses.values())
        #: Keeps parts of the model as they are, throughout or for the first epochs.
        phase = None if config.freeze_epochs is None else config.freeze_epochs * steps_per_epoch
        self.freezing = Freezing(vae, config.freeze, steps=phase, joint=several())
        if not any(p.requires_grad for p in self.parameters()) or self.freezing.leaves_nothing(self):
            raise ValueError(f"training.freeze={list(config.freeze)} leaves nothing to train; freeze less")
        if self.channels_last:
            # By weight: a network may have kernels of images and of volumes (BetaVae25D).
            for parameter in vae.parameters():
                if parameter.ndim in (4, 5):
                    parameter.data = parameter.data.contiguous(memory_format=_layout(parameter.ndim - 2))

    def whole_model(self) -> nn.Module:
        """Return the model with its present weights."""
        return self.vae

    # -- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the total loss of one batch."""
        self.freezing.begin(self.global_step)
        for part in self._scheduled:
            part.set_step(self.global_step)
        self.guard.begin(batch, self.global_step, batch_idx % self.config.accumulate == 0)
        computed = self._losses_or_none(batch)
        if computed is None:
            # Nothing of this batch may reach the weights, yet every process must pass through its backward pass.
            self.scalars = self._over_accumulation({"train/total": math.nan}, batch_idx)
            self.last_output = self.information = None
            return torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0
        total, output, terms = computed
        scalars: dict[str, Tensor | float] = {f"train/{name}": value for name, value in terms.items()}
        scalars["train/total"] = total.detach()
        looks = (self.global_step + 1) % self.look_every == 0
        self.information = information_of(output, joint=several()) if looks else None
        if (self.global_step + 1) % self.config.log_every == 0:
            self._diagnose(output, batch, "train", scalars)
        self.scalars = self._over_accumulation(scalars, batch_idx)
        self.guard.note(total.detach(), output)
        self.codes.add(output, "train")
        self.last_output = detached(output) if self._keep_output else None
        return total

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at the images while they are in main memory.

        Raises:
            ValueError: for validation images with values that are not finite.
        """
        if self.trainer.validating or self.trainer.state.stage == "validate":
            broken = [f for f in inspect_inputs(batch) if f.kind == "not_finite"]
            if broken:
                raise ValueError(f"validation image {broken[0].file}: {broken[0].detail}: repair or remove it")
        else:
            self.guard.look_at(batch)
        return batch

    def _losses_or_none(self, batch: Batch) -> tuple[Tensor, VAEOutput, dict[str, Tensor | float]] | None:
        """Return the losses, or ``None`` where a batch cannot be computed because something in it is not finite."""
        if self.guard.broken_inputs:
            self.guard.note_failure("input")
            largest(1)
            return None
        try:
            return self._losses(batch, self.global_step, joint=several())
        except _FailedElsewhere:
            return None
        except (ValueError, ArithmeticError):
            # Distributions refuse parameters that are not finite. Anything else is no matter of numbers.
            if self.guard.diagnose_present() is None:
                raise
            self.guard.note_failure("forward")
            largest(1)
            return None

    def _over_accumulation(self, scalars: dict[str, Tensor | float], batch_idx: int) -> dict[str, Tensor | float]:
        # What is logged for a step is the mean over the batches that its gradients are accumulated from.
        if self.config.accumulate == 1:
            return scalars
        if batch_idx % self.config.accumulate == 0:
            self._parts = []
        self._parts.append(scalars)
        # A batch that could not be computed has no terms: the mean is over those of the others.
        names = {name: None for part in self._parts for name in part}
        parts = {name: [part[name] for part in self._parts if name in part] for name in names}
        return {name: sum(values) / len(values) for name, values in parts.items()}

    def on_validation_start(self) -> None:
        """Give validation its own random stream, the same each time: a resumed run may validate at other moments."""
        self._before_validation = random_state()
        torch.manual_seed(self.config.seed)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Give every batch its own noise, whichever process has it."""
        if self.validation_order is not None:
            torch.manual_seed(noise_seed(self.config.seed, self.validation_order.number(batch_idx)))

    def on_validation_end(self) -> None:
        """Continue the random stream of the training."""
        set_random_state(self._before_validation)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the terms of one batch, for the callbacks to average."""
        total, output, terms = self._losses(batch, self.global_step, sample=True)
        scalars: dict[str, Any] = {
            f"val/{name}": value for name, value in terms.items() if not name.startswith("weight/")
        }
        scalars["val/total"] = total.detach()
        self._diagnose(output, batch, "val", scalars)
        x = batch["x"]
        scalars |= {f"val/{name}": value for name, value in _agreement(self.vae, output, x).items()}
        counts = self.validation_order is None or self.validation_order.counts(batch_idx)
        if counts:
            self.codes.add(output, "val")
            self.holes.add(output)
        return {"scalars": scalars, "count": len(x) * counts}

    def _losses(
        self, batch: Batch, step: int, sample: bool | None = None, *, joint: bool = False
    ) -> tuple[Tensor, VAEOutput, dict[str, Tensor | float]]:
        # ``joint``: every process computes its share of the same batch now, so they can work out numbers together.
        batch = self.corruption(batch, self.vae.value_range)  # type: ignore[arg-type]
        x = batch["x"]
        if self.channels_last:
            x = x.to(memory_format=_layout(self.vae.dim))  # type: ignore[call-overload, arg-type]
        output = self.vae(x, batch.get("cond"), num_samples=self.num_samples, sample=sample)
        terms: dict[str, Tensor | float] = {}
        total = torch.zeros((), device=x.device)
        # Losses that are balanced against the sum of the others wait until that is known.
        adaptive: list[tuple[str, AdaptiveLoss, Tensor]] = []
        # The processes compare notes once all have come this far; numbers of the whole batch are worked out after that.
        losses = sorted(self.losses.items(), key=lambda item: joint and bool(item[1].of_batch))
        agreed = not joint
        for name, loss in losses:
            assert isinstance(loss, Loss)
            loss.step, loss.epoch = step, step / self.steps_per_epoch
            loss.gather = whole_batch if joint and loss.of_batch else None
            if loss.gather is not None and not agreed:
                self._agree()
                agreed = True
            if loss.decodes:
                # A function and no reference to the model: a copy of the losses must not copy that too.
                loss.decode = lambda z: self.vae.likelihood(z, batch.get("cond"))  # type: ignore[operator]
            value = loss(output, batch)
            terms[name] = value.detach()
            if isinstance(loss, AdaptiveLoss) and loss.adaptive:
                pixel_parameters(name, output)  # refuses the likelihood in the first step, not where the loss sets in
                adaptive.append((name, loss, value))
                continue
            weight: float | Tensor = loss.current_weight()
            total = total + weight * value
            terms[f"weight/{name}"] = weight
        if not agreed:
            self._agree()
        if torch.is_grad_enabled() and any(value.requires_grad for _, _, value in adaptive):
            gradient = reconstruction_gradient(adaptive[0][0], total, output)
            for _, loss, value in adaptive:
                loss.joint = joint
                loss.rebalance(value, output, gradient)
        for name, loss, value in adaptive:
            weight = loss.current_weight()
            total = total + weight * value
            terms[f"weight/{name}"] = weight
        return total, output, terms

    @staticmethod
    def _agree() -> None:
        """Return where every process could compute its share of the batch so far."""
        if largest(0):
            raise _FailedElsewhere

    @torch.no_grad()
    def _diagnose(self, output: VAEOutput, batch: Batch, split: str, into: dict[str, Any]) -> None:
        x = batch["x"]
        # A point mass may have a prior that its codes are to fill (WAE), and still no density.
        latents = [v for v in output.latents if v.prior is not None and v.log_q is not None]
        if latents:
            nll = -log_likelihood(output, batch).mean()
            levels = [kl_divergence(v.posterior, v.prior, z=v.z, log_q=v.log_q).mean() for v in latents]  # type: ignore[arg-type]
            kl = torch.stack(levels).sum()
            into[f"{split}/elbo"] = -(nll + kl)
            into[f"{split}/bits_per_dim"] = (nll + kl) / (_num_values(self.vae, x) * math.log(2))
            into[f"{split}/kl_nats"] = kl
            if len(levels) > 1:
                into |= {f"{split}/kl_level{level}": value for level, value in enumerate(levels)}
            # Levels one after the other, the top one first; a class (M2) has no dimensions.
            dimensions = [found for latent in latents if (found := kl_by_dimension(latent)) is not None]
            if dimensions:
                self.kl_per_dimension = torch.cat(dimensions)
        information = information_of(output, joint=split == "train" and several())
        if information is not None:
            into[f"{split}/information"] = information.sum()
        counted = [active_units(latent, joint=split == "train" and several()) for latent in output.latents]
        units = {level: found for level, found in enumerate(counted) if found is not None}
        if units:
            into[f"{split}/active_units"] = torch.stack(list(units.values())).sum()
            if len(counted) > 1:
                into |= {f"{split}/active_units_level{level}": value for level, value in units.items()}

    def reaches_all(self, batch: Batch) -> bool:
        """Return whether the losses' gradients reach every parameter that is trained, at the start and at the end.

        Args:
            batch: a few images, on the model's device.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        # Evaluation mode keeps the statistics of the data as they are; noise is drawn so that the variance takes part.
        compiled, self.vae._compiled_call_impl = self.vae._compiled_call_impl, None
        training = self.training
        self.eval()
        result = True
        with torch.enable_grad(), torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            for step in {0, self.total_steps - 1}:
                total, _, _ = self._losses(batch, step, sample=True)
                gradients = torch.autograd.grad(total, parameters, allow_unused=True) if total.requires_grad else [None]
                result &= all(gradient is not None for gradient in gradients)
        self.train(training)
        self.vae._compiled_call_impl = compiled
        return result

    # -- optimisation

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient norm before clipping, and keep a bad step away from the weights."""
        self.freezing.drop_gradients(self.global_step)
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        norm = self.gradient_norm(grads) if grads else None
        if norm is not None:
            self.scalars["train/grad_norm"] = norm
        rate = self.scalars["train/lr"] = optimizer.param_groups[0]["lr"] / self.rates[0]
        if self.guard.verdict(norm, rate):
            self.guard.passed(self.global_step, float(self.scalars.get("train/total", math.nan)))
            for follower in self.followers:
                follower.commit()
        else:
            for follower in self.followers:
                follower.discard()
            # An optimiser leaves parameters without gradients alone, and their moments.
            for parameter in self.parameters():
                parameter.grad = None
            self.scalars["train/grad_norm"] = math.nan
            self.last_output = None
        if self.config.on_nonfinite == "skip":
            self.scalars["train/skipped_updates"] = self.guard.skipped
        done = self.global_step + 1
        self.scalars |= self.codes.step_done(done, done >= self.total_steps)

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm of all gradients together."""
        return torch.nn.utils.get_total_norm(gradients)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm measured just before, or element by element."""
        if not self.config.gradient_clip:
            return
        parameters = [p for p in self.parameters() if p.grad is not None]
        if self.config.gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, self.config.gradient_clip)
        elif "train/grad_norm" in self.scalars:
            norm = torch.as_tensor(self.scalars["train/grad_norm"])
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)

    @property
    def fused(self) -> bool:
        """Whether the optimiser may update all tensors at once, which is faster."""
        # Gradient scaling (fp16) and clipping do not go together with an optimiser that unscales by itself.
        return self.config.precision != "16"

    def configure_optimizers(self) -> Any:
        """Return AdamW (fused) with linear warm-up and a cosine or constant schedule."""
        config = self.config
        groups, self.rates = rate_groups(self, self.vae, config.lr_multipliers)
        cls = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
        optimizer = cls(
            groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=self.fused
        )
        warmup = config.warmup(self.total_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if config.schedule == "constant":
                return 1.0
            progress = (step - warmup) / max(1, self.total_steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        # Groups differ in the schedule and not in the rate, which a continued run takes from its options.
        schedules: list[Any] = [lambda step, rate=rate: rate * factor(step) for rate in self.rates]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -- exact resume

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random number generators."""
        # A run that is extended continues: "this was the last batch" only held for the steps asked for then.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        checkpoint["rng"] = gather(random_state())
        checkpoint["skipped_updates"] = self.guard.skipped
        checkpoint["codes"] = self.codes.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the generators' state; it is set when training starts, after everything else has drawn from them."""
        self._rng = checkpoint["rng"]
        self.guard.skipped = checkpoint.get("skipped_updates", 0)
        if world().rank == 0:
            self.codes.restore(checkpoint.get("codes", []))

    def on_train_start(self) -> None:
        """Continue the random stream of the interrupted run, or start one: each process has its own."""
        place, states = world(), getattr(self, "_rng", [])
        if len(states) == place.size:
            set_random_state(states[place.rank])
            return
        torch.manual_seed(noise_seed(self.config.seed, place.rank, self.global_step))
        if states and place.rank == 0:
            log.info(
                "continuing with %d processes a run of %d: same images in the same order, other noise from here on",
                place.size,
                len(states),
            )


class _FailedElsewhere(Exception):
    """Another process could not compute its share of the batch, so the whole batch is left out."""


def _num_values(vae: Any, x: Tensor) -> float:
    """Return how many values a sample has: those of an image; a model of sentences counts its tokens."""
    return float(vae.num_values(x)) if hasattr(vae, "num_values") else float(x[0].numel())


def _agreement(vae: Any, output: VAEOutput, x: Tensor) -> dict[str, Tensor]:
    """Return how near the decoded modes of the posterior are to the batch: PSNR in dB, unless the model has its own."""
    if hasattr(vae, "agreement"):
        return vae.agreement(output, x)
    low, high = vae.value_range
    mode = vae.decode(output.latents[0].posterior)
    error = (mode.float().clamp(low, high) - x.float()).square().flatten(1).mean(1)
    return {"psnr": (10 * torch.log10((high - low) ** 2 / error.clamp(min=1e-12))).mean()}


def build(vae: nn.Module, losses: Mapping[str, Loss], *, seed: int) -> None:
    """Let the losses create what depends on the model: a discriminator, a projection.

    Args:
        vae: the model.
        losses: name to loss.
        seed: of their weights; the caller's random stream stays where it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for loss in losses.values():
            axes = vae.dim if vae.image_size is None else 0
            loss.build(in_channels=vae.in_channels, latent_dim=vae.latent_dim, dim=vae.dim, latent_axes=axes)  # type: ignore[arg-type]


def _layout(dim: int) -> torch.memory_format:
    return torch.channels_last_3d if dim == 3 else torch.channels_last
