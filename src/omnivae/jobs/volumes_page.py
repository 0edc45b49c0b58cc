"""Pages about volumes: what was found, and how volumes came back from a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from omnivae.metrics.volume import WINDOWS
from omnivae.report import page

if TYPE_CHECKING:
    from omnivae.jobs.volumes_inspect import VolumeFacts, VolumeInspection
    from omnivae.jobs.volumes_pairs import PairFacts
    from omnivae.jobs.volumes_reconstruct import VolumeResult


def inspection_page(found: VolumeInspection) -> str:
    """Return the page of an inspection.

    Args:
        found: with thumbnails.

    Returns:
        HTML, self-contained.
    """
    tiles = [(f"{len(found.volumes):,}", "", "volumes and series"), (f"{found.usable:,}", "", "usable")]
    if found.patients:
        tiles.append((f"{found.patients:,}", "", "patients"))
    aside = {v.name for v in found.volumes if v.kind not in found.taken}
    if aside:
        tiles.append((f"{len(aside):,}", "", "set aside"))
    rows = [volume_row(v, aside=v.name in aside) for v in found.volumes]
    note = "Sizes, voxel sizes and directions are in the order of the file's axes."
    summary = [page.tiles(tiles), page.table(("volume", "what it is", "problems"), rows, ["", "", ""])]
    sections = [page.section("Volumes", note, *summary)]
    if found.pairs:
        rows_of_pairs = [
            (
                "stops a run" if p.problem else "note" if p.note else "pair",
                f"{p.name}: {'; '.join(filter(None, texts))}",
            )
            for p, texts in ((p, (pair_text(p), p.note, p.problem)) for p in found.pairs)
        ]
        sections.append(page.section("Pairs", "", page.facts(rows_of_pairs)))
    if found.problems or found.remarks:
        entries = [("stops a run", text) for text in found.problems] + [("note", text) for text in found.remarks]
        sections.append(page.section("Findings", "", page.facts(entries)))
    for facts in found.volumes:
        content = [page.facts(_details(facts, aside=facts.name in aside))]
        if facts.name in found.thumbnails:
            alt = f"Three middle planes of {facts.name}"
            content.insert(0, page.picture(found.thumbnails[facts.name], alt, scale=1.5))
        sections.append(
            page.section(facts.name, _planes_note(facts) if facts.name in found.thumbnails else "", *content)
        )
    lead = f"{found.path}: {found.usable} of {len(found.volumes)} usable{f', {len(aside)} set aside' if aside else ''}"
    return page.page(
        "Volumes", lead, sections, f"Written by omnivae {version('omnivae')}. This file is self-contained."
    )


def reconstruction_page(
    results: Sequence[VolumeResult], pictures: Mapping[str, Sequence[tuple[str, bytes]]], contract: Mapping[str, Any]
) -> str:
    """Return the page of reconstructed volumes.

    Args:
        results: what became of each.
        pictures: name of a volume to titles and PNG bytes.
        contract: of the model's intensities.

    Returns:
        HTML, self-contained.
    """
    sections = []
    names = [name for name in results[0].metrics if not name.startswith("share_")]
    if names:
        rows = [(r.name, *(_number(name, r.metrics.get(name)) for name in names)) for r in results]
        columns = ("volume", *(name.replace("_", " ") for name in names))
        sections.append(
            page.section("Errors", _formulas(names), page.table(columns, rows, [""] + ["number"] * len(names)))
        )
    for result in results:
        facts = [
            ("size", size_text(result.shape)),
            ("voxel", " x ".join(f"{s:.6g}" for s in result.spacing)),
            ("axes point to", result.orientation),
            ("stored as", result.dtype),
            ("clipped", result.clipped),
            (
                "resampled",
                "to the model's voxel size and back, which loses detail of its own" if result.resampled else "no",
            ),
            ("encoded and decoded in", f"{result.seconds:.1f} s"),
            *(("note", note) for note in result.notes),
        ]
        content = [page.facts([(name, text) for name, text in facts if text])]
        for title, png in pictures.get(result.name, ()):
            content += [f"<p><b>{escape(title)}</b></p>", page.picture(png, f"{result.name}, {title}", scale=2 / 3)]
        if result.structures:
            rows = [
                (name, f"{e['voxels']:,}", f"{e['mae']:.2f}", f"{e['bias']:+.2f}", f"{e['rmse']:.2f}")
                for name, e in result.structures.items()
            ]
            columns = ("structure", "voxels", "mean absolute error", "mean error", "root mean square")
            content.append(page.table(columns, rows, ["", *["number"] * 4]))
        sections.append(page.section(result.name, "", *content))
    said = ", ".join(f"{name} {value}" for name, value in contract.items())
    lead = f"{len(results)} volume{'s' * (len(results) > 1)} encoded and decoded; the model's intensities: {said}"
    footer = f"Written by omnivae {version('omnivae')}. This file is self-contained. Reconstructions are no images of a patient."
    return page.page("Reconstructed volumes", lead, sections, footer)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if name.startswith("ssim") else f"{value:.2f}"


def _formulas(names: Sequence[str]) -> str:
    if not any(name.endswith("_lung") for name in names):
        return "PSNR in dB and SSIM in the range that the model sees of the volume; MAE in its own unit."
    windows = ", ".join(f"{name.replace('_', ' ')} {window}" for name, window in WINDOWS.items())
    return (
        "Against the original on its own grid, values outside the model's window included. "
        f"Windows (level/width in HU): {windows}. "
        "PSNR = 10 log10(width² / MSE) in dB and SSIM with both volumes clipped to the window; MAE in HU of the voxels whose "
        "original lies in it, and mae hu of all."
    )


def volume_row(facts: VolumeFacts, *, aside: bool = False) -> tuple[str, str, str]:
    """Return the cells of one volume: number and name, what it is, names of what is unusual.

    Args:
        facts: of the volume.
        aside: whether a run leaves it out, so that nothing about it stops one.
    """
    number = f"[{facts.number}] " if facts.number is not None else ""
    problems = (
        ", ".join(dict.fromkeys(p.name.upper() if p.stops and not aside else p.name for p in facts.problems)) or "none"
    )
    return number + facts.name, entry_text(facts, aside=aside), problems


def pair_text(pair: PairFacts) -> str:
    """Return what is known of one pair on a line, but for why it may be none.

    Args:
        pair: of a listing.
    """
    overlap = "" if pair.overlap is None else f": the followup reaches {100 * pair.overlap:.3g} % of the baseline"
    split = f", for {pair.split}" if pair.split else ""
    return f"{pair.baseline} and {pair.followup}{overlap}, patient {pair.patient}{split}"


def entry_text(facts: VolumeFacts, *, aside: bool) -> str:
    """Return :func:`facts_text` of a volume among others, and whether a run leaves it out.

    Args:
        facts: of the volume.
        aside: whether it does.
    """
    return facts_text(facts) + (", set aside" if aside else "")


def facts_text(facts: VolumeFacts) -> str:
    """Return what is known of one volume on a line.

    Args:
        facts: of the volume.
    """
    kind = " ".join(
        part for part in (facts.modality or facts.format, facts.kind if facts.kind != "image" else "") if part
    )
    if not facts.shape:
        return f"{kind}, {facts.files} file{'s' * (facts.files > 1)}"
    unit = " µm" if facts.format in ("ome-zarr", "tiff") and not facts.orientation else " mm"
    spacing = " x ".join(f"{s:.4g}" for s in facts.spacing) + unit if facts.spacing else ""
    values = values_text(facts)
    channels = "channels " + ", ".join(facts.channels) if facts.channels else ""
    parts = (
        kind, size_text(facts.shape), spacing, facts.orientation, facts.dtype, "" if values == "-" else values, channels,
    )  # fmt: skip
    return ", ".join(part for part in parts if part)


def size_text(shape: Sequence[int]) -> str:
    """Return a size such as "512 x 512 x 300", channels first where there are several.

    Example:
        >>> size_text((1, 4, 5, 6)), size_text((2, 4, 5, 6))
        ('4 x 5 x 6', '2 ch, 4 x 5 x 6')
    """
    if not shape:
        return "-"
    text = " x ".join(str(n) for n in shape[1:])
    return text if shape[0] == 1 else f"{shape[0]} ch, {text}"


def values_text(facts: VolumeFacts) -> str:
    """Return the range of values with its unit.

    Args:
        facts: of the volume.
    """
    unit = "HU" if facts.unit == "HU" else "HU?" if facts.looks_like else ""
    if facts.low is None or facts.high is None:
        return unit or "-"
    return f"{facts.low:.6g} to {facts.high:.6g} {unit}".strip()


def _details(facts: VolumeFacts, *, aside: bool) -> list[tuple[str, str]]:
    stage = facts.format in ("ome-zarr", "tiff")
    rows = [
        ("format", facts.format + (f", {facts.files} files" if facts.files > 1 else "")),
        ("modality", facts.modality),
        ("series", "" if facts.number is None else f"{facts.number} ({facts.kind})"),
        ("patient", str(facts.patient) if facts.patient else ""),
        ("size", size_text(facts.shape)),
        ("voxel", " x ".join(f"{s:.6g}" for s in facts.spacing) + (" µm" if stage else " mm") if facts.spacing else ""),
        ("axes point to", facts.orientation),
        ("channels", ", ".join(facts.channels)),
        ("stored as", facts.dtype),
        ("values", values_text(facts)),
        ("mean", "" if facts.mean is None else f"{facts.mean:.6g}"),
    ]
    problems = [(f"{p.name}{' (stops)' if p.stops and not aside else ''}", p.text) for p in facts.problems]
    return [(name, text) for name, text in rows if text] + problems


def _planes_note(facts: VolumeFacts) -> str:
    if facts.orientation:
        shown = "-1000 to 1000 HU" if facts.unit == "HU" else "the 0.5th to the 99.5th percentile"
        return (
            f"Middle planes, axial, coronal and sagittal, the patient's right on the left; black to white is {shown}."
        )
    return "Middle planes; black to white is the 0.5th to the 99.5th percentile."
