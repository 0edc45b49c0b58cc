"""Microscopy phantoms: fields of view of cells in phase and fluorescence, and plates of them as OME-Zarr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from omnivae.data.volumes.drawing import Canvas, smooth_noise
from omnivae.data.volumes.ome_zarr_writing import Version, write_plate
from omnivae.data.volumes.phantoms import Phantom
from omnivae.volume import Stored, Volume

CHANNELS = ("Phase3D", "Nuclei")


def field_phantom(
    seed: int = 0,
    *,
    size: tuple[int, int, int] = (15, 128, 128),
    spacing: tuple[float, float, float] = (0.5, 0.35, 0.35),
    cells: int = 14,
    odd: int = 0,
) -> Phantom:
    """Draw a field of view of cells on a stage: a z-stack with the channels "Phase3D" and "Nuclei".

    Phase is signed and about 0 (bodies and nucleoli above, haloes below); the nuclei's fluorescence is blurred more along z than
    across, with photon noise on a background of 100.

    Args:
        seed: of the field.
        size: planes, rows and columns.
        spacing: micrometres along z, y, x.
        cells: how many to place; fewer where there is no room.
        odd: how many of them have a condensed, bright nucleus, marked in ``lesions``.

    Returns:
        Volume (float32), labels (the number of each nucleus, from 1 on) and lesions.

    Raises:
        ValueError: for sizes and counts that cannot be.

    Example:
        >>> phantom = field_phantom(0, size=(5, 64, 64), cells=4)
        >>> phantom.volume.channels, phantom.volume.space, phantom.volume.array.shape
        (('Phase3D', 'Nuclei'), 'stage', (2, 5, 64, 64))
    """
    from scipy import ndimage

    if min(size) < 1 or min(size[1:]) < 16 or min(spacing) <= 0:
        raise ValueError(
            f"got size {list(size)} and spacing {list(spacing)}; expected planes of 16 x 16 or more, lengths above 0"
        )
    if not 0 <= odd <= cells <= 255:
        raise ValueError(f"got {cells} cells, {odd} of them odd; expected 0 <= odd <= cells <= 255")
    places, texture, grain = (np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(3))
    canvas = Canvas(size, spacing)  # axes z, y, x in place of right, front, top
    height, rows, columns = canvas.extent
    labels, marks = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    dye, dense = np.zeros(size, np.float32), np.zeros(size, np.float32)
    body = np.zeros(size[1:], np.float32)
    _, (z, y, x) = canvas.box((-1e9,) * 3, (1e9,) * 3)
    placed: list[tuple[float, float, float]] = []
    for _ in range(40 * cells):
        if len(placed) == cells:
            break
        cy, cx = float(places.uniform(-0.5, 0.5) * rows), float(places.uniform(-0.5, 0.5) * columns)
        radius = float(places.uniform(3.2, 4.6))
        if any((cy - a) ** 2 + (cx - b) ** 2 < (1.15 * (radius + c)) ** 2 for a, b, c in placed):
            continue
        placed.append((cy, cx, radius))
        number = len(placed)
        condensed = number <= odd
        turn, long = float(places.uniform(0, np.pi)), float(places.uniform(1.0, 1.35))
        across = radius * (0.62 if condensed else 1.0)
        u = (np.cos(turn) * (y - cy) + np.sin(turn) * (x - cx)) / (across * long)
        v = (-np.sin(turn) * (y - cy) + np.cos(turn) * (x - cx)) / across
        level = float(places.uniform(-0.12, 0.02)) * height
        flat = max(min(2.2, 0.38 * height), spacing[0])
        nucleus = u**2 + v**2 + ((z - level) / flat) ** 2 <= 1
        if not nucleus.any():
            nucleus = np.broadcast_to(u**2 + v**2 <= 1, size) & (np.abs(z - level) <= spacing[0])
        labels[nucleus], marks[nucleus] = number, number if condensed else 0
        dye[nucleus] = float(places.uniform(450, 800)) * (2.4 if condensed else 1.0)
        dense[nucleus] = 0.30
        for _ in range(0 if condensed else int(places.integers(1, 4))):
            at = [level, cy + float(places.normal(0, 0.35 * radius)), cx + float(places.normal(0, 0.35 * radius))]
            part, spot = canvas.ellipsoid(at, (1.0, float(places.uniform(0.6, 1.0)), float(places.uniform(0.6, 1.0))))
            spot = spot & (labels[part] == number)
            dense[part][spot], dye[part][spot] = 0.75, 0.45 * dye[part][spot]
        # The body: a soft dome of its own outline around the nucleus.
        reach = radius * float(places.uniform(1.7, 2.2))
        wobble = 1 + 0.14 * np.sin(3 * np.arctan2(v, u) + turn) + 0.08 * np.sin(5 * np.arctan2(v, u) - turn)
        away = np.sqrt((y - cy) ** 2 + (x - cx) ** 2)[0] / (reach * wobble[0])
        body = np.maximum(body, np.clip(1.2 * (1 - away**2), 0, 1).astype(np.float32))
    grains = ndimage.gaussian_filter(texture.standard_normal(size).astype(np.float32), [1.0, 1.6, 1.6])
    grains /= max(float(grains.std()), 1e-6)
    rise = np.exp(-((z / (0.45 * height)) ** 2)).astype(np.float32)
    phase = body[None] * rise * (0.35 + 0.05 * grains) + ndimage.gaussian_filter(dense, [1.0, 0.7, 0.7]) * rise
    # What a phase image lacks of its lowest frequencies shows as haloes.
    wide = [0, 5.0 / spacing[1], 5.0 / spacing[2]]
    phase = phase - 0.9 * ndimage.gaussian_filter(phase, wide) + 0.012 * grain.standard_normal(size, dtype=np.float32)
    dye *= 1 + 0.18 * smooth_noise(texture, size, 24)
    dye = ndimage.gaussian_filter(np.maximum(dye, 0), [0.9 / spacing[0], 0.25 / spacing[1], 0.25 / spacing[2]])
    light = 100 + 12 * ndimage.gaussian_filter(body, 2)[None] + dye
    light = (2 * grain.poisson(light / 2)).astype(np.float32) + 3 * grain.standard_normal(size, dtype=np.float32)
    volume = Volume(
        np.stack([phase.astype(np.float32), light]),
        np.diag([*spacing, 1.0]),
        space="stage",
        channels=CHANNELS,
        stored=Stored("float32"),
        format="phantom",
    )
    masks = [volume.with_array(m[None], channels=(), stored=Stored("uint8")) for m in (labels, marks)]
    names = {0: "background", **{n: f"nucleus {n}" for n in range(1, len(placed) + 1)}}
    return Phantom(volume, masks[0], masks[1], names)


def plate_phantom(
    path: str | Path,
    *,
    wells: tuple[str, ...] = ("A/1", "A/2", "B/1", "B/2"),
    fields: int = 2,
    seed: int = 0,
    size: tuple[int, int, int] = (15, 128, 128),
    spacing: tuple[float, float, float] = (0.5, 0.35, 0.35),
    cells: int = 14,
    odd: int | Mapping[str, int] = 0,
    version: Version = "0.4",
    labels: bool = False,
) -> Path:
    """Write a plate of fields of cells as OME-Zarr (HCS); each field is :func:`field_phantom` of a seed of its own.

    Args:
        path: of the store.
        wells: row and column of each.
        fields: of view in each well.
        seed: of the plate.
        size: planes, rows and columns of a field.
        spacing: micrometres along z, y, x.
        cells: in a field.
        odd: of them condensed; another number for each well is what wells of several conditions differ by.
        version: of OME-Zarr.
        labels: whether the numbers of the nuclei are written in place of the image.

    Returns:
        The path.

    Raises:
        ValueError: as :func:`field_phantom` and :func:`write_plate`.
    """
    if fields < 1 or not wells:
        raise ValueError(f"got {len(wells)} wells of {fields} fields; expected at least one of each")
    condensed = dict(odd) if isinstance(odd, Mapping) else dict.fromkeys(wells, odd)
    if set(condensed) != set(wells):
        raise ValueError(
            f"got odd nuclei of the wells {sorted(condensed)}; expected a number for each of {sorted(wells)}"
        )

    def draw() -> Iterator[tuple[str, Volume]]:
        for number, well in enumerate(wells):
            for at in range(fields):
                one = int(np.random.SeedSequence((seed, number, at)).generate_state(1)[0])
                phantom = field_phantom(one, size=size, spacing=spacing, cells=cells, odd=condensed[well])
                yield f"{well}/{at}", phantom.labels if labels else phantom.volume

    return write_plate(draw(), path, version=version)
