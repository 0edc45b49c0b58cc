"""The report: one self-contained HTML file about a trained model."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics import METRICS, Evaluation, evaluate, psnr
from omnivae.report import figures, page, plots
from omnivae.report.clips import clip_grid, clip_rows
from omnivae.report.collect import Chosen, Encoded, batch_size_for, choose, encode_all, same_size, stack
from omnivae.report.colours import colour_names
from omnivae.report.factors import factor_maps, labels_of
from omnivae.report.history import read_history
from omnivae.report.latent_ops import (
    device_of,
    evaluating,
    has_alpha,
    in_codes,
    interpolate,
    natural_mode,
    order_by_kl,
    reconstruct,
    support,
    traverse,
)
from omnivae.report.volume_section import flat, is_clips, middle, volume_section

#: What is measured where no evaluation is given.
QUICK_METRICS = ("psnr", "ssim", "mse", "l1")
DENSITY_METRICS = ("elbo", "kl", "bits_per_dim", "active_units")
MAX_TRAVERSALS = 10
#: Images of a quick evaluation; more need `omnivae evaluate`.
QUICK_IMAGES = 200
#: Volumes side by side, three planes each.
MOST_VOLUMES = 3
SAMPLE_COLUMNS, SAMPLE_CLIPS = 8, 4
TSNE_AT_LEAST = 100
INTERPOLATIONS = 4
Section = tuple[str, str]


def write_report(
    model: Any,
    dataset: Any,
    output: str | Path,
    *,
    evaluation: Evaluation | None = None,
    history: str | Path | None = None,
    config_text: str | None = None,
    advice: Sequence[tuple[str, str, str]] | None = None,
    title: str = "omnivae report",
    dataset_name: str | None = None,
    classes: Sequence[str] | None = None,
    projections: Sequence[Literal["pca", "tsne"]] = ("pca", "tsne"),
    num_images: int = 8,
    num_latents: int = 1000,
    seed: int = 0,
) -> Path:
    """Write a report on a model: reconstructions and errors, samples, walks through the latent space, curves, numbers.

    The file needs nothing else: pictures and style are inside, there is no script and no request. The same model, data
    and seed give the same file.

    Args:
        model: a VAE; used without gradients in evaluation mode, and left as it was.
        dataset: map-style, items with ``x [C, H, W]`` or ``[C, D, H, W]`` and ``key``, optionally ``label``, ``cond``.
        output: where to write; missing folders are created and the file appears whole or not at all.
        evaluation: numbers to show; where there are none, image and ELBO metrics of 200 images at most.
        history: a run's ``metrics.csv``, for the curves.
        config_text: the run's configuration, shown as it is.
        advice: (severity, what was seen, what to do) for a section of findings; an empty one says that there are none.
        title: heading.
        dataset_name: name of the data, as shown; the dataset's class by default.
        classes: name of each label.
        projections: panels of the latent map, "pca" and "tsne" (left out where fewer than 100 images are encoded).
        num_images: images that are shown with their reconstructions, >= 1.
        num_latents: images that are encoded for the latent map and its statistics, >= 2.
        seed: seed of the choice of images, of the samples and of t-SNE.

    Returns:
        The path.

    Raises:
        FileNotFoundError: when the history is missing.
        ValueError: for an empty dataset, or counts that are too small.
    """
    if num_images < 1 or num_latents < 2:
        raise ValueError(f"got num_images={num_images}, num_latents={num_latents}; expected at least 1 and 2")
    curves = None if history is None else read_history(history)
    chosen = choose(dataset, max(num_latents, num_images), seed=seed)
    device = device_of(model)
    with torch.no_grad(), evaluating(model):
        shown = same_size(chosen, max(num_images, 2 * INTERPOLATIONS))
        encoded = encode_all(model, Chosen(dataset, chosen.indices[:num_latents]), device)
        if evaluation is None:
            names = QUICK_METRICS + (DENSITY_METRICS if encoded.kl else ())
            evaluation = evaluate(
                model,
                Chosen(dataset, chosen.indices[:QUICK_IMAGES]),
                names,
                batch_size=batch_size_for(shown[0]["x"].shape[1:]),
                num_samples_elbo=1,
                seed=seed,
                progress=False,
            )
        name = dataset_name or type(dataset).__name__
        sections = [
            _summary(model, encoded, evaluation, shown, name, len(dataset)),
            _reconstructions(
                model, shown[: num_images if shown[0]["x"].ndim == 3 else min(num_images, MOST_VOLUMES)], device
            ),
            *volume_section(model, shown, device),
            _samples(model, shown, device, seed),
            *_interpolations(model, shown, device),
            *_traversals(model, shown[0], encoded, evaluation),
            *_kl(encoded, evaluation),
            *_factors(evaluation),
            *_codes(encoded),
            *_latent_map(encoded, classes, projections, seed),
        ]
        if curves:
            note = "Each panel is one quantity over the training steps; a logarithmic axis where values span decades."
            sections.append(
                page.section("Training", note, page.picture(plots.curves(curves), "Training curves", scale=2 / 3))
            )
        if advice is not None:
            sections.append(_doctor(advice))
        sections.append(_evaluation(evaluation, len(dataset)))
        if config_text is not None:
            sections.append(page.folded("Configuration", page.code(config_text)))
        sections.append(_origin(model, device, seed, len(chosen)))
    lead = f"{type(model).__name__} with {_count(_parameters(model))} parameters on {name}"
    text = page.page(title, lead, sections, f"Written by omnivae {_version('omnivae')}. This file is self-contained.")
    return _write(Path(output), text)


# -- sections


def _summary(
    model: Any,
    encoded: Encoded,
    evaluation: Evaluation,
    shown: list[Mapping[str, Any]],
    dataset_name: str,
    size: int,
) -> Section:
    shape = tuple(shown[0]["x"].shape)
    ratio = math.prod(shape) / math.prod(encoded.latent_shape)
    low, high = model.value_range
    clips = len(shape) == 4 and is_clips(model) and hasattr(model, "stacking")
    headline = [
        (f"{result.mean:.4g}".replace("-", "−"), result.unit, name.upper())
        for name, result in evaluation.metrics.items()
        if name in ("psnr", "ssim", "elbo", "nll")
    ]
    headline += [(f"{ratio:.3g}×", "", "compression"), (_count(_parameters(model)), "", "parameters")]
    kinds = {
        "encoder": getattr(model, "encoder", None),
        "decoder": getattr(model, "decoder", None),
        "posterior": getattr(model, "posterior", None),
        "prior": getattr(model, "prior", None),
        "likelihood": getattr(model, "likelihood_head", None),
    }
    rows = [
        ("Model", type(model).__name__),
        *((part.capitalize(), type(module).__name__) for part, module in kinds.items() if module is not None),
        ("Parameters", f"{_parameters(model):,}"),
        (
            "Clip" if clips else "Image",
            f"{_extent(shape, clips)}, {shape[0]} channel{'s' * (shape[0] > 1)}, values in [{low:g}, {high:g}]",
        ),
        ("Latent", _latent_text(encoded.latent_shape)),
        ("Compression", f"{ratio:.3g} image values for each latent value"),
        ("Data", f"{dataset_name}, {size:,} {_kind(shape, clips)}"),
    ]
    return page.section("Summary", "", page.tiles(headline), page.facts(rows))


def _reconstructions(model: Any, shown: list[Mapping[str, Any]], device: torch.device) -> Section:
    x = _batch(shown, device)
    decoded = reconstruct(model, x, stack(shown, "cond", device)).clamp(*model.value_range)
    values = psnr(decoded, x, data_range=model.value_range[1] - model.value_range[0]).tolist()
    clips = x.ndim == 5 and is_clips(model)
    if clips:
        grid = clip_grid(x, decoded, model.value_range, alpha=has_alpha(model))
        note = (
            "Frames of each clip from first to last, of the decoded mean of its posterior, and their absolute difference averaged "
            f"over channels, on one scale for each clip; below, the PSNR of each frame. Of whole clips: "
            f"{', '.join(f'{v:.1f}' for v in values)} dB."
        )
    else:
        flat_x, flat_decoded = (flat(model, v, stack(shown, "spacing_mm", device)) for v in (x, decoded))
        grid = figures.comparison_grid(
            flat_x,
            flat_decoded,
            model.value_range,
            labels=[f"{v:.1f} dB" for v in values],
            max_tile=figures.MAX_TILE if x.ndim == 4 else 2 * figures.MAX_TILE,
            alpha=has_alpha(model),
        )
        note = (
            "Each image, the decoded mean of its posterior, and their absolute difference averaged over channels, on one "
            "scale for all; below, the PSNR of each."
        )
        if x.ndim == 5:
            note += " Of a volume, the three middle planes."
    alt = f"{len(shown)} original images above their reconstructions and the maps of their errors"
    pictures = [page.picture(figures.to_png(grid), alt)]
    names = colour_names(x.shape[1], alpha=has_alpha(model))
    if names:
        lights = ", ".join(f"{i} {name}" for i, name in enumerate(names, 1))
        note += f" Channels are lights laid over each other ({lights}); below, those of the first image alone."
        alone = figures.channel_grid(x[0], decoded[0], model.value_range)
        pictures.append(
            page.picture(figures.to_png(alone), "Each channel of the first image and of its reconstruction")
        )
    return page.section("Reconstructions", note, *pictures)


def _samples(model: Any, shown: list[Mapping[str, Any]], device: torch.device, seed: int) -> Section:
    if getattr(model, "prior", model) is None:
        return page.section(
            "Samples", "This model has no prior, because its posterior has no density: nothing to draw from."
        )
    size = tuple(shown[0]["x"].shape[1:])
    clips = len(size) == 3 and is_clips(model)
    count = SAMPLE_CLIPS if clips else SAMPLE_COLUMNS * (4 if math.prod(size) <= 128**2 else 2)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, count, batch_size_for(size)):
        members = [shown[i % len(shown)] for i in range(start, min(count, start + batch_size_for(size)))]
        cond = stack(members, "cond", device)
        parts.append(model.sample(len(members), size=size, cond=cond, generator=generator).cpu())
    x = torch.cat(parts)
    note = "Decoded draws from the prior: what the model takes for an image when it is shown none."
    if clips:
        names = [f"sample {i + 1}" for i in range(count)]
        grid = clip_rows(x, model.value_range, names=names, alpha=has_alpha(model))
    else:
        note += _of_each(x.ndim, clips)
        grid = figures.image_grid(middle(model, x), model.value_range, SAMPLE_COLUMNS, alpha=has_alpha(model))
    return page.section(
        "Samples",
        note,
        page.picture(figures.to_png(grid), f"{count} {'clips' if clips else 'images'} sampled from the prior"),
    )


def _of_each(ndim: int, clips: bool) -> str:
    """Return what is shown of volumes and clips ``[N, C, D, H, W]``, where one picture stands for each."""
    return "" if ndim != 5 else " Of each clip its middle frame." if clips else " Of each volume its middle slice."


def _interpolations(model: Any, shown: list[Mapping[str, Any]], device: torch.device) -> Iterator[Section]:
    pairs = _pairs(shown)
    if not pairs:
        return
    frames = torch.stack([interpolate(model, a["x"], b["x"], steps=10, cond=_conds(a, b)) for a, b in pairs])
    ends = torch.stack([torch.stack([a["x"], b["x"]]) for a, b in pairs])
    clips = frames.ndim == 6 and is_clips(model)
    note_of = _of_each(frames.ndim - 1, clips)
    frames, ends = middle(model, frames), middle(model, ends)
    grid = figures.interpolation_grid(frames, model.value_range, ends=ends, max_tile=160, alpha=has_alpha(model))
    note = "Straight lines between the posterior means of two images; the number is the share of the second image."
    if in_codes(model):
        note = (
            "Straight lines between the codes of two images, each vector replaced by the nearest code; the number is the share of "
            "the second image."
        )
    elif natural_mode(model) == "spherical":
        note = "Great circles between the directions of two images; the number is the share of the way."
    note += note_of
    alt = f"{len(pairs)} interpolations in ten steps between pairs of original images"
    yield page.section("Interpolations", note, page.picture(figures.to_png(grid), alt))


def _traversals(model: Any, item: Mapping[str, Any], encoded: Encoded, evaluation: Evaluation) -> Iterator[Section]:
    if support(model) != "real":
        return
    order = order_by_kl(encoded.kl, len(encoded.centre))[:MAX_TRAVERSALS]
    span = 3.0
    frames = traverse(
        model,
        item["x"],
        dimensions=order,
        span=span,
        statistics=(encoded.centre, encoded.spread),
        cond=_cond(item),
    )
    clips = frames.ndim == 6 and is_clips(model)
    note_of = _of_each(frames.ndim - 1, clips)
    frames = middle(model, frames)
    known = evaluation.details.get("mig")
    labels = known and labels_of(np.array(known["mutual_information"]), np.array(known["entropy"]), known["factors"])
    grid = figures.traversal_grid(
        frames,
        model.value_range,
        dimensions=order,
        kl=encoded.kl,
        factors=labels if labels and len(labels) == len(encoded.centre) else None,
        span=span,
        min_tile=72,
        max_tile=128,
        alpha=has_alpha(model),
    )
    if len(encoded.latent_shape) > 1:
        what = "One latent channel a row, set to the same value at all positions"
    else:
        what = "One latent dimension a row"
    note = (
        f"{what}, from {span:g} standard deviations below to {span:g} above its mean over the data; all others keep "
        f"the values of one {'clip' if clips else 'image'}.{note_of}"
    )
    if encoded.kl:
        note += " Ordered by KL: the dimensions that carry most information first."
    if labels:
        note += " Below it, the factor of which the dimension knows the largest share, and that share."
    alt = f"Traversals of {len(order)} latent dimensions"
    yield page.section("Traversals", note, page.picture(figures.to_png(grid), alt))


def _kl(encoded: Encoded, evaluation: Evaluation) -> Iterator[Section]:
    values = evaluation.kl_per_dimension or encoded.kl
    if not values:
        return
    note = "How much information each dimension carries about the image; one near zero equals the prior and is unused."
    if len(encoded.latent_shape) > 1:
        note += " A dimension is a channel, summed over its positions."
    alt = f"Bar chart of the KL divergence of {len(values)} latent dimensions, largest first"
    yield page.section("KL per dimension", note, page.picture(plots.kl_bar(values), alt, scale=2 / 3))


def _codes(encoded: Encoded) -> Iterator[Section]:
    if encoded.codes is None:
        return
    books = encoded.codes.counts()
    note = (
        f"How often each code was chosen in {len(encoded.means):,} images, the most frequent first. A line at the dashed height "
        "would be a codebook that is used evenly; where it ends before the last code, the rest were never chosen."
    )
    png = plots.code_histogram([list(counts.values()) for counts in books], encoded.codes.num_codes)
    alt = f"Use of the codes of {len(books)} codebook{'s' * (len(books) > 1)}"
    yield page.section("Codes", note, page.picture(png, alt, scale=2 / 3))


def _factors(evaluation: Evaluation) -> Iterator[Section]:
    known = [name for name in ("mig", "dci_disentanglement") if name in evaluation.details]
    if not known:
        return
    note = (
        "What each code knows of each factor that made the images. Codes are disentangled where each row has one dark cell, and "
        "each column one too."
    )
    alt = "Heat maps of codes against factors: mutual information, and importance to the prediction"
    yield page.section("Factors", note, page.picture(factor_maps(evaluation.details), alt, scale=2 / 3))


def _latent_map(
    encoded: Encoded, classes: Sequence[str] | None, projections: Sequence[Literal["pca", "tsne"]], seed: int
) -> Iterator[Section]:
    count = len(encoded.means)
    # Two points lie on a line.
    if count < 3 or not projections:
        return
    # t-SNE needs neighbourhoods, which a handful of points has not.
    methods = [m for m in projections if m == "pca" or count >= TSNE_AT_LEAST] or ["pca"]
    png = plots.latent_map(encoded.means, encoded.labels, classes=classes, methods=methods, seed=seed)
    names = {"pca": "their first two principal components", "tsne": "t-SNE, which keeps neighbours together"}
    note = f"Posterior means of {count:,} images: {' and '.join(names[m] for m in methods)}."
    if len(encoded.latent_shape) > 1:
        note += " Spatial latents are averaged over their positions."
    if encoded.labels is not None:
        note += " Colours are labels."
    yield page.section("Latent map", note, page.picture(png, f"Map of the latents of {count} images", scale=2 / 3))


def _evaluation(evaluation: Evaluation, size: int) -> Section:
    rows = []
    for name, mean, interval, unit, better in evaluation.rows():
        known = METRICS.get(name)
        arrow = {"higher": "↑", "lower": "↓"}.get(better, "")
        numbers = (mean.replace("-", "−"), interval.replace("-", "−"))
        rows.append((f"{name} {arrow}".strip(), *numbers, unit, known.meaning if known else ""))
    note = f"Means over {evaluation.images:,} images with 95 % bootstrap intervals; the arrow is the better direction."
    if evaluation.images < size:
        note += f" They are a part of the {size:,} images of the data; omnivae evaluate measures all."
    extra = [f"{name}: {text}." for name, text in evaluation.notes.items()]
    styles = ("", "number", "number", "number", "meaning")
    content = page.table(("metric", "mean", "95 % interval", "unit", "meaning"), rows, styles)
    return page.section("Evaluation", " ".join([note, *extra]), content)


def _doctor(advice: Sequence[tuple[str, str, str]]) -> Section:
    if not advice:
        return page.section("Doctor", "No rule of omnivae doctor found anything in the logs of this run.")
    note = "What the rules of omnivae doctor found in the logs of this run, most urgent first."
    content = page.table(("severity", "seen", "what it means, and what to do"), advice, ("", "", "meaning"))
    return page.section("Doctor", note, content)


def _origin(model: Any, device: torch.device, seed: int, chosen: int) -> Section:
    rows = [
        ("omnivae", _version("omnivae")),
        ("PyTorch", torch.__version__),
        ("Python", platform.python_version()),
        ("Platform", f"{platform.system()} {platform.machine()}"),
        ("Device", str(device)),
        ("Seed", str(seed)),
        ("Images chosen at random", f"{chosen:,}"),
    ]
    prepared = {k: v for k, v in getattr(model, "statistics", {}).items() if isinstance(v, (str, int, float, list))}
    rows += [(f"Model: {k.replace('_', ' ')}", _clip(str(v))) for k, v in prepared.items()]
    return page.section("How it was made", "", page.facts(rows))


# -- inside


def _batch(items: list[Mapping[str, Any]], device: torch.device) -> Tensor:
    x = stack(items, "x", device)
    assert x is not None
    return x


def _pairs(shown: list[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(shown[i], shown[i + 1]) for i in range(0, min(len(shown) - 1, 2 * INTERPOLATIONS - 1), 2)]


def _conds(*items: Mapping[str, Any]) -> Tensor | None:
    found = [_cond(item) for item in items]
    return None if found[0] is None else torch.stack([cond for cond in found if cond is not None])


def _cond(item: Mapping[str, Any]) -> Tensor | None:
    return None if item.get("cond") is None else torch.as_tensor(item["cond"])


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _latent_text(shape: tuple[int, ...]) -> str:
    values = math.prod(shape)
    if len(shape) == 1:
        return f"vector of {values} values"
    return f"{shape[0]} channels of {_times(shape[1:])} positions, {values:,} values"


def _extent(shape: Sequence[int], clips: bool) -> str:
    if clips:
        return f"{shape[1]} frames of {_times(shape[2:])} pixels"
    return f"{_times(shape[1:])} {'pixels' if len(shape) == 3 else 'voxels'}"


def _kind(shape: Sequence[int], clips: bool) -> str:
    return "clips" if clips else "images" if len(shape) == 3 else "volumes or parts of them"


def _times(size: Sequence[int]) -> str:
    return " × ".join(str(n) for n in size)


def _count(n: int) -> str:
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= factor:
            return f"{n / factor:.3g}{letter}"
    return str(n)


def _clip(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
