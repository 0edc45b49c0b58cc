"""Rules about the latent: collapse, the balance of KL and reconstruction, a latent that nothing regularises."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np

from omnivae.jobs.doctor.records import Record
from omnivae.jobs.doctor.registry import Finding, number, number_plain, rule

#: A dimension below this many nats carries nothing (a bound on each dimension's KL: Lucas et al., Don't Blame the ELBO!, 2019).
DEAD_NATS = 0.01
#: Of the dimensions, so many may be unused before it is worth a word.
USED_SHARE = 0.25
#: The KL may take up to this share of the loss; beyond it the reconstruction is given up for the prior.
KL_SHARE = 0.8
#: Below this share, and above so many nats for each latent element, samples from the prior are not images: a posterior of
#: n nats is about exp(-n) as wide as the prior.
LOOSE_SHARE, LOOSE_NATS = 1e-2, 3.0
#: Growth of the KL between the middle and the end of a run that is no longer learning but leaving.
KL_GROWTH = 10.0
#: Reconstructions that differ less than this from each other, relative to the images, ignore the input.
VARIATION = 0.05


@rule("posterior_collapse", "whether the latent carries information", needs=["train/kl_nats"], rows=10)
def posterior_collapse(record: Record) -> Iterator[Finding]:
    """KL near 0 in every dimension: the decoder ignores z (Bowman et al., 2015; document 3's advice is the wrong way round)."""
    kl = record.curves["train/kl_nats"]
    level, dims = kl.level(), record.dimensions
    weight = record.weight("kl")
    largest = float(np.max(dims)) if len(dims) else math.nan
    collapsed = level < DEAD_NATS * max(1, len(dims)) and not (len(dims) and largest >= 10 * DEAD_NATS)
    if not math.isnan(largest) and largest < DEAD_NATS:
        collapsed = True
    # Free bits hold the KL up over a posterior that is the same for every image: it still says nothing.
    information = record.curves.get("train/information")
    silent = information is not None and information.level() < DEAD_NATS
    collapsed = collapsed or silent
    if weight is None or not math.isfinite(level):
        return
    length = max(100, record.step // 2)
    if collapsed:
        smooth = kl.smooth()
        top = float(np.max(smooth.values))
        fell = next(
            (int(s) for s, v in zip(smooth.steps, smooth.values, strict=True) if v < max(0.1 * top, level * 1.01)), None
        )
        each = f", the largest dimension holds {number(largest)}" if len(dims) else ""
        since = f" (fell from {number(top)} by step {fell})" if top > 10 * max(level, 1e-9) and fell is not None else ""
        told = ", and the latent tells images apart by less than 0.01 nats" if silent and level > DEAD_NATS else ""
        ignored = ""
        if record.look is not None and record.look.variation is not None and record.look.variation < VARIATION:
            ignored = (
                f"; reconstructions of different images differ by {record.look.variation:.1%} of what the images do"
            )
        yield Finding(
            "posterior_collapse",
            "critical",
            f"the KL is {number(level)} nats at the end{each}{since}{told}{ignored}",
            "the posterior has collapsed onto the prior: the latent carries nothing and every image is decoded alike",
            "lower the KL weight, or ramp it up slowly, or leave each latent element some free nats; a larger weight would "
            "make it worse",
            _gentler(record, weight, length),
        )
        return
    active = int(np.sum(dims >= DEAD_NATS)) if len(dims) else 0
    if len(dims) >= 8 and active < USED_SHARE * len(dims):
        yield Finding(
            "posterior_collapse",
            "note",
            f"{active} of {len(dims)} latent dimensions hold {DEAD_NATS} nats or more",
            "most of the latent is unused; that is harmless, unless reconstructions lack detail",
            "where detail is missing, lower the KL weight or ramp it up slowly; else a smaller latent does the same",
            (*_gentler(record, weight, length)[:2], f"--model.latent_dim {max(2, 2 * active)}"),
        )


@rule("kl_balance", "the share of the KL in the loss", needs=["train/kl_nats", "train/weight/kl"], rows=10)
def kl_balance(record: Record) -> Iterator[Finding]:
    """Weighted KL against everything else, and nats for each dimension (Alemi et al., Fixing a Broken ELBO, 2018)."""
    share, weight = record.terms().get("kl", math.nan), record.weight("kl")
    level = record.curves["train/kl_nats"].level()
    if weight is None or not math.isfinite(share) or not math.isfinite(level):
        return
    count = max(1, len(record.dimensions))
    if share > KL_SHARE and level > DEAD_NATS * count:
        yield Finding(
            "kl_balance",
            "warning",
            f"the weighted KL is {share:.0%} of the loss ({number(level)} nats x {number(weight)})",
            "the prior outweighs the images: details are given up to save nats",
            "lower the KL weight",
            (f"--losses.kl.weight {number_plain(weight / 4)}",),
        )
    size = record.look.latent_size if record.look is not None else None
    if size is not None and share < LOOSE_SHARE and level / size > LOOSE_NATS:
        wanted = weight * 0.1 / max(share, 1e-12)
        yield Finding(
            "kl_balance",
            "note",
            f"the weighted KL is {share:.2%} of the loss; the latent holds {number(level)} nats, {number(level / size)} in "
            "each element",
            "hardly anything holds the latent to the prior: reconstructions are good, but decoded draws from the prior will "
            "not look like the data. For a codec with a second-stage model over its latents that is as intended",
            "to sample from the prior itself, raise the KL weight step by step",
            (f"--losses.kl.weight {number_plain(wanted)}",),
        )


@rule("kl_growth", "whether the KL stays bounded", needs=["train/kl_nats"])
def kl_growth(record: Record) -> Iterator[Finding]:
    """The KL multiplies while the loss's weights stay: log-variances or means run away."""
    kl = record.curves["train/kl_nats"]
    before, after = kl.level(0.3, 0.6), kl.level(0.9)
    logged = record.curves.get("train/weight/kl")
    if logged is not None and logged.level(0.9) < 0.5 * logged.level(0.3, 0.6):
        return  # a falling weight is meant to let the KL grow
    if before > 0 and after > KL_GROWTH * before and after > 100:
        yield Finding(
            "kl_growth",
            "warning",
            f"the KL rose from {number(before)} to {number(after)} nats over the second half",
            "means or log-variances of the posterior run away",
            "lower the learning rate, and give the KL more weight if the loss hardly holds it",
            (f"--training.learning_rate {number_plain(record.option('training.learning_rate', 1e-4) / 3)}",),
        )


def _gentler(record: Record, weight: float, length: int) -> tuple[str, ...]:
    linear = {"component": "LinearSchedule", "start": 0.0, "end": weight, "length": length}
    cyclical = {"component": "CyclicalSchedule", "start": 0.0, "end": weight, "cycle_length": max(50, length // 2)}
    options = [
        f"--losses.kl.weight {number_plain(weight / 4)}",
        f"--losses.kl.weight '{json.dumps(linear)}'",
        f"--losses.kl.weight '{json.dumps(cyclical)}'",
    ]
    if record.option("losses.kl.capacity") is None:
        options.append(
            f"--losses.kl.free_bits {number_plain(max(0.1, 2 * float(record.option('losses.kl.free_bits', 0.0))))}"
        )
    return tuple(options)
