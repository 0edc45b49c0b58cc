"""Why a training step went bad: the step is computed again with a probe on every module, and causes are tried out.

A cause is not guessed where it can be tested: an overflow of float16 is one when float32 computes the step, an image
without contrast is to blame when a trace of noise on it mends the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from omnivae.distributions import LOGVAR_MAX
from omnivae.training.codes import notes_kept
from omnivae.training.inputs import InputFinding, inspect_inputs, names_of

Cause = Literal[
    "input", "float16_overflow", "constant_image", "constant_channel", "learning_rate", "log_variance", "weights", "data",
    "unknown",
]  # fmt: skip

#: Share of the posterior's log-variances that may stand at the upper clamp. Beyond it the variance has exploded: the clamp
#: keeps the loss finite, but passes no gradient, so training would go on without learning.
CLAMPED_SHARE = 0.01
#: An Adam step moves each weight by about the learning rate. Where that exceeds the weights themselves, they are replaced.
HUGE_UPDATE = 0.5
#: A total so many times the best of the last steps is divergence.
DIVERGED = 10.0
#: Amplitude of the noise that tells whether an image without contrast is to blame.
_TRACE_OF_NOISE = 1e-3


@dataclass(frozen=True)
class Step:
    """What a training step was computed from.

    Attributes:
        batch: the images.
        number: optimiser steps done before.
        random_state: of the generators before the step.
        buffers: of the model before the step (running statistics).
    """

    batch: Any
    number: int
    random_state: dict[str, Tensor]
    buffers: list[Tensor]


@dataclass
class Trace:
    """What the probes saw.

    Attributes:
        terms: every loss and the total.
        term: the first loss that is not finite.
        module: the first module whose output, or the gradient of whose output, is not finite.
        where: "forward" or "backward".
        clamped: share of the posterior's log-variances at the upper clamp.
        error: what the step raised.
    """

    terms: dict[str, float] = field(default_factory=dict)
    term: str | None = None
    module: str | None = None
    where: str | None = None
    clamped: float = 0.0
    error: str | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return self.term is None and self.module is None and self.error is None and self.clamped <= CLAMPED_SHARE


@dataclass(frozen=True)
class Diagnosis:
    """Why a step went bad.

    Attributes:
        cause: its kind.
        summary: what was found, one sentence.
        advice: what to do, one sentence.
        term: first loss that is not finite, or "gradient".
        module: first module that is not finite.
        where: "forward" or "backward".
        files: the images to blame, where single ones are.
        findings: everything unusual about the inputs.
        terms: losses of the step.
    """

    cause: Cause
    summary: str
    advice: str
    term: str | None = None
    module: str | None = None
    where: str | None = None
    files: list[str] = field(default_factory=list)
    findings: list[InputFinding] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)


def diagnose(
    module: Any,
    step: Step,
    *,
    context: Callable[[], AbstractContextManager[Any]],
    half: bool = False,
    learning_rate: float = 0.0,
    weight_scale: float | None = None,
    history: Sequence[Mapping[str, float]] = (),
) -> Diagnosis:
    """Find out why a step went bad.

    Args:
        module: the :class:`VAEModule`, its weights as they were before the step.
        step: the step.
        context: precision that the step is computed in.
        half: whether that is float16.
        learning_rate: highest of the run so far.
        weight_scale: root mean square of the weights when the run started.
        history: totals of the steps before, newest last.

    Returns:
        The cause; "unknown" names the first loss and module that are not finite all the same.
    """
    findings = inspect_inputs(step.batch)
    broken = [f for f in findings if f.kind == "not_finite"]
    if broken:
        return Diagnosis(
            "input",
            f"{_listed([f'{f.file} ({f.detail})' for f in broken])}",
            "repair or remove the image; `omnivae inspect` lists all such files",
            term="x",
            files=[f.file for f in broken],
            findings=findings,
        )
    lost = [name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())]
    found = trace(module, step, context)
    facts: dict[str, Any] = {
        "term": found.term or ("gradient" if found.where == "backward" else None),
        "module": found.module,
        "where": found.where,
        "findings": findings,
        "terms": found.terms,
    }
    place = f" (first in {found.module}, {found.where})" if found.module else ""
    if lost:
        return Diagnosis(
            "weights",
            f"{len(lost)} weights are not finite, among them {lost[0]}{place}",
            "continue from the last good checkpoint with a lower training.learning_rate",
            **facts,
        )
    if half and trace(module, step, _float32).sound:
        return Diagnosis(
            "float16_overflow",
            f"values exceed float16's largest number, 65,504{place}; float32 computes the same step without fault",
            "set training.precision to bf16 or 32",
            **facts,
        )
    blamed = _blame_inputs(module, step, context, findings) if not found.sound else None
    if blamed:
        what = "has no contrast" if blamed[0].kind == "constant_image" else "has a channel without contrast"
        return Diagnosis(
            blamed[0].kind,  # type: ignore[arg-type]
            f"{_listed([f'{f.file} {what} ({f.detail})' for f in blamed])}: dividing by its deviation gives no number{place}",
            "remove the image or the channel, or give the normalising layer an epsilon",
            files=[f.file for f in blamed],
            **facts,
        )
    rate = _learning_rate(learning_rate, weight_scale, history)
    if rate:
        return Diagnosis(
            "learning_rate",
            f"{rate}{place}",
            f"lower training.learning_rate (it was {learning_rate:g}; try {_tenth(learning_rate)}) or lengthen "
            "training.warmup_steps",
            **facts,
        )
    if found.clamped > CLAMPED_SHARE:
        return Diagnosis(
            "log_variance",
            f"{100 * found.clamped:.3g} % of the posterior's log-variances have reached their bound of {LOGVAR_MAX:g}, "
            "where they get no gradient any more",
            "lower training.learning_rate, or raise the weight of the kl loss, which holds the variance down",
            **(facts | {"term": facts["term"] or "logvar", "module": facts["module"] or "posterior"}),
        )
    return Diagnosis(
        "unknown",
        f"{_value(found)}{place}",
        "replay the step and look at that module; a lower training.learning_rate often helps",
        **facts,
    )


def trace(module: Any, step: Step, context: Callable[[], AbstractContextManager[Any]]) -> Trace:
    """Compute a step again, forward and backward, and note where values stop being finite; changes nothing.

    Args:
        module: the :class:`VAEModule`.
        step: the step.
        context: precision to compute in.

    Returns:
        What was seen.
    """
    found = Trace()
    handles = []
    names = {m: name for name, m in module.named_modules() if name}

    def probe(m: nn.Module, _: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if found.module is None and not bool(torch.isfinite(tensor.detach()).all()):
                found.module, found.where = _readable(names[m]), "forward"
            if tensor.requires_grad and tensor.is_floating_point():
                tensor.register_hook(lambda gradient, m=m: backward(m, gradient))

    def backward(m: nn.Module, gradient: Tensor) -> None:
        if found.module is None and not bool(torch.isfinite(gradient).all()):
            found.module, found.where = _readable(names[m]), "backward"

    for m in names:
        handles.append(m.register_forward_hook(probe))
    try:
        with _undisturbed(module, step), torch.compiler.set_stance("force_eager"), torch.enable_grad():
            try:
                with context():
                    total, output, terms = module._losses(step.batch, step.number)
            except (ValueError, RuntimeError, ArithmeticError) as error:
                found.error = " ".join(str(error).split())
                return found
            found.terms = {name: float(value) for name, value in terms.items()}
            found.terms["total"] = float(total.detach())
            found.term = next((n for n, v in found.terms.items() if not math.isfinite(v)), None)
            found.clamped = clamped_share(output)
            parameters = [p for p in module.parameters() if p.requires_grad]
            if found.module is None and total.requires_grad:
                gradients = torch.autograd.grad(total, parameters, allow_unused=True)
                if found.module is None:
                    bad = [g is not None and not bool(torch.isfinite(g).all()) for g in gradients]
                    trained = [name for name, p in module.named_parameters() if p.requires_grad]
                    # The backward pass comes from the loss: the last parameter is met first.
                    last = [name for name, b in zip(trained, bad, strict=True) if b][-1:]
                    if last:
                        found.module, found.where = _readable(last[0]), "backward"
    finally:
        for handle in handles:
            handle.remove()
    return found


def clamped_share(output: Any) -> float:
    """Return the share of the first latent's log-variances that stand at the upper clamp; 0 without log-variances."""
    posterior = output.latents[0].posterior
    # What is clamped is the Gaussian that a flow starts from; the log-variance of its image costs D backward passes.
    logvar = getattr(getattr(posterior, "base", posterior), "logvar", None)
    return 0.0 if logvar is None else float((logvar.detach() >= LOGVAR_MAX).float().mean())


def keep_buffers(module: nn.Module) -> list[Tensor]:
    """Return copies of the buffers that a step may change: those that the state dict holds."""
    return [b.detach().clone() for b in stateful_buffers(module)]


def stateful_buffers(module: nn.Module) -> list[Tensor]:
    """Return the buffers that the state dict holds."""
    persistent = module.state_dict(keep_vars=True)
    return [b for name, b in module.named_buffers() if name in persistent]


def random_state() -> dict[str, Tensor]:
    """Return the state of the generators that a training step draws from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Set the generators to a state that :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def _undisturbed(module: nn.Module, step: Step) -> Iterator[None]:
    """Set random state and buffers to what they were before the step; give back what was found, afterwards."""
    before, buffers = random_state(), keep_buffers(module)
    set_random_state(step.random_state)
    _put(module, step.buffers)
    try:
        with notes_kept(module):
            yield
    finally:
        set_random_state(before)
        _put(module, buffers)


def _put(module: nn.Module, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(stateful_buffers(module), values, strict=True):
            buffer.copy_(value)


@contextmanager
def _float32() -> Iterator[None]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(device, enabled=False):
        yield


def _blame_inputs(
    module: Any, step: Step, context: Callable[[], AbstractContextManager[Any]], findings: Sequence[InputFinding]
) -> list[InputFinding]:
    flat = [f for f in findings if f.kind != "not_finite"]
    if not flat:
        return []
    x = step.batch["x"].clone()
    generator = torch.Generator().manual_seed(0)
    for finding in flat:
        noise = torch.randn(x[finding.row].shape, generator=generator) * _TRACE_OF_NOISE
        x[finding.row] += noise.to(x)
    mended = Step({**step.batch, "x": x}, step.number, step.random_state, step.buffers)
    return flat if trace(module, mended, context).sound else []


def _learning_rate(rate: float, weight_scale: float | None, history: Sequence[Mapping[str, float]]) -> str | None:
    if weight_scale and rate > HUGE_UPDATE * weight_scale:
        return (
            f"each step moves a weight by about the learning rate, {rate:g}, and the weights were {weight_scale:.2g} in size "
            "when the run started"
        )
    totals = [h["total"] for h in history if math.isfinite(h.get("total", math.nan))]
    if len(totals) >= 3:
        best = min(totals[:-1])
        # Totals may be negative (log-densities): measure the rise against their spread before.
        scale = max(abs(best), 1e-12)
        if totals[-1] - best > DIVERGED * scale:
            return f"the loss rose from {best:.4g} to {totals[-1]:.4g} within {len(totals)} steps: training diverged"
    return None


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, depth)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth)
    elif depth < 3 and _holds_tensors(value):
        yield from _tensors(list(vars(value).values()), depth + 1)


def _holds_tensors(value: Any) -> bool:
    """Return whether this is a posterior, latent, output or distribution: plain objects that hold tensors."""
    ours = isinstance(value, Distribution) or type(value).__module__.startswith("omnivae.")
    return ours and hasattr(value, "__dict__") and not isinstance(value, nn.Module)


def _readable(name: str) -> str:
    return name.removeprefix("vae.")


def _value(found: Trace) -> str:
    if found.term is not None:
        return f"the loss {found.term} is {found.terms[found.term]}"
    if found.error is not None:
        return f"the step raised: {found.error}"
    if found.where == "backward":
        return "a gradient is not finite"
    return "the step is finite when it is computed again: the fault is not in what it was computed from"


def _listed(items: Sequence[str], most: int = 3) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def _tenth(rate: float) -> str:
    # A rate that is wrong by orders of magnitude is not mended by one of them: then Adam's usual rate.
    return f"{min(rate / 10, 1e-3):.2g}"


__all__ = ["CLAMPED_SHARE", "Diagnosis", "Step", "Trace", "diagnose", "names_of", "trace"]
