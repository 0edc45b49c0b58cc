"""A codebook that follows moving averages of the vectors assigned to each code, equal on all processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import embedding

from omnivae.distributions import at_least_float32

#: Rounds of k-means for the initial codes; the moving averages go on from there.
ROUNDS = 10
#: Vectors for each code that the first seeds are drawn from.
SEEDED_FROM = 16


@dataclass(frozen=True)
class Statistics:
    """What one batch says about a codebook.

    Attributes:
        counts: vectors assigned to each code, ``[M]``.
        sums: their sums, ``[M, C]``.
        candidates: for each code a vector of the joint batch to be reborn as, ``[M, C]``; zero where another process has it.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor


class Codebook(nn.Module):
    """M codes e_i = m_i / n_i, with n_i <- g n_i + (1 - g) |S_i| and m_i <- g m_i + (1 - g) sum of S_i.

    S_i are the batch's vectors nearest to code i (van den Oord et al., Neural Discrete Representation Learning, 2017,
    appendix A.1). In evaluation mode nothing changes. In training mode a forward pass either updates the codes at once, or,
    where a trainer has set ``deferred``, remembers what the batch says until the trainer calls :meth:`commit` (or
    :meth:`discard`): a step may be left out, accumulated over several batches, or fail in another process, so that no process
    can count on the others within its forward pass.

    The first training batch provides the initial codes, unless :meth:`start` has found them by k-means before.

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
    updates: Tensor

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
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        #: Set by a trainer: what batches say is kept in ``pending`` until it calls ``commit``.
        self.deferred = False
        self.pending: list[Statistics] = []
        # Drawing needs the number of updates, which is on the device: asked for once, then counted.
        self._updates: int | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest codes, and learn from them in training mode.

        Args:
            x: vectors ``[..., C]``.

        Returns:
            Codes ``[..., C]`` without gradient, and their numbers ``[...]``.
        """
        with torch.no_grad():
            flat = x.detach().flatten(0, -2).to(self.codes.dtype)
            if self.training and not self.deferred:
                self._start_from(flat)
            number = self.nearest(flat)
            code = self.look_up(number)
            if self.training:
                self._collect(flat, number)
        return code.reshape(x.shape).to(x.dtype), number.reshape(x.shape[:-1])

    def nearest(self, flat: Tensor) -> Tensor:
        """Return the number of the code nearest to each vector of ``[N, C]``."""
        return _nearest(flat, self.codes)

    def look_up(self, number: Tensor) -> Tensor:
        """Return codes by number, ``[...]`` to ``[..., C]``."""
        return embedding(number, self.codes)

    # -- learning

    @torch.no_grad()
    def start(self, flat: Tensor, seed: int = 0) -> None:
        """Set the codes to the centres of clusters of vectors, the same for the same arguments.

        Lloyd's k-means from seeds that keep their distance (Arthur & Vassilvitskii, k-means++, 2007).

        Args:
            flat: vectors ``[N, C]``; where there are fewer than codes, codes coincide until they are revived.
            seed: of the vectors that the clusters start from.
        """
        flat = flat.detach().to(self.codes)
        codes = _seeds(flat, len(self.codes), torch.Generator().manual_seed(seed))
        for _ in range(ROUNDS):
            share, sums = _assigned(flat, _nearest(flat, codes), len(codes))
            codes = torch.where(share.unsqueeze(1) > 0, sums / share.clamp(min=1).unsqueeze(1), codes)
        # Every code is born with an average life: which are needed, training will tell.
        self.codes.copy_(codes)
        self.counts.fill_(len(flat) / len(codes))
        self.sums.copy_(codes * self.counts.unsqueeze(1))
        self.started.fill_(True)

    @torch.no_grad()
    def commit(self) -> None:
        """Move the codes by what the batches since the last commit say; all processes must call it together."""
        if not self.pending:
            return
        counts = torch.stack([part.counts for part in self.pending]).sum(0)
        sums = torch.stack([part.sums for part in self.pending]).sum(0)
        generator = self._generator()
        chosen = torch.randint(len(self.pending), (len(counts),), generator=generator).to(counts.device)
        candidates = torch.stack([part.candidates for part in self.pending])[
            chosen, torch.arange(len(counts)).to(chosen)
        ]
        if self._world() > 1:
            joint = torch.cat([counts.unsqueeze(1), sums, candidates], 1)
            distributed.all_reduce(joint)
            counts, sums, candidates = joint[:, 0], *joint[:, 1:].chunk(2, 1)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # A code that nothing has reached for thousands of steps keeps its place: 0 / 0 has none.
        known = self.counts > torch.finfo(self.counts.dtype).tiny
        self.codes.copy_(torch.where(known.unsqueeze(1), self.sums / self.counts.unsqueeze(1), self.codes))
        if self.revive_below > 0:
            average = self.counts.mean()
            dead = self.counts < self.revive_below * average
            codes = torch.where(dead.unsqueeze(1), candidates, self.codes)
            # Born with an average life, or it would die of its youth in the next step.
            self.counts.copy_(torch.where(dead, average, self.counts))
            self.sums.copy_(torch.where(dead.unsqueeze(1), codes * average, self.sums))
            self.codes.copy_(codes)
        self.updates += 1
        self._updates = None if self._updates is None else self._updates + 1
        self.pending = []

    def leave_to_python(self) -> None:
        """Exclude from compilation what draws, remembers and talks to other processes; called before a model is compiled.

        No decorator does it: the compiler takes seconds to import.
        """
        for name in ("_collect", "_first"):
            setattr(self, name, torch.compiler.disable(getattr(self, name)))

    def discard(self) -> None:
        """Forget what the batches since the last commit say."""
        self.pending = []

    def _collect(self, flat: Tensor, number: Tensor) -> None:
        counts, sums = _assigned(flat, number, len(self.codes))
        self.pending.append(Statistics(counts, sums, self._candidates(flat, len(self.pending))))
        if not self.deferred:
            self.commit()

    def _candidates(self, flat: Tensor, part: int) -> Tensor:
        """Return a vector of the joint batch for each code, or zero where another process has it: their sum is the vector."""
        # Drawn from the joint batch, and from no process's own random stream: one process would draw the same.
        world, rank = self._world(), distributed.get_rank() if self._world() > 1 else 0
        drawn = torch.randint(world * len(flat), (len(self.codes),), generator=self._generator(part)).to(flat.device)
        own = drawn // len(flat) == rank
        return torch.where(own.unsqueeze(1), flat[drawn % len(flat)], 0)

    def _generator(self, part: int = -1) -> torch.Generator:
        if self._updates is None:
            self._updates = int(self.updates)
        digest = hashlib.sha256(f"codebook {self._updates} {part}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: object) -> None:
        self._updates = None
        self.pending = []
        super()._load_from_state_dict(state_dict, prefix, *arguments)  # type: ignore[arg-type]

    def _start_from(self, flat: Tensor) -> None:
        # No branch on the device's values: an accelerator would have to be waited for in every step.
        size = torch.full_like(self.counts, len(flat) * self._world() / len(self.counts))
        vectors = self._first(flat)
        codes = torch.where(self.started, self.codes, vectors)
        self.sums.copy_(torch.where(self.started, self.sums, codes * size.unsqueeze(1)))
        self.counts.copy_(torch.where(self.started, self.counts, size))
        self.codes.copy_(codes)
        self.started.fill_(True)

    def _first(self, flat: Tensor) -> Tensor:
        vectors = self._candidates(flat, -2)
        if self._world() > 1:
            distributed.all_reduce(vectors)
        return vectors

    def _world(self) -> int:
        # Asked in every step: a model is built before the trainer starts its processes.
        if not (self.sync and distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size()


def _nearest(flat: Tensor, codes: Tensor) -> Tensor:
    # Around the codes' mean: |e|^2 - 2 x e of far-off vectors would lose the digits that tell codes apart.
    flat, codes = at_least_float32(flat), at_least_float32(codes)
    centre = codes.mean(0)
    codes = codes - centre
    return torch.addmm(codes.square().sum(1), flat - centre, codes.T, alpha=-2).argmin(1)


def _seeds(flat: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` vectors, each drawn with a probability that grows with the square of its distance to those before."""
    # Enough to find the clusters of: a seed costs a look at all of them.
    drawn = torch.rand(count, generator=generator).to(flat)
    flat = flat[torch.randperm(len(flat), generator=generator)[: SEEDED_FROM * count].to(flat.device)]
    chosen = flat[:1]
    distance = (flat - chosen).square().sum(1)
    for u in drawn[1:]:
        total = distance.cumsum(0)
        # Where all that is left coincides with a code, any will do.
        place = torch.searchsorted(total, u * total[-1], right=True).clamp(max=len(flat) - 1)
        chosen = torch.cat([chosen, flat[place].reshape(1, -1)])
        distance = torch.minimum(distance, (flat - chosen[-1]).square().sum(1))
    return chosen


def _assigned(flat: Tensor, number: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Return how many vectors each code has, and their sums."""
    counts = flat.new_zeros(num_codes).index_add_(0, number, torch.ones_like(flat[:, 0]))
    return counts, flat.new_zeros(num_codes, flat.shape[1]).index_add_(0, number, flat)
