"""What the parts of a model must agree on where it takes a condition."""

from __future__ import annotations

from typing import Any


def agreed_cond_dim(encoder: Any, decoder: Any, prior: Any) -> int | None:
    """Return the size of the condition that a model's parts take.

    Args:
        encoder: network; has ``cond_dim`` where it can take a condition.
        decoder: network, likewise.
        prior: may have ``cond_dim``, or ``takes_cond = False``.

    Returns:
        The size, or ``None`` where no part takes one.

    Raises:
        ValueError: where one part needs a condition that another refuses.
    """
    sizes = {type(part).__name__: getattr(part, "cond_dim", None) for part in (encoder, decoder)}
    if len(set(sizes.values())) > 1:
        (one, size), (other, another) = sizes.items()
        raise ValueError(
            f"{one} has cond_dim={size} and {other} has cond_dim={another}: build both with one cond_dim, or both without"
        )
    cond_dim = getattr(encoder, "cond_dim", None)
    of_prior = getattr(prior, "cond_dim", cond_dim)
    if of_prior != cond_dim:
        raise ValueError(
            f"{type(prior).__name__} has cond_dim={of_prior} and the networks have {cond_dim}: build them with one cond_dim, or "
            "choose StandardNormal"
        )
    if cond_dim is not None and not getattr(prior, "takes_cond", True):
        raise ValueError(
            f"{type(prior).__name__} cannot use a condition, which the networks take (cond_dim={cond_dim}): choose "
            "ConditionalGaussianPrior or StandardNormal, or networks without cond_dim"
        )
    return cond_dim


def agreed_support(posterior: Any, prior: Any) -> None:
    """Refuse a prior on another support than the posterior's: the ratio of their densities would mean nothing.

    Args:
        posterior: head; has ``support`` where its z is no real vector.
        prior: likewise, or ``None``.

    Raises:
        ValueError: names both.
    """
    ours, theirs = (getattr(part, "support", "real") for part in (posterior, prior))
    if prior is not None and ours != theirs:
        fitting = {"sphere": "UniformSphere", "one-hot": "UniformCategories", "real": "StandardNormal"}
        raise ValueError(
            f"{type(posterior).__name__} draws {_SUPPORTS.get(ours, ours)} and {type(prior).__name__} is a density of "
            f"{_SUPPORTS.get(theirs, theirs)}: use {fitting.get(ours, 'a prior of the same support')}, or another posterior"
        )


_SUPPORTS = {"sphere": "points of a sphere", "one-hot": "one-hot categories", "real": "real vectors"}
