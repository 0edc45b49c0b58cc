"""Which losses go with which model, and with each other: refused before training, with two things to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from omnivae.losses import AdaptiveLoss, Loss, Refusal
from omnivae.types import strides

#: What every Gaussian posterior has; the rest are terms of one kind of posterior.
OF_A_GAUSSIAN = frozenset({"density", "diagonal"})
#: Properties of a model beyond what its posterior provides.
OF_A_MODEL = frozenset(
    {
        "pixels",
        "any size",
        "planes",
        "pictures",
        "prior",
        "independent prior",
        "kl of each element",
        "vector latent",
        "one latent",
        "classes",
    }
)


def check(vae: nn.Module, losses: Mapping[str, Loss]) -> None:
    """Refuse combinations of model and losses that make no sense, before anything is computed.

    Args:
        vae: the model.
        losses: name to loss; those that need to know the value range are told the model's.

    Raises:
        ValueError: names the loss, the missing property and two valid alternatives.
    """
    if not losses:
        raise ValueError("there is no loss to train on; name at least one, such as nll and kl, or l1 and kl")
    have = properties(vae)
    for name, loss in losses.items():
        missing = loss.needs - have
        if missing:
            raise _refusal(name, loss, missing, vae, have)
        if getattr(loss, "value_range", False) is None:
            loss.value_range = vae.value_range  # type: ignore[assignment]
    if "classes" in have and not any("classes" in loss.needs for loss in losses.values()):
        raise Refusal(
            f"no loss trains the classifier of this {type(vae).__name__}",
            ("use the loss m2", "train a conditional model, such as c_vae, on labels throughout"),
        )
    _check_together(losses)


def check_size(losses: Mapping[str, Loss], size: Sequence[int]) -> None:
    """Refuse images that are too small for a loss.

    Args:
        losses: name to loss, built.
        size: spatial size of the smallest images; empty for sentences.

    Raises:
        ValueError: names the loss and two valid alternatives.
    """
    for name, loss in losses.items():
        if min(loss.seen_size(size), default=loss.least_size) < loss.least_size:
            shown = "x".join(str(n) for n in size)
            mend = "resize them (data.image_size)" if len(size) < 3 else "take larger patches (data.volume.patch_size)"
            raise Refusal(
                f"got images of {shown}; the loss {name!r} needs at least {loss.least_size} along each axis",
                (f"{mend} or {loss.smaller}" if loss.smaller else mend,
                 f"add --losses.{name}.weight 0 to train without it"),
            )  # fmt: skip


def properties(vae: nn.Module) -> frozenset[str]:
    """Return what a loss may need of a model: what the posterior provides, and which prior and latent there are.

    Args:
        vae: the model.

    Returns:
        Words that :attr:`Loss.needs` uses.

    Example:
        >>> import omnivae
        >>> two, three = (properties(omnivae.conv_vae(channels=(4,), image_size=8, dim=dim)) for dim in (2, 3))
        >>> sorted(three)[:4]
        ['any size', 'density', 'diagonal', 'independent prior']
        >>> sorted(two - three)
        ['pictures']
    """
    have = set(getattr(vae.posterior, "provides", frozenset()))
    pixels = getattr(vae, "pixels", True)
    have |= {"pixels"} if pixels else set()
    # A latent made of stacks or stretches of frames cannot have any number of them; time and space are not resized alike.
    encoder: Any = getattr(vae, "encoder", None)  # a prior over codes has none
    whole = getattr(vae, "stack_size", None) is None and not hasattr(encoder, "padded_size")
    have |= {"any size"} if encoder is None or (whole and len(set(strides(encoder, encoder.dim))) < 2) else set()
    have |= {"planes"} if pixels and vae.dim in (2, 3) else set()
    have |= {"pictures"} if pixels and vae.dim == 2 and vae.in_channels in (1, 3) else set()
    # Of several levels each has its prior, which the levels above decide; a class that is inferred is a latent too.
    levels = getattr(vae, "num_levels", 1)
    classes = {"classes"} if hasattr(vae, "classify") else set()
    prior = getattr(vae, "prior", None)
    have |= {"prior"} if prior is not None or levels > 1 else set()
    have |= {"independent prior"} if getattr(prior, "independent", False) or levels > 1 else set()
    have |= {"kl of each element"} if "independent prior" in have and ("diagonal" in have or levels > 1) else set()
    have |= {"one latent"} if levels == 1 and not classes else set()
    have |= {"vector latent"} if vae.image_size is not None and levels == 1 and not classes else set()
    return frozenset(have | classes)


def _refusal(name: str, loss: Loss, missing: frozenset[str], vae: nn.Module, have: frozenset[str]) -> Refusal:
    """Return what to say: the posterior comes first, because nothing else matters without its density."""
    if "pixels" in missing:
        return Refusal(
            f"the loss {name!r} compares pixels, and this {type(vae).__name__} reads sentences",
            ("use nll, or iwae in the place of nll and kl", "train a model of images"),
        )
    if missing & {"planes", "pictures"}:
        kind = "images or slices of volumes" if "planes" in missing else "images of 1 or 3 channels"
        return Refusal(
            f"the loss {name!r} looks at {kind} through a network trained on photographs, and this "
            f"{type(vae).__name__} is of {vae.in_channels} channels in {vae.dim}-D",
            (f"drop {name!r}", "use l1 or mse in its place"),
        )
    if "any size" in missing:
        return Refusal(
            f"the loss {name!r} resizes and turns latents, and this {type(vae).__name__} works on stacks of frames or has "
            "another stride in time than in space",
            (f"drop {name!r}", "use a model that treats all axes alike, such as kl_autoencoder"),
        )
    if "classes" in missing:
        return Refusal(
            f"the loss {name!r} sums over classes, which this {type(vae).__name__} does not infer",
            ("use the losses nll and kl", "use the recipe m2_vae"),
        )
    if "classes" in have and missing & {"one latent", "vector latent"}:
        return Refusal(
            f"the loss {name!r} is about one vector of continuous codes, and this {type(vae).__name__} infers a class beside it",
            (f"drop {name!r}", "use a model with one latent, such as conv_vae or c_vae"),
        )
    of_posterior = sorted(missing - OF_A_MODEL)
    if of_posterior:
        problem = (
            f"the loss {name!r} needs a posterior with {', '.join(of_posterior)}, which {type(vae.posterior).__name__} does not "
            "have"
        )
        other = "a gaussian posterior" if set(of_posterior) <= OF_A_GAUSSIAN else "a model whose posterior has it"
        return Refusal(problem, (loss.instead.get(of_posterior[0], f"drop {name!r}"), f"use {other}"))
    # What does a similar thing with less: only losses that this very model can be trained on.
    near = [
        other
        for other, needed in (("kl", {"density"}), ("mmd", {"prior", "one latent"}))
        if needed <= have and other != name
    ]
    drop = f"use {' or '.join(near)} in its place" if near else f"drop {name!r}"
    if "prior" in missing:
        return Refusal(
            f"the loss {name!r} compares codes with samples of the prior, and this model has none",
            (f"drop {name!r}", "use a gaussian posterior"),
        )
    if "one latent" in missing:
        return Refusal(
            f"the loss {name!r} judges one latent, this model has {getattr(vae, 'num_levels', 1)}",
            (loss.instead.get("one latent", drop), "use a model with one latent, such as conv_vae"),
        )
    if "vector latent" in missing:
        return Refusal(
            f"the loss {name!r} is about the dimensions of a vector latent, and this model's has {vae.dim} spatial axes",
            (drop, "use a model with a vector latent, such as conv_vae"),
        )
    if "kl of each element" in missing:
        return Refusal(
            f"the loss {name!r} needs a KL divergence that splits into latent elements, and that of "
            f"{type(vae.posterior).__name__} and {type(vae.prior).__name__} does not",
            (loss.instead.get("kl of each element", drop), "use a gaussian posterior with the standard normal prior"),
        )
    return Refusal(
        f"the loss {name!r} needs a prior whose dimensions are independent, which {type(vae.prior).__name__} is not",
        (loss.instead.get("independent prior", drop), "use the standard normal prior"),
    )


def _check_together(losses: Mapping[str, Loss]) -> None:
    balanced = [name for name, loss in losses.items() if isinstance(loss, AdaptiveLoss) and loss.adaptive]
    if len(balanced) == len(losses):
        raise Refusal(
            f"the adaptive weight of {balanced[0]!r} is relative to losses on the reconstruction, and there is none",
            ("add l1 or nll", f"set losses.{balanced[0]}.adaptive to false"),
        )
    for name, loss in losses.items():
        twice = sorted(set(losses) & loss.replaces)
        if twice:
            raise Refusal(
                f"the loss {name!r} stands in the place of {' and '.join(sorted(loss.replaces))}, and {' and '.join(twice)} "
                f"{'is' if len(twice) == 1 else 'are'} beside it, which counts the same thing twice",
                (f"drop {' and '.join(repr(n) for n in twice)}", loss.instead.get("together", f"drop {name!r}")),
            )
