"""Posterior collapse, called while there is still time: how much the latent says about its image, and a monitor of it.

A posterior that is the same for every image carries nothing (Bowman et al., Generating Sentences from a Continuous Space,
2015; Lucas et al., Don't Blame the ELBO!, 2019). The KL alone does not show it: free bits hold the KL up over a posterior that
may still be constant, and every healthy run starts with a KL near zero. So what is watched is the information itself, and
whether it has begun to grow.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributions import Normal

from omnivae.distributions import SampledGaussian
from omnivae.training.callbacks import save_and_stop
from omnivae.training.distributed import from_rank_zero, whole_batch
from omnivae.types import Latent, VAEOutput

log = logging.getLogger(__name__)

#: Nats below which a dimension says nothing: a posterior mean that moves by a seventh of its own standard deviation.
SILENT = 0.01
#: Times that the latent is looked at in a run, looks that must agree, and the least number of steps that they span together.
LOOKS, AGREEING, EARLIEST = 100, 8, 100
#: Growth between the halves of the agreeing looks from which a silent latent counts as waking up.
WAKING = 1.25


def channel_information(latent: Latent, *, joint: bool = False) -> Tensor | None:
    """Return the information that each latent dimension can carry about the image, in nats.

    ``I_d = 1/2 log(1 + Var_x(μ_d) / E_x[σ_d²])``: the capacity of a channel with additive Gaussian noise (Shannon, A Mathematical
    Theory of Communication, 1948), which bounds the mutual information of a dimension from above, and is 0 exactly where the
    posterior has one mean for all images, whatever the KL is. Of a latent below others, means are relative to its prior's.

    Args:
        latent: of a batch of at least two images.
        joint: whether every process has its share of the batch.

    Returns:
        ``[C]`` (a channel's positions are added up); ``None`` for a posterior without mean and variance, or a single image.

    Example:
        >>> from omnivae import DiagonalGaussian
        >>> q = DiagonalGaussian(torch.tensor([[-1.0, 5.0], [1.0, 5.0]]), torch.zeros(2, 2))
        >>> [round(float(v), 3) for v in channel_information(Latent(q, None, q.mean[None], None))]
        [0.549, 0.0]
    """
    mean, logvar = (getattr(latent.posterior, name, None) for name in ("mean", "logvar"))
    if not isinstance(mean, Tensor) or not isinstance(logvar, Tensor) or logvar.shape != mean.shape:
        return None
    mean, logvar = mean.detach().float(), logvar.detach().float()
    # Below other latents, what says something is how far the posterior departs from the prior that those decide.
    density = getattr(latent.prior, "base_dist", None)
    if isinstance(density, Normal):
        mean = mean - density.loc.detach().float()
    if isinstance(latent.posterior, SampledGaussian):
        mean, logvar = mean[0], logvar[0]
    if joint:
        mean, logvar = whole_batch(mean), whole_batch(logvar)
    if len(mean) < 2:
        return None
    nats = torch.log1p(mean.var(0) / logvar.exp().mean(0).clamp(min=torch.finfo(mean.dtype).tiny)) / 2
    return nats.reshape(len(nats), -1).sum(1)


def information_of(output: VAEOutput, *, joint: bool = False) -> Tensor | None:
    """Return the information of every latent that has a prior, a mean and a variance, one after the other.

    Args:
        output: the model's output.
        joint: whether every process has its share of the batch.

    Returns:
        Nats, ``[C1 + C2 + ...]``; ``None`` where there is no such latent, or a single image.
    """
    told = [channel_information(latent, joint=joint) for latent in output.latents if latent.prior is not None]
    found = [nats for nats in told if nats is not None]
    return torch.cat(found) if found else None


def is_collapsed(information: Sequence[float]) -> bool:
    """Return whether the latest looks at the most informative dimension say that the latent is dead and stays dead.

    Args:
        information: nats of the most informative dimension, one number a look, oldest first.

    Returns:
        Whether each of the last ``AGREEING`` looks lies below ``SILENT`` nats and they do not grow.

    Example:
        >>> is_collapsed([3.0] + [1e-4] * 8), is_collapsed([1e-4 * 1.5**i for i in range(8)])
        (True, False)
    """
    last = list(information)[-AGREEING:]
    if len(last) < AGREEING or max(last) >= SILENT:
        return False
    half = AGREEING // 2
    return median(last[half:]) <= WAKING * median(last[:half])


def look_every(total_steps: int) -> int:
    """Return the steps between two looks: a hundredth of the run, and far enough apart to span ``EARLIEST`` steps.

    Args:
        total_steps: of the run.

    Example:
        >>> look_every(300), look_every(10_000)
        (13, 100)
    """
    return max(-(-EARLIEST // AGREEING), total_steps // LOOKS)


class CollapseMonitor(pl.Callback):
    """Watches what the latent carries and says once, within the first fifth of a run, that it carries nothing.

    Args:
        total_steps: of the run.
        action: "warn", or "stop": save and stop there.
    """

    def __init__(self, total_steps: int, action: str) -> None:
        self.every = look_every(total_steps)
        self.action = action
        self.looks: list[float] = []
        #: The step at which collapse was called.
        self.called: int | None = None
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Return the looks so far, and whether the call was made."""
        return {"looks": self.looks[-AGREEING:], "called": self.called}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the looks."""
        self.looks, self.called = list(state_dict["looks"]), state_dict["called"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look where it is time."""
        step = trainer.global_step
        information: Tensor | None = pl_module.information
        if step % self.every or trainer.fit_loop._should_accumulate() or information is None or self.called is not None:
            return
        self.looks = [*self.looks[1 - AGREEING :], float(information.max())]
        # The first steps of a learning rate that is still rising are no evidence.
        early = step < max(EARLIEST, pl_module.config.warmup(trainer.max_steps))
        # One process decides: each sees its own share of the images.
        if not from_rank_zero(not early and is_collapsed(self.looks)):
            return
        self.called = step
        log.warning(
            "%s",
            sentence(
                step,
                max(self.looks),
                len(information),
                pl_module.losses,
                text=not getattr(pl_module.vae, "pixels", True),
            ),
        )
        if self.action == "stop":
            self.stopped = True
            save_and_stop(trainer, pl_module)


def sentence(step: int, nats: float, dimensions: int, losses: Any, *, text: bool = False) -> str:
    """Return what is said when the posterior has collapsed.

    Args:
        step: at which it was noticed.
        nats: of the most informative dimension.
        dimensions: of the latent.
        losses: name to loss.
        text: whether the model is one of sentences.

    Returns:
        One sentence with the remedies.
    """
    remedies = (
        "lower losses.kl.weight, ramp it up (LinearSchedule or CyclicalSchedule), or set losses.kl.free_bits"
        if "kl" in losses
        else f"lower the weight of what holds z to the prior ({', '.join(losses)})"
    )
    weaken = "hide words from the decoder (model.word_dropout)" if text else "weaken the decoder"
    return (
        f"posterior collapse at step {step}: the most informative of {dimensions} latent dimensions carries {nats:.1g} nats about "
        f"what it encodes and is not growing, so the decoder ignores z: {remedies}, or {weaken}; `omnivae doctor` says more"
    )
