"""Prior holes while a model is trained: does what the prior draws lie where the posteriors of images are?

Measured at each validation as the metric ``prior_holes`` does (Rosca et al., Distribution Matching in Variational Inference, 2018),
for models with a vector latent, a diagonal Gaussian posterior and a prior that depends on nothing. Spatial latents are left
out: such models are trained to reconstruct, and draw from a second stage.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian
from omnivae.metrics.aggregate import share_in_holes
from omnivae.training.distributed import gather
from omnivae.training.world import world
from omnivae.types import VAEOutput

log = logging.getLogger(__name__)

#: Images that are looked at in a process, the fewest that say anything, and draws of the prior.
MOST_IMAGES, FEWEST_IMAGES, DRAWS = 1024, 64, 2048
#: Share of the prior's mass in holes above which a model draws mostly things it never saw; validations in a row that must say so.
MANY, AGREEING = 0.5, 2


class HoleWatch:
    """Keeps the posteriors of a validation, and says what share of the prior they leave empty."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._logvars: list[Tensor] = []
        self._agreeing = 0

    def add(self, output: VAEOutput) -> None:
        """Keep the posteriors of a batch.

        Args:
            output: the model's output.
        """
        posterior = output.latents[0].posterior
        if not isinstance(posterior, DiagonalGaussian) or posterior.mean.ndim != 2 or posterior.cond is not None:
            return
        if len(output.latents) > 1 or sum(map(len, self._means)) >= MOST_IMAGES:
            return
        self._means.append(posterior.mean.detach().float().cpu())
        self._logvars.append(posterior.logvar.detach().float().cpu())

    @torch.no_grad()
    def figures(self, vae: Any, step: int) -> dict[str, float]:
        """Return the share and start again; all processes must call it together, and draw alike.

        Args:
            vae: the model.
            step: optimiser steps done.

        Returns:
            ``val/prior_holes``; empty where there is nothing to measure.
        """
        kept = [(torch.cat(self._means), torch.cat(self._logvars))] if self._means else []
        self._means, self._logvars = [], []
        parts = [part for parts in gather(kept) for part in parts]
        if sum(len(mean) for mean, _ in parts) < FEWEST_IMAGES or getattr(vae, "prior", None) is None:
            return {}
        mean, logvar = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        # However many processes the images were shared by, they meet the same noise.
        order = mean[:, 0].argsort()
        mean, logvar = mean[order], logvar[order]
        device = next(vae.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            prior = vae.prior(torch.Size((1, mean.shape[1])), vae.encode, None)
            draws = prior.sample(torch.Size((max(DRAWS, len(mean)),))).flatten(1).float().cpu()
        share = share_in_holes(mean, logvar, draws, generator=torch.Generator().manual_seed(0))
        self._agreeing = self._agreeing + 1 if share > MANY else 0
        if self._agreeing == AGREEING and world().rank == 0:
            log.warning(
                "step %d: %.0f %% of what the prior draws lies where no image is encoded (prior holes), so samples will be of "
                "nothing seen: raise losses.kl.weight, learn the prior (vamp_vae, mixture_vae, flow_prior_vae), or use the model "
                "for its codes only",
                step,
                100 * share,
            )
        return {"val/prior_holes": share}
