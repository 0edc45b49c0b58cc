"""The family: what each recipe is called, where it comes from, what it optimises and what it is for.

A recipe composes the model; its objective is stated here as plain data, because a model does not know its losses. It is what
``omnivae train --model.recipe NAME`` optimises where no configuration says otherwise, what ``omnivae zoo`` prints and what
``omnivae bench-family`` trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omnivae.component import suggestion
from omnivae.models import VAE

Arguments = Mapping[str, Any]
Recipe = TypeVar("Recipe", bound=Callable[..., Any])


@dataclass(frozen=True)
class Member:
    """One member of the family.

    Attributes:
        name: of its recipe, as in ``model.recipe``.
        paper: authors, title and year.
        equation: what is minimised, or what sets its model apart, in one line of plain text.
        purpose: when to choose it, in one line.
        losses: loss name to its arguments; what the recipe is trained with unless told otherwise.
        data: what it asks of the data section, such as ``{"binarize": "stochastic"}``.
        training: what it asks of the training section, such as the paper's batch size.
    """

    name: str
    paper: str
    equation: str
    purpose: str
    losses: Mapping[str, Arguments]
    data: Arguments = field(default_factory=dict)
    training: Arguments = field(default_factory=dict)


#: What ``model.recipe`` may name.
RECIPES: dict[str, Callable[..., VAE]] = {}
#: Recipe -> what is known about it.
MEMBERS: dict[str, Member] = {}

#: The evidence lower bound (Kingma & Welling, Auto-Encoding Variational Bayes, 2013).
ELBO: Mapping[str, Arguments] = {"nll": {}, "kl": {}}
#: What tokenizers are trained with before perceptual and adversarial terms: mean absolute error, a trace of KL.
RECONSTRUCTION: Mapping[str, Arguments] = {"l1": {"per_element": True}, "kl": {"weight": 1e-6}}


def member(
    *,
    paper: str,
    equation: str,
    purpose: str,
    losses: Mapping[str, Arguments] = ELBO,
    data: Arguments | None = None,
    training: Arguments | None = None,
    name: str | None = None,
) -> Callable[[Recipe], Recipe]:
    """Register a recipe under its name and state its objective.

    Args:
        paper: authors, title and year.
        equation: what is minimised, or what sets its model apart, in one line of plain text.
        purpose: when to choose it, in one line.
        losses: loss name to its arguments; the ELBO by default.
        data: what it asks of the data section.
        training: what it asks of the training section.
        name: of the recipe; that of the function by default.

    Returns:
        A decorator that returns the recipe as it is.

    Raises:
        ValueError: for a name that is taken.

    Example:
        >>> MEMBERS["beta_vae"].losses["kl"]
        {'weight': 4.0}
    """

    def register(recipe: Recipe) -> Recipe:
        key = name or recipe.__name__
        if key in RECIPES:
            raise ValueError(f"the recipe {key!r} exists already; choose another name")
        RECIPES[key] = recipe
        MEMBERS[key] = Member(key, paper, equation, purpose, losses, data or {}, training or {})
        return recipe

    return register


def members(names: Sequence[str]) -> list[Member]:
    """Return the members of these names.

    Args:
        names: recipes.

    Returns:
        One for each.

    Raises:
        ValueError: for a name that no recipe has; suggests the nearest.

    Example:
        >>> [member.name for member in members(["beta_vae"])]
        ['beta_vae']
    """
    for name in names:
        if name not in MEMBERS:
            raise ValueError(
                f"unknown recipe {name!r}{suggestion(name, MEMBERS)}; expected one of {', '.join(MEMBERS)}"
            )
    return [MEMBERS[name] for name in names]
