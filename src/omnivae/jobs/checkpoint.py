"""The checkpoint doctor: what a file of foreign weights is, whether all of it loads, and whether it computes the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnivae.files import write_atomic
from omnivae.hub.coverage import Coverage, coverage, load_tensors
from omnivae.hub.known import PUBLISHED, licence_of
from omnivae.hub.layouts import Alternative, Architecture, Choice, Layout
from omnivae.hub.loading import model_of
from omnivae.hub.parity import TOLERANCE, Difference, Proof, compare, inputs_for, prove
from omnivae.hub.reading import Checkpoint, read_checkpoint
from omnivae.hub.recognise import recognise, report_coverage, under, write_key_map
from omnivae.jobs.starting import TRAINING
from omnivae.models import VAE


@dataclass(frozen=True)
class Trial:
    """Another function of the same weights, tried.

    Attributes:
        choice: what the weights cannot reveal.
        label: what was tried instead of what is assumed.
        mean: difference of the mean from the assumed model's.
        reconstruction: difference of what is decoded from one latent.
        psnr: of the trial's reconstruction of the structured input, in dB; trained weights do best under the right function.
        equal: whether the trial computes what the original does, ``None`` where that is not installed.
    """

    choice: str
    label: str
    mean: Difference
    reconstruction: Difference
    psnr: float
    equal: bool | None


@dataclass(frozen=True)
class Examination:
    """What was found about a checkpoint.

    Attributes:
        checkpoint: the file.
        architecture: of its weights.
        coverage: of our model by the converted weights.
        model: ours, with the weights.
        licence: of known weights.
        proof: the comparison with the original implementation, ``None`` where that is not possible.
        unproven: why there is no proof.
        psnr: of our reconstruction of the structured input, in dB.
        trials: other functions of the same weights.
        problems: what is wrong with the numbers in the file.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    coverage: Coverage
    model: VAE
    licence: str | None = None
    proof: Proof | None = None
    unproven: str = ""
    psnr: float = math.nan
    trials: tuple[Trial, ...] = ()
    problems: tuple[str, ...] = field(default=())

    @property
    def sound(self) -> bool:
        """Whether everything loads, nothing is wrong with the numbers, and no comparison failed."""
        return self.coverage.complete and not self.problems and (self.proof is None or self.proof.equal)

    def to_yaml(self) -> str:
        """Return the proposed configuration: the model, and the losses that its recipe is trained with.

        Raises:
            ValueError: when no recipe of ours builds this architecture.
        """
        import yaml

        from omnivae.recipes.family import MEMBERS

        recipe = self.architecture.recipe
        if recipe is None:
            raise ValueError(
                f"no recipe builds {self.architecture.layout} with these options; convert it and train the model directory"
            )
        sections: dict[str, Any] = {"model": _lists(recipe)}
        member = MEMBERS.get(recipe["recipe"])
        if member is not None:
            sections["losses"] = _lists(member.losses)
        head = f"# {self.architecture.layout}, read from {self.checkpoint.path.name}\n"
        return head + yaml.safe_dump(sections, sort_keys=False, default_flow_style=None, width=100)

    def to_data(self) -> dict[str, Any]:
        """Return plain data for a JSON file."""
        a = self.architecture
        return {
            "file": self.checkpoint.path.name,
            "layout": a.layout,
            "arguments": dict(a.arguments),
            "tensors": len(self.checkpoint.tensors),
            "parameters": self.checkpoint.num_parameters,
            "coverage": self.coverage.to_data(),
            "unused": dict(a.unused),
            "made": dict(a.made),
            "assumed": {c.name: {"value": c.assumed, "why": c.why} for c in a.choices},
            "licence": self.licence,
            "proof": None if self.proof is None else self.proof.to_data(),
            "unproven": self.unproven,
            "trials": [
                {
                    "choice": t.choice,
                    "tried": t.label,
                    "mean": t.mean.to_data(),
                    "reconstruction": t.reconstruction.to_data(),
                    "psnr": t.psnr,
                    "equal": t.equal,
                }
                for t in self.trials
            ],
            "problems": list(self.problems),
        }


def examine_checkpoint(
    path: str | Path,
    *,
    layout: str | None = None,
    settings: Mapping[str, Any] | None = None,
    entry: str | None = None,
    tolerance: float = TOLERANCE,
    trials: bool = True,
) -> Examination:
    """Read a checkpoint, recognise it, load it, prove the result and try what the weights cannot reveal.

    Args:
        path: the file, or a folder of diffusers.
        layout: name of the layout, instead of finding it; weights of a similar one are renamed into it.
        settings: what weights cannot reveal, by the original's argument names.
        entry: which of several dictionaries of tensors to take.
        tolerance: largest relative difference from the original that counts as equal.
        trials: whether to try the alternatives.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is damaged, holds code, or is of no known layout.
    """
    checkpoint = read_checkpoint(path, entry=entry)
    architecture = recognise(checkpoint, layout=layout, settings=settings)
    model = model_of(checkpoint, architecture)
    inputs = inputs_for(model)
    proof, reference, unproven = None, None, ""
    try:
        reference = original_of(checkpoint, architecture)
        proof = prove(model, reference, architecture, inputs=inputs, tolerance=tolerance)
    except ImportError as error:
        unproven = str(error)
    found = []
    for choice, alternative in _alternatives(architecture) if trials else ():
        variant = under(architecture, alternative.config, alternative.names)
        other = model_of(checkpoint, variant)
        mean, image = compare(model, other, inputs=inputs)
        equal = None
        if reference is not None:
            equal = prove(other, reference, inputs=inputs, tolerance=tolerance).equal
        found.append(Trial(choice.name, alternative.label, mean, image, _psnr(other, inputs["structure"]), equal))
    return Examination(
        checkpoint=checkpoint,
        architecture=architecture,
        coverage=report_coverage(checkpoint, architecture),
        model=model,
        licence=licence_of(checkpoint, architecture),
        proof=proof,
        unproven=unproven,
        psnr=_psnr(model, inputs["structure"]),
        trials=tuple(found),
        problems=tuple(_problems(checkpoint)),
    )


def original_of(checkpoint: Checkpoint, architecture: Architecture) -> Any:
    """Return the original implementation with a checkpoint's weights in it.

    Args:
        checkpoint: the weights.
        architecture: what was recognised.

    Returns:
        A :class:`~omnivae.hub.layouts.Reference`.

    Raises:
        ImportError: where it is not installed, or there is none; says what to install.
    """
    layout = next(known for known in Layout.known if known.wrote(architecture))
    prefix = architecture.prefix
    tensors = {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
    try:
        return layout.reference(architecture, tensors)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{layout.library} is not installed, so that nothing was compared with it: {layout.install}"
        ) from error


def into_model(checkpoint: Checkpoint, model: nn.Module, *, partial: bool = False, load: bool = False) -> Coverage:
    """Say how much of a model a checkpoint fills by name and shape as it is, and load that if asked.

    Args:
        checkpoint: the weights.
        model: the guess.
        partial: allow a load of what fits.
        load: whether to load.

    Returns:
        The coverage.

    Raises:
        ValueError: when a load is asked for that is not whole, and ``partial`` is false.
    """
    if load:
        return load_tensors(model, checkpoint.tensors, source=str(checkpoint.path), partial=partial)
    return coverage(checkpoint.tensors, model)


def convert(examination: Examination, output: str | Path) -> None:
    """Write a model directory: configuration, weights, facts, model card, and the map of names (``key_map.json``).

    Where a recipe builds the model, ``training.yaml`` is the configuration to go on training with, which
    ``omnivae train --checkpoint OUTPUT`` takes where it is given no other.

    Args:
        examination: of the checkpoint.
        output: the directory.

    Raises:
        ValueError: when the model does not compute what the original does.
    """
    if examination.proof is not None and not examination.proof.equal:
        raise ValueError(f"nothing was written to {output}: {examination.proof.summary()}")
    target = Path(output)
    model = examination.model
    proof = examination.proof
    origin = dict(model.statistics["origin"])
    origin["proof"] = proof.summary() if proof else f"none: {examination.unproven}"
    model.statistics = model.statistics | {"origin": origin}
    model.save_pretrained(target)
    write_key_map(examination.architecture, examination.checkpoint, target / "key_map.json")
    if examination.architecture.recipe is not None:
        write_atomic(target / TRAINING, examination.to_yaml().encode())


def write_json(examination: Examination, path: str | Path) -> None:
    """Write everything that was found as JSON."""
    content = json.dumps(_finite(examination.to_data()), indent=1)
    write_atomic(Path(path), (content + "\n").encode())


def download(name: str, folder: str | Path | None = None, *, url: str | None = None) -> Path:
    """Fetch published weights, continue where a download was cut off, and check them against their checksum.

    Args:
        name: one of :data:`omnivae.hub.known.PUBLISHED`, such as "maisi".
        folder: where the file goes; the cache by default. A file that lies there already is checked and used.
        url: another address of the same file, such as a mirror or ``file:///...``.

    Returns:
        The file.

    Raises:
        ValueError: for a name that is not known.
        OSError: when it cannot be fetched, or does not have the published checksum.
    """
    from omnivae.component import suggestion
    from omnivae.data.downloads import cache_folder, fetch

    if name not in PUBLISHED:
        raise ValueError(f"no published weights {name!r}{suggestion(name, PUBLISHED)}; expected {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    target = (cache_folder() / "weights" / name if folder is None else Path(folder)) / published.file
    if target.is_file():
        found = read_md5(target)
        if published.md5 in (None, found):
            return target
        raise ValueError(f"{target} has the MD5 checksum {found}, the publisher states {published.md5}: remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    fetch([url] if url else list(published.urls), target, md5=published.md5 or "")
    return target


def read_md5(path: Path) -> str:
    """Return the MD5 checksum of a file, hexadecimal."""
    return Checkpoint(path, {}).digest("md5")


def _alternatives(architecture: Architecture) -> list[tuple[Choice, Alternative]]:
    return [(choice, other) for choice in architecture.choices for other in choice.alternatives]


@torch.no_grad()
def _psnr(model: VAE, x: torch.Tensor) -> float:
    low, high = model.value_range
    image = model.decode(model.encode(x))
    if image.shape != x.shape:  # VisCy's decoders may return another size than they are given
        return math.nan
    error = float((image.clamp(low, high) - x).square().mean())
    return 10 * math.log10((high - low) ** 2 / error) if error > 0 else math.inf


def _problems(checkpoint: Checkpoint) -> list[str]:
    problems = []
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point():
            bad = int((~torch.isfinite(tensor.float())).sum())  # torch cannot look into 8 bits
            if bad:
                problems.append(f"{name} holds {bad} NaN or infinite values")
    zero = [
        n
        for n, t in checkpoint.tensors.items()
        if t.ndim > 1 and t.is_floating_point() and not bool(t.float().count_nonzero())
    ]
    if zero and len(zero) > len(checkpoint.tensors) // 4:
        problems.append(
            f"{len(zero)} kernels are all zero, such as {zero[0]}: these weights were never trained or not written"
        )
    return problems


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
