"""What the metrics look at: the model's view of one group of images.

Randomness belongs to the image, not to the batch: each image's posterior samples come from a generator seeded with the
run's seed and the SHA-256 of the image's key, so batch size and order change nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian, closed_form_kl, kl_elements

#: Pixel values decoded at once while log-weights are computed; bounds the memory of the K samples.
DECODE_BUDGET = 2**20


class Inference:
    """A model's posterior, reconstruction and log-weights for one batch of images, each computed when asked for.

    Args:
        model: a VAE in evaluation mode.
        x: images in the model's value range, ``[B, C, *S]``.
        keys: a stable name for each image.
        cond: condition, ``[B, E]``.
        target: what the reconstruction is compared with; ``x`` by default.
        num_samples_elbo: posterior samples K for the ELBO.
        num_samples_nll: posterior samples K for the importance-weighted bound.
        seed: seed of the posterior noise.
    """

    def __init__(
        self,
        model: Any,
        x: Tensor,
        keys: Sequence[str],
        *,
        cond: Tensor | None = None,
        target: Tensor | None = None,
        num_samples_elbo: int = 10,
        num_samples_nll: int = 100,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.x = x
        self.keys = list(keys)
        self.cond = cond
        self.target = x if target is None else target
        self.num_samples_elbo = num_samples_elbo
        self.num_samples_nll = num_samples_nll
        self.seed = seed

    @cached_property
    def posterior(self) -> Any:
        """q(z|x) of the batch."""
        return self.model.encode(self.x, self.cond)

    @cached_property
    def reconstruction(self) -> Tensor:
        """The decoded posterior mode, clamped to the value range as a stored image would be, ``[B, C, *S]``."""
        return self.model.decode(self.posterior, self.cond).clamp(*self.model.value_range)

    @cached_property
    def prior(self) -> Any:
        """p(z) of the batch."""
        return self.model.prior(self.posterior.shape, self.model.encode, self.cond)

    @cached_property
    def kl_elements(self) -> Tensor | None:
        """KL of each latent element in nats ``[B, C, *S]``, or ``None`` where it does not split into elements.

        With several levels the KL of a level is averaged over ``num_samples_elbo`` samples of those above, and all levels
        are packed into one tensor as in ``encode``.
        """
        if getattr(self.posterior, "num_levels", 1) > 1:
            return self._kl_of_levels()
        if not isinstance(self.posterior, DiagonalGaussian):
            return None
        return kl_elements(self.posterior, self.prior)

    @cached_property
    def elbo_terms(self) -> tuple[Tensor, Tensor]:
        """E_q[log p(x|z)] over ``num_samples_elbo`` samples, and KL(q || p), both in nats ``[B]`` float64.

        The KL is in closed form where there is one and the average over the same samples where there is none.
        """
        log_likelihood, log_ratio = self._log_terms(self.num_samples_elbo)
        exact = isinstance(self.posterior, DiagonalGaussian) or hasattr(self.posterior, "closed_form_kl")
        closed = closed_form_kl(self.posterior, self.prior) if exact else None
        kl = -log_ratio.mean(0) if closed is None else closed.double().cpu()
        return log_likelihood.mean(0), kl

    @cached_property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z|x) in nats for ``num_samples_nll`` samples, ``[K, B]`` float64."""
        log_likelihood, log_ratio = self._log_terms(self.num_samples_nll)
        return log_likelihood + log_ratio

    # -- inside

    def _log_terms(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and log p(z) - log q(z|x), each ``[K, B]`` float64 on the CPU."""
        if isinstance(self.posterior, DiagonalGaussian):
            return self._gaussian_terms(num_samples)
        return self._general_terms(num_samples)

    def _gaussian_terms(self, num_samples: int) -> tuple[Tensor, Tensor]:
        q = self.posterior
        # Samples a draw: a function of the image's own size only, so that the noise does not depend on the batch.
        per_draw = min(num_samples, max(1, DECODE_BUDGET // max(self.x[0].numel(), q.mean[0].numel())))
        images = min(len(self.x), max(1, DECODE_BUDGET // (per_draw * max(self.x[0].numel(), q.mean[0].numel()))))
        # Parts of one size: a smaller last part could run through other kernels, whose last digits differ.
        while len(self.x) % images:
            images -= 1
        likelihoods, ratios = [], []
        for start in range(0, len(self.x), images):
            part = slice(start, start + images)
            mean, stddev, logvar = q.mean[part], q.stddev[part], q.logvar[part]
            cond = None if self.cond is None else self.cond[part]
            prior = self.model.prior(mean.shape, self.model.encode, cond)
            generators = [generator_of(key, self.seed) for key in self.keys[part]]
            part_likelihoods, part_ratios = [], []
            for done in range(0, num_samples, per_draw):
                k = min(per_draw, num_samples - done)
                draws = [torch.randn((k, *mean.shape[1:]), dtype=mean.dtype, generator=g) for g in generators]
                eps = torch.stack(draws, dim=1).to(mean.device)
                z = mean + stddev * eps
                log_q = -0.5 * (eps.square() + logvar + math.log(2 * math.pi))
                log_x = self.model.likelihood(z, cond, size=q.input_size).log_prob(self.target[part])
                part_likelihoods.append(log_x.double().cpu())
                part_ratios.append((prior.log_prob(z).double() - log_q.double().flatten(2).sum(-1)).cpu())
            likelihoods.append(torch.cat(part_likelihoods))
            ratios.append(torch.cat(part_ratios))
        return torch.cat(likelihoods, dim=1), torch.cat(ratios, dim=1)

    @torch.no_grad()
    def _kl_of_levels(self) -> Tensor:
        per_draw = min(self.num_samples_elbo, max(1, DECODE_BUDGET // self.x[0].numel()))
        found = []
        for index, key in enumerate(self.keys):
            part = slice(index, index + 1)
            cond = None if self.cond is None else self.cond[part]
            total: Any = 0.0
            with _seeded(key, self.seed, self.x.device):
                for done in range(0, self.num_samples_elbo, per_draw):
                    k = min(per_draw, self.num_samples_elbo - done)
                    output = self.model(self.x[part], cond, num_samples=k, sample=True)
                    levels = [kl_elements(latent.posterior, latent.prior) for latent in output.latents]
                    total = total + k / self.num_samples_elbo * self.model.pack(levels)
            found.append(total)
        return torch.cat(found)

    def _general_terms(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Any posterior with a density, one image at a time: its own ``rsample`` under the image's seed."""
        per_draw = min(num_samples, max(1, DECODE_BUDGET // self.x[0].numel()))
        likelihoods, ratios = [], []
        for index, key in enumerate(self.keys):
            part = slice(index, index + 1)
            cond = None if self.cond is None else self.cond[part]
            part_likelihoods, part_ratios = [], []
            with _seeded(key, self.seed, self.x.device):
                for done in range(0, num_samples, per_draw):
                    k = min(per_draw, num_samples - done)
                    output = self.model(self.x[part], cond, num_samples=k, sample=True)
                    ratio = torch.zeros(k, 1, dtype=torch.float64)
                    for latent in output.latents:
                        if latent.prior is None or latent.log_q is None:
                            raise ValueError(
                                "the posterior of this model has no density, so elbo, nll, kl and bits_per_dim are not "
                                "defined; choose from psnr, ssim, ms_ssim, mse, l1"
                            )
                        ratio = ratio + (latent.prior.log_prob(latent.z).double() - latent.log_q.double()).cpu()
                    part_likelihoods.append(output.likelihood.log_prob(self.target[part]).double().cpu())
                    part_ratios.append(ratio)
            likelihoods.append(torch.cat(part_likelihoods))
            ratios.append(torch.cat(part_ratios))
        return torch.cat(likelihoods, dim=1), torch.cat(ratios, dim=1)


def generator_of(key: str, seed: int) -> torch.Generator:
    """Return the generator of one image's posterior noise.

    Args:
        key: the image's stable name.
        seed: the run's seed.

    Returns:
        A CPU generator, so that a GPU sees the same noise.
    """
    return torch.Generator().manual_seed(_seed(key, seed))


def _seed(key: str, seed: int) -> int:
    digest = hashlib.sha256(hashlib.sha256(key.encode()).digest() + str(int(seed)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def _seeded(key: str, seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(key, seed))
        yield
