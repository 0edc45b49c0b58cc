"""Encode and decode image files into files of the same names, sizes, bit depths and colour modes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from omnivae.data import Header, ReadOptions, preprocess_image, read_image, save_like
from omnivae.data.checking import check_images
from omnivae.data.config import OnError
from omnivae.data.encoding import unwritable
from omnivae.data.folder import walk
from omnivae.data.header import ALPHA
from omnivae.data.images import SUFFIXES
from omnivae.data.pixels import resize
from omnivae.jobs.conditions import told
from omnivae.jobs.evaluate import load
from omnivae.jobs.progress import progress_bar
from omnivae.models import VAE, SemiSupervisedVAE
from omnivae.training.device import Precision

log = logging.getLogger(__name__)


@torch.no_grad()
def reconstruct_files(
    model: str | Path | VAE,
    files: Sequence[str | Path],
    output: str | Path,
    *,
    on_error: OnError = "stop",
    cond: str | None = None,
    to: str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> list[Path]:
    """Encode and decode image files; results keep names, sizes, format, bit depth and colour mode.

    Every file is checked before the first is written. EXIF orientation is applied, so results are upright. Where the model was
    trained on images turned into grey or RGB (``data.channels``), so are these, and back; alpha that the model does not see is
    taken over unchanged. A model of one size gets square images resized to it, and its results are resized back. What a format
    cannot hold says :func:`omnivae.data.encoding.encode_like`.

    Args:
        model: a model directory, a run, or a loaded model.
        files: images, or folders, of which every image is taken and the paths inside are kept.
        output: directory to write to.
        on_error: "stop" at files that cannot be read or written, or "skip" them with a warning.
        cond: what the images are, for a conditional model: a class, or ``name=value`` separated by commas. A model that infers
            classes names them itself where this is left out.
        to: what they are decoded as instead: the same latent under another condition.
        precision: of the networks, see :func:`omnivae.jobs.evaluate.load`.
        progress: show progress on a terminal.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: when there is no such file or folder.
        ValueError: when a result would overwrite an original or another result, or a file is not usable.
    """
    sources = list_files(files, Path(output))
    loaded = model if isinstance(model, VAE) else load(model, precision)
    own = None if cond is None and isinstance(loaded, SemiSupervisedVAE) else told(loaded, cond)
    other = own if to is None else told(loaded, to, "--to")
    options = reading_options(loaded)
    names = [str(source) for source, _ in sources]
    checked = check_images(lambda i: sources[i][0], names, options=options, on_error=on_error)
    todo = []
    refused = []
    for number, header in zip(checked.kept.tolist(), checked.headers, strict=True):
        reason = _refusal(loaded, header)
        if reason is None:
            todo.append((*sources[number], header))
        else:
            refused.append(f"{names[number]}: {reason}")
    if refused and (on_error == "stop" or not todo):
        shown = "; ".join(refused[:3]) + ("; ..." if len(refused) > 3 else "")
        raise ValueError(f"{len(refused)} of {len(names)} files cannot be reconstructed: {shown}")
    for reason in refused:
        log.warning("left out: %s", reason)
    written = []
    with progress_bar("reconstructing", len(todo), progress and len(todo) > 1) as advance:
        for source, target, header in todo:
            _reconstruct(loaded, source, Path(output) / target, header, options, own, other)
            written.append(Path(output) / target)
            advance(1)
    return written


def list_files(files: Sequence[str | Path], output: Path) -> list[tuple[Path, str]]:
    """Return the files to work on and where each result goes, relative to the output directory.

    Args:
        files: files and folders.
        output: directory of the results.

    Returns:
        Pairs of a file and a relative path.

    Raises:
        FileNotFoundError: when one does not exist.
        ValueError: for a folder without images, and where originals or results would be overwritten.
    """
    found: list[tuple[Path, str]] = []
    for given in map(Path, files):
        if given.is_dir():
            inside = [name for name in sorted(walk(given)) if Path(name).suffix.lower() in SUFFIXES]
            if not inside:
                raise ValueError(f"no image in {given}: looked for {', '.join(SUFFIXES)} in it and its subfolders")
            if output.resolve().is_relative_to(given.resolve()):
                raise ValueError(
                    f"the output directory {output} lies in {given}, of which every image is taken; give --output another one, "
                    "so that originals are not overwritten and results not taken for originals"
                )
            found += [(given / name, name) for name in inside]
        elif given.is_file():
            found.append((given, given.name))
        else:
            raise FileNotFoundError(f"no such file or folder: {given}")
    targets = [target for _, target in found]
    twice = (
        sorted({target for target in targets if targets.count(target) > 1}) if len(set(targets)) < len(targets) else []
    )
    if twice:
        raise ValueError(f"several files are named {twice[0]}; their reconstructions would overwrite each other")
    originals = {source.resolve() for source, _ in found}
    for source, target in found:
        if (output / target).resolve() in originals:
            raise ValueError(f"{source} would be overwritten by a reconstruction; give --output another directory")
    return found


def reading_options(model: VAE) -> ReadOptions:
    """Return how stored samples were understood in a model's training.

    Args:
        model: the model.

    Returns:
        The options; the default ones for a model that was not trained by a run.
    """
    known = model.statistics.get("data", {})
    limits = known.get("input_range")
    return ReadOptions(
        input_range=None if limits is None else (float(limits[0]), float(limits[1])),
        clip=bool(known.get("clip", False)),
        channel_axis=known.get("channel_axis", "auto"),
        pages_as_channels=bool(known.get("pages_as_channels", False)),
    )


def read_for(model: VAE, file: str | Path) -> Tensor:
    """Read an image as a model's training did: same channels, same value range, its own size where the model allows.

    Args:
        model: the model.
        file: image file.

    Returns:
        ``[1, C, H, W]`` on the model's device.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the channels do not fit.
    """
    prepared = model.statistics.get("data", {})
    x = preprocess_image(
        file,
        channels=prepared.get("channels"),
        image_size=_side(model),
        value_range=model.value_range,
        options=reading_options(model),
    )
    if x.shape[1] != model.in_channels:
        raise ValueError(f"{file}: {_wrong_channels(x.shape[1], model)}")
    return x.to(next(model.parameters()).device)


def _side(model: VAE) -> int | None:
    return model.statistics.get("data", {}).get("image_size") if model.image_size is not None else None


def _wrong_channels(channels: int, model: VAE) -> str:
    return f"it has {channels} channels and the model takes {model.in_channels}; convert the image first"


def _refusal(model: VAE, header: Header) -> str | None:
    """Return why an image cannot be reconstructed, or None where it can."""
    wanted = model.statistics.get("data", {}).get("channels")
    if not header.converts_to(model.in_channels) or (wanted is None and header.channels != model.in_channels):
        return _wrong_channels(header.channels, model)
    side = _side(model)
    if side is not None and header.height != header.width:
        return (
            f"it is {header.height} x {header.width} and the model takes squares of {side} only: cut it to a square first, "
            "or train a model with a spatial latent"
        )
    return unwritable(header)


def _reconstruct(
    model: VAE,
    source: Path,
    target: Path,
    header: Header,
    options: ReadOptions,
    own: Tensor | None,
    other: Tensor | None,
) -> None:
    x = read_for(model, source)
    posterior = model.encode(x) if own is None else model.encode(x, own[None])
    decoded = model.decode(posterior, None if other is None else other[None])
    decoded = decoded.float().clamp(*model.value_range)[0].cpu()
    if tuple(decoded.shape[1:]) != (header.height, header.width):
        resized = resize(decoded.permute(1, 2, 0).numpy(), (header.height, header.width))
        decoded = torch.from_numpy(resized).permute(2, 0, 1).clamp(*model.value_range)
    alpha = None
    if header.mode in (*ALPHA, "RGBa") and decoded.shape[0] != header.channels:
        alpha = read_image(source, str(source), options)[..., -1]
    save_like(decoded, target, header, value_range=model.value_range, options=options, alpha=alpha)
