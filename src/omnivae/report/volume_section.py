"""The report's pages of volumes: three planes in display windows, and maps of differences in the volumes' own unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics.volume import WINDOWS, HUContract, hu_contract, hu_table
from omnivae.report import page
from omnivae.report.clips import middle_frame
from omnivae.report.colours import strip
from omnivae.report.latent_ops import reconstruct
from omnivae.report.planes import triptych
from omnivae.report.volumes import comparison_pictures
from omnivae.volume import Volume

#: Volumes whose planes are drawn large.
MOST = 2


def is_patient(model: Any) -> bool:
    """Return whether a model's volumes lie in a patient's axes: right, front, head.

    Args:
        model: a VAE.
    """
    return bool(_contract(model).get("orientation") == "RAS")


def is_clips(model: Any) -> bool:
    """Return whether what a model of three axes sees are clips: volumes come with a statement of their intensities."""
    return not _contract(model)


def middle(model: Any, x: Tensor) -> Tensor:
    """Return images as they are, of clips the middle frame, and of volumes the middle slice: axial and upright of a patient.

    Args:
        model: that they are of.
        x: ``[..., C, *S]``.

    Returns:
        ``[..., C, height, width]``.
    """
    if getattr(model, "dim", 2) != 3:
        return x
    if is_patient(model):
        # Axes point right, to the front and to the head: the patient's right is drawn on the left, the front at the top.
        return x[..., x.shape[-1] // 2].transpose(-1, -2).flip(-1, -2)
    return middle_frame(x)


def flat(model: Any, x: Tensor, spacing: Tensor | Sequence[float] | None = None) -> Tensor:
    """Return images as they are, of volumes the three middle planes side by side, and of clips a strip of frames.

    Args:
        model: that they are of.
        x: ``[N, C, *S]``.
        spacing: of the voxels, ``[3]`` or ``[N, 3]``, of which the first counts.

    Returns:
        ``[N, C, height, width]``.
    """
    if x.ndim != 5:
        return x
    if is_clips(model):
        return strip(x)
    steps = [1.0, 1.0, 1.0] if spacing is None else torch.as_tensor(spacing).reshape(-1, 3)[0].tolist()
    return triptych(x, steps, patient=is_patient(model))


def volume_section(model: Any, items: Sequence[Mapping[str, Any]], device: torch.device) -> Iterator[tuple[str, str]]:
    """Yield a section with the planes of a few volumes, in HU where the model's values stand for them.

    Args:
        model: a VAE in evaluation mode.
        items: with ``x [C, I, J, K]`` and, where known, ``spacing_mm``.
        device: of the model.

    Yields:
        Heading and HTML; nothing for images.
    """
    if items[0]["x"].ndim != 4 or is_clips(model):
        return
    hu = hu_contract(model) if _contract(model).get("unit") == "HU" else None
    content: list[str] = []
    for item in items[:MOST]:
        x = item["x"][None].to(device)
        cond = None if item.get("cond") is None else torch.as_tensor(item["cond"])[None].to(device)
        decoded = reconstruct(model, x, cond).clamp(*model.value_range)
        original, rebuilt = (as_volume(v[0].cpu(), item.get("spacing_mm"), model, hu) for v in (x, decoded))
        if hu is not None:
            content.append(_errors(str(item["key"]), original, rebuilt))
        for title, png in comparison_pictures(original, rebuilt):
            content.append(f"<p><b>{escape(str(item['key']))}: {escape(title)}</b></p>")
            content.append(page.picture(png, f"{item['key']}, {title}", scale=2 / 3))
    windows = ", ".join(f"{name.replace('_', ' ')} {window}" for name, window in WINDOWS.items())
    note = "Middle planes of the first volumes and of their reconstructions, in true proportions, and their difference."
    if hu is not None:
        note += (
            f" Windows (level/width) in HU: {windows}; PSNR and SSIM with both volumes clipped to the window, the mean absolute "
            "error of the voxels that lie in it."
        )
    yield page.section("Volumes", note, *content)


def _errors(key: str, original: Volume, rebuilt: Volume) -> str:
    """Return a table of the errors of one volume, a row for each window."""
    found = hu_table(*(torch.from_numpy(np.ascontiguousarray(v.array)) for v in (rebuilt, original)))
    rows = [
        (
            f"{name.replace('_', ' ')} {WINDOWS[name]}",
            f"{found[f'psnr_{name}']:.2f}",
            f"{found[f'ssim_{name}']:.4f}",
            f"{found[f'mae_{name}']:.1f}",
            f"{found[f'share_{name}']:.1%}",
        )
        for name in WINDOWS
    ]
    rows.append(("all voxels", "", "", f"{found['mae_hu']:.1f}", ""))
    table = page.table(("window", "PSNR (dB)", "SSIM", "MAE (HU)", "voxels in it"), rows, ["", *["number"] * 4])
    return f"<p><b>{escape(key)}: errors in each window</b></p>{table}"


def as_volume(x: Tensor, spacing: Any, model: Any, hu: HUContract | None) -> Volume:
    """Return a volume that the model sees, in HU where its values stand for them.

    Args:
        x: ``[C, I, J, K]`` in the model's value range.
        spacing: of the voxels ``[3]``, or ``None``.
        model: a VAE.
        hu: what its values stand for.

    Returns:
        The volume; of a patient in the axes right, front, head.
    """
    steps = [1.0, 1.0, 1.0] if spacing is None else torch.as_tensor(spacing).reshape(-1).tolist()
    values = x.float() if hu is None else hu.to_hu(x)
    return Volume(
        values.numpy(),
        np.diag([*steps, 1.0]),
        unit="arbitrary" if hu is None else "HU",
        space="patient" if is_patient(model) else "stage",
    )


def _contract(model: Any) -> Mapping[str, Any]:
    return getattr(model, "statistics", {}).get("intensity") or {}
