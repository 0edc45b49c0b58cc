"""Rules about codebooks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

from omnivae.jobs.doctor.records import Record
from omnivae.jobs.doctor.registry import Finding, number, number_plain, rule
from omnivae.recipes import RECIPES

#: Codes in use, as if equally often, below which a codebook tells hardly any image from another.
FEW = 2.0
#: Share of the codebook in use, as if equally often, and share that occurs at all, below which codes are wasted.
LOW_PERPLEXITY, LOW_USAGE = 0.1, 0.25


@rule("codebook_collapse", "whether the codes are in use", needs=["train/perplexity", "train/code_usage"], rows=2)
def codebook_collapse(record: Record) -> Iterator[Finding]:
    """A few codes take all vectors, the others are never chosen again (Dhariwal et al., Jukebox, 2020, section 3.1)."""
    perplexity, usage = (record.curves[name].level() for name in ("train/perplexity", "train/code_usage"))
    size = _codes(record)
    if not math.isfinite(perplexity) or not math.isfinite(usage):
        return
    share = perplexity / size if size else usage
    if perplexity >= FEW and share >= LOW_PERPLEXITY and usage >= LOW_USAGE:
        return
    of = f" of {size:,}" if size else ""
    yield Finding(
        "codebook_collapse",
        "critical" if perplexity < FEW else "warning",
        f"over an epoch the codes' perplexity is {number(perplexity)}{of}, and {usage:.1%} of them occur",
        "the codebook has collapsed onto a few codes, which cannot tell images apart"
        if perplexity < FEW
        else "most codes carry nothing: the model is as good as one with fewer of them",
        _advice(record),
        _options(record, perplexity, size),
    )


def _argument(record: Record, name: str) -> Any:
    recipe = RECIPES.get(str(record.option("model.recipe")))
    parameters = {} if recipe is None else inspect.signature(recipe).parameters
    default = parameters[name].default if name in parameters else None
    given = record.option(f"model.{name}")
    return default if given is None else given


def _codes(record: Record) -> int | None:
    levels, codes = _argument(record, "levels"), _argument(record, "num_codes")
    if codes is not None:
        return int(codes)
    if levels is not None:
        return math.prod(int(n) for n in levels)
    return 2 ** int(_argument(record, "latent_dim")) if record.weight("entropy") is not None else None


def _advice(record: Record) -> str:
    if _argument(record, "revive_below") is not None:
        return (
            "replace unused codes sooner, let the encoder move more freely by a lower commitment, or take fewer codes; on a run of "
            "a few hundred steps a shorter memory of the codebook helps as well"
        )
    if record.weight("entropy") is not None:
        return "raise the weight of the entropy, or take fewer bits"
    return "take fewer levels: a fixed grid is as large as its levels say"


def _options(record: Record, perplexity: float, size: int | None) -> tuple[str, ...]:
    options = []
    revive, commitment, entropy = (
        _argument(record, "revive_below"),
        record.weight("commitment"),
        record.weight("entropy"),
    )
    if revive is not None:
        options.append(f"--model.revive_below {number_plain(min(0.5, max(0.1, 4 * float(revive))))}")
    if entropy is not None:
        options.append(f"--losses.entropy.weight {number_plain(4 * entropy)}")
    elif commitment is not None:
        options.append(f"--losses.commitment.weight {number_plain(commitment / 4)}")
    if size is not None and _argument(record, "num_codes") is not None:
        fewer = 2 ** max(1, math.ceil(math.log2(max(2.0, 2 * perplexity))))
        options.append(f"--model.num_codes {min(fewer, max(2, size // 2))}")
    return tuple(options)
