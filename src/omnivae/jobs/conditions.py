"""What conditional models are told, in commands: by the images' labels and attributes, or by name on the command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from omnivae.data.condition import Condition
from omnivae.models import VAE, SemiSupervisedVAE

log = logging.getLogger(__name__)

#: Key of the condition's schema in a model's statistics.
COND = "cond"
#: What ``--cond`` says for one row of every class.
EVERY = "all"


def condition_of(model: VAE) -> Condition | None:
    """Return what a model was told in its training, or ``None`` for one without a condition.

    Args:
        model: the model.
    """
    known = model.statistics.get(COND)
    return None if known is None else Condition.from_dict(known)


def needed_condition(model: VAE) -> Condition | None:
    """Return what a model must be told, or ``None`` where it takes no condition.

    Args:
        model: the model.

    Raises:
        ValueError: for a conditional model that was not trained by a run, so that nobody knows what its condition means.
    """
    if model.cond_dim is None:
        return None
    known = condition_of(model)
    if known is None:
        raise ValueError(
            f"this model takes a condition of {model.cond_dim} numbers and does not say what they mean (no 'cond' in its "
            "statistics.json): call it from Python with cond, or train it with `omnivae train`"
        )
    return known


def told(model: VAE, text: str | None, option: str = "--cond", *, x: Tensor | None = None) -> Tensor | None:
    """Return the condition that a user named for one image.

    Args:
        model: the model.
        text: a class, or ``name=value`` separated by commas.
        option: the option that said it, for errors.
        x: the image, ``[C, *S]``; where nobody names its class, a model that infers classes (m2_vae) names it.

    Returns:
        ``[E]`` on the model's device, or ``None`` for a model without a condition.

    Raises:
        ValueError: for a condition that is missing, unknown, or given to a model without one.
    """
    known = needed_condition(model)
    if known is None:
        if text is not None:
            raise ValueError(f"got {option} {text}; this model takes no condition: leave {option} out")
        return None
    if text is None and x is not None and isinstance(model, SemiSupervisedVAE):
        with torch.no_grad():
            likeliest = model.classify(x[None])[0].argmax()
        return torch.eye(model.num_classes, device=x.device)[likeliest]
    if text is None:
        raise ValueError(f"this model needs a condition: say {option} {example(known)}")
    left_out = known.unsaid(text)
    if left_out:
        named = ", ".join(f"{name}={_shown(value)}" for name, value in left_out.items())
        log.warning("%s leaves out %s: the mean, or the most common value, of the training images", option, named)
    return known.parse(text).to(next(model.parameters()).device)


def example(known: Condition) -> str:
    """Return how a user may write a condition.

    Args:
        known: the condition.

    Example:
        >>> from omnivae.data.condition import Attribute
        >>> example(Condition((Attribute("label", "class", ("cat", "dog"), usual="cat"),)))
        'cat (one of cat, dog)'
    """
    if known.classes:
        shown = ", ".join(known.classes[:20]) + (", ..." if len(known.classes) > 20 else "")
        return f"{known.classes[0]} (one of {shown})"
    return ",".join(f"{a.name}={_shown(a.usual)}" for a in known.attributes[:4]) + (
        "" if len(known.attributes) <= 4 else ",..."
    )


def every_class(known: Condition) -> tuple[list[str], Tensor]:
    """Return the classes of a condition that is one class, and the condition of each.

    Args:
        known: the condition.

    Returns:
        Their names, and ``[K, E]``.

    Raises:
        ValueError: for a condition that is not one class.
    """
    if not known.classes:
        raise ValueError(
            f"the condition has several attributes or a number, so there are no classes to go through: say {example(known)}"
        )
    return list(known.classes), torch.stack([known.parse(name) for name in known.classes])


def refuse_mismatch(recipe: str, parameters: Mapping[str, Any], known: Condition | None) -> dict[str, Any]:
    """Return the arguments of a recipe that the condition decides; refuse one without the other.

    Args:
        recipe: its name.
        parameters: its parameters.
        known: what ``data.cond`` came to.

    Returns:
        ``{"cond_dim": E}``, ``{"num_classes": K}`` or nothing.

    Raises:
        ValueError: for a conditional recipe without a condition, or a condition that the recipe does not take.
    """
    takes = [name for name in ("cond_dim", "num_classes") if name in parameters]
    if known is None:
        if takes:
            raise ValueError(
                f"the recipe {recipe!r} needs to be told something about each image: set data.cond to label (where the data has "
                "classes) or to columns of the table, or choose a recipe without a condition, such as conv_vae"
            )
        return {}
    if not takes:
        raise ValueError(
            f"data.cond is given and the recipe {recipe!r} takes no condition: choose c_vae, or leave data.cond out"
        )
    if takes == ["num_classes"]:
        if not known.classes or known.attributes[0].kind != "class":
            raise ValueError(f"the recipe {recipe!r} is about classes: set data.cond to label, or choose c_vae")
        return {"num_classes": known.size}
    return {"cond_dim": known.size}


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(f"{v:.4g}" for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
