"""A codebook that follows moving averages of the vectors assigned to each code, equal on all processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import embedding

from omnivae.distributions import at_least_float32


class Codebook(nn.Module):
    """M codes e_i = m_i / n_i, with n_i <- g n_i + (1 - g) |S_i| and m_i <- g m_i + (1 - g) sum of S_i.

    S_i are the batch's vectors nearest to code i (van den Oord et al., Neural Discrete Representation Learning, 2017,
    appendix A.1). The first training batch provides the
    initial codes. In evaluation mode nothing changes.

    Args:
        num_codes: M >= 2.
        channels: size of a code.
        decay: g in [0, 1).
        revive_below: replace a code by a random vector of the batch when n_i falls below this part of the average, >= 0.
        sync: use the vectors of all processes.

    Raises:
        ValueError: for arguments outside their range.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self, num_codes: int, channels: int, *, decay: float = 0.99, revive_below: float = 0.05, sync: bool = True
    ) -> None:
        super().__init__()
        if num_codes < 2 or not 0 <= decay < 1 or not 0 <= revive_below < 1:
            raise ValueError(
                f"got num_codes={num_codes}, decay={decay}, revive_below={revive_below}; expected at least 2 codes and both "
                "others in [0, 1)"
            )
        self.decay, self.revive_below, self.sync = decay, revive_below, sync
        self.register_buffer("codes", torch.randn(num_codes, channels))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest codes, and learn from them in training mode.

        Args:
            x: vectors ``[..., C]``.

        Returns:
            Codes ``[..., C]`` without gradient, and their numbers ``[...]``.
        """
        with torch.no_grad():
            flat = x.detach().flatten(0, -2).to(self.codes.dtype)
            if self.training:
                self._start(flat)
            number = self.nearest(flat)
            code = self.look_up(number)
            if self.training:
                self._update(flat, number)
        return code.reshape(x.shape).to(x.dtype), number.reshape(x.shape[:-1])

    def nearest(self, flat: Tensor) -> Tensor:
        """Return the number of the code nearest to each vector of ``[N, C]``."""
        # Around the codes' mean: |e|^2 - 2 x e of far-off vectors would lose the digits that tell codes apart.
        flat, codes = at_least_float32(flat), at_least_float32(self.codes)
        centre = codes.mean(0)
        codes = codes - centre
        return torch.addmm(codes.square().sum(1), flat - centre, codes.T, alpha=-2).argmin(1)

    def look_up(self, number: Tensor) -> Tensor:
        """Return codes by number, ``[...]`` to ``[..., C]``."""
        return embedding(number, self.codes)

    def _start(self, flat: Tensor) -> None:
        # No branch on the device's values: an accelerator would have to be waited for in every step.
        size = torch.full_like(self.counts, len(flat) * self._world() / len(self.counts))
        codes = torch.where(self.started, self.codes, self._vectors(flat))
        self.sums.copy_(torch.where(self.started, self.sums, codes * size.unsqueeze(1)))
        self.counts.copy_(torch.where(self.started, self.counts, size))
        self.codes.copy_(codes)
        self.started.fill_(True)

    def _update(self, flat: Tensor, number: Tensor) -> None:
        counts = torch.zeros_like(self.counts).index_add_(0, number, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, number, flat)
        if self._world() > 1:
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # A code that nothing has reached for thousands of steps keeps its place: 0 / 0 has none.
        known = self.counts > torch.finfo(self.counts.dtype).tiny
        self.codes.copy_(torch.where(known.unsqueeze(1), self.sums / self.counts.unsqueeze(1), self.codes))
        if self.revive_below > 0:
            average = self.counts.mean()
            dead = self.counts < self.revive_below * average
            codes = torch.where(dead.unsqueeze(1), self._vectors(flat), self.codes)
            # Born with an average life, or it would die of its youth in the next step.
            self.counts.copy_(torch.where(dead, average, self.counts))
            self.sums.copy_(torch.where(dead.unsqueeze(1), codes * average, self.sums))
            self.codes.copy_(codes)

    def _vectors(self, flat: Tensor) -> Tensor:
        """Return one vector of the batch for each code, the same on all processes."""
        vectors = flat[torch.randint(len(flat), (len(self.codes),), device=flat.device)]
        if self._world() > 1:
            distributed.broadcast(vectors, 0)
        return vectors

    def _world(self) -> int:
        # Asked in every step: a model is built before the trainer starts its processes.
        if not (self.sync and distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size()
