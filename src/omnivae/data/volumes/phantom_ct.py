"""A CT phantom: chest and upper abdomen in Hounsfield units, another patient for each seed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from omnivae.data.volumes.drawing import Canvas, Point, smooth_noise
from omnivae.data.volumes.phantoms import LesionPair, Phantom, assemble, finish, plant_lesions

STRUCTURES = {
    0: "air",
    1: "fat",
    2: "muscle",
    3: "lung",
    4: "bone",
    5: "blood",
    6: "liver",
    7: "organ",
    8: "airway",
    9: "couch",
}
_AIR, _FAT, _MUSCLE, _LUNG, _BONE, _BLOOD, _LIVER, _ORGAN, _AIRWAY, _COUCH = STRUCTURES


def ct_phantom(
    seed: int = 0,
    *,
    size: tuple[int, int, int] = (96, 96, 96),
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
    lesions: int = 2,
    noise_hu: float = 15.0,
    orientation: str = "LPS",
) -> Phantom:
    """Draw a CT of a chest and upper abdomen.

    Body, fat, muscle, ribs, spine, lungs with airways and vessels, heart, aorta, liver, spleen, stomach, kidneys and a couch,
    each of its own size and place for each seed; half of the patients have contrast medium. Lesions are nodules in the lung
    (solid or ground glass) and, every third, a dark one in the liver.

    Args:
        seed: of the patient.
        size: voxels along the axes to the right, front and top; the anatomy is scaled to the width.
        spacing: mm along the same axes; may differ.
        lesions: how many to plant.
        noise_hu: standard deviation of the noise, HU.
        orientation: of the axes.

    Returns:
        Volume in HU (int16), labels and lesions.

    Raises:
        ValueError: for sizes and counts that cannot be.

    Example:
        >>> phantom = ct_phantom(1, size=(32, 32, 24), spacing=(12.0, 12.0, 15.0))
        >>> phantom.volume.unit, phantom.volume.orientation, phantom.volume.array.dtype
        ('HU', 'LPS', dtype('int16'))
        >>> bool(phantom.volume.array[0][phantom.mask("lung")].mean() < -600)
        True
    """
    return _draw(seed, size, spacing, (lesions,), noise_hu, orientation)[0]


def lesion_pair(
    seed: int = 0,
    *,
    size: tuple[int, int, int] = (96, 96, 96),
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
    lesions: int = 2,
    noise_hu: float = 15.0,
    orientation: str = "LPS",
) -> LesionPair:
    """Draw one patient twice, without and with lesions: anatomy and noise are equal voxel by voxel.

    The two differ within two voxels of the lesions only (partial volume).

    Args:
        seed: as :func:`ct_phantom`.
        size: as there.
        spacing: as there.
        lesions: at least one.
        noise_hu: as there.
        orientation: as there.

    Returns:
        Both phantoms.

    Raises:
        ValueError: as there, and without lesions.

    Example:
        >>> pair = lesion_pair(1, size=(32, 32, 24), spacing=(12.0, 12.0, 15.0), lesions=1)
        >>> change = np.abs(pair.with_lesions.volume.array - pair.without.volume.array)[0]
        >>> bool(change[pair.mask].mean() > 50 * change[~pair.mask].mean())
        True
    """
    if lesions < 1:
        raise ValueError(f"got {lesions} lesions; expected at least 1 for a pair with and without")
    without, with_lesions = _draw(seed, size, spacing, (0, lesions), noise_hu, orientation)
    return LesionPair(without, with_lesions)


class _Patient:
    """Values and labels while they are drawn."""

    def __init__(self, canvas: Canvas, generator: np.random.Generator) -> None:
        self.canvas, self.generator = canvas, generator
        self.values = np.full(canvas.size, -1000.0, np.float32)
        self.labels = np.zeros(canvas.size, np.uint8)
        self.scale = 0.43 * canvas.extent[0] / 165  # the body's half width is 165 mm where the anatomy is life-size

    def mm(self, *lengths: float, vary: float = 0.0) -> list[float]:
        """Return lengths of life-size anatomy scaled to this patient, varied by a share of each."""
        varied = self.generator.uniform(1 - vary, 1 + vary, len(lengths)) if vary else np.ones(len(lengths))
        return [float(n * v * self.scale) for n, v in zip(lengths, varied, strict=True)]

    def put(
        self,
        where: tuple[tuple[slice, slice, slice], np.ndarray],
        value: float,
        label: int,
        *,
        only: np.ndarray | None = None,
        share: float = 1.0,
    ) -> None:
        """Set voxels to a value and label; a share below 1 mixes with what is there (finer than a voxel)."""
        part, mask = where
        mask = np.broadcast_to(mask, self.labels[part].shape)
        if only is not None:
            mask = mask & only[part]
        self.values[part][mask] += share * (value - self.values[part][mask])
        if share >= 0.5:
            self.labels[part][mask] = label


def _draw(
    seed: int,
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    counts: tuple[int, ...],
    noise_hu: float,
    orientation: str,
) -> list[Phantom]:
    if min(size) < 8 or min(spacing) <= 0:
        raise ValueError(
            f"got size {list(size)} and spacing {list(spacing)}; expected 8 voxels or more, and lengths above 0"
        )
    if min(counts) < 0 or max(counts) > 255 or noise_hu < 0:
        raise ValueError(
            f"got {max(counts)} lesions and noise {noise_hu:g}; expected 0 to 255 lesions and no negative noise"
        )
    # Streams of their own: lesions and noise change nothing about the anatomy.
    streams = np.random.SeedSequence(seed).spawn(5)
    anatomy, texture, grain = (np.random.default_rng(stream) for stream in streams[:3])
    canvas = Canvas(size, spacing)
    patient = _Patient(canvas, anatomy)
    contrast = float(anatomy.choice([0.0, anatomy.uniform(0.6, 1.0)]))
    cavity = _body(patient)
    _lungs(patient, cavity, texture)
    _abdomen(patient, cavity, contrast)
    _heart(patient, cavity, contrast)
    _vessels(patient, contrast, np.random.default_rng(streams[4]))
    _skeleton(patient, cavity)
    patient.values += np.where(patient.labels > _AIR, 6.0, 0.0).astype(np.float32) * smooth_noise(texture, size, 12)
    noise = _grain(grain, size, noise_hu)
    phantoms = []
    for count in counts:
        values, marks = patient.values.copy(), np.zeros(size, np.uint8)
        _lesions(patient, values, marks, np.random.default_rng(streams[3]), count)
        final = np.maximum(finish(values, noise), -1024)
        phantoms.append(
            assemble(final, patient.labels, marks, canvas, names=STRUCTURES, unit="HU", orientation=orientation)
        )
    return phantoms


def _body(p: _Patient) -> np.ndarray:
    """Draw couch, fat and muscle; return where the cavity of chest and abdomen is."""
    _, (x, y, z) = p.canvas.box(*([(-1e9,) * 3, (1e9,) * 3]))
    width, depth = p.mm(165, 112, vary=0.05)
    fat, wall = p.mm(float(p.generator.uniform(7, 24)), float(p.generator.uniform(16, 22)))
    top = p.mm(150)[0]
    taper = 1 - 0.22 * np.clip((z - top) / (1.2 * top), 0, 1) - 0.04 * np.cos(z / (0.7 * top))
    taper = taper / float(taper.max())

    def inside(less: float, forward: float = 0.0) -> np.ndarray:
        a, b = (width - less) * taper, (depth - less) * taper
        return np.abs(x / a) ** 2.4 + np.abs((y - forward) / b) ** 2.4 <= 1

    couch = np.abs(y + depth + p.mm(9)[0] - (x / width) ** 2 * p.mm(14)[0]) < max(p.mm(3)[0], p.canvas.spacing[1] / 2)
    everywhere = (slice(None), slice(None), slice(None))
    p.put((everywhere, couch & (np.abs(x) < 1.05 * width) & (z < 1e9)), -150.0, _COUCH)
    p.put((everywhere, inside(0)), -98.0, _FAT)
    p.put((everywhere, inside(fat)), 52.0, _MUSCLE)
    cavity = np.broadcast_to(inside(fat + wall, p.mm(7)[0]), p.canvas.size)
    p.put((everywhere, cavity), -80.0, _FAT)
    return cavity


def _lungs(p: _Patient, cavity: np.ndarray, texture: np.random.Generator) -> None:
    mottle = smooth_noise(texture, p.canvas.size, 16)
    _, (_, y, _) = p.canvas.box(*([(-1e9,) * 3, (1e9,) * 3]))
    for side in (1, -1):  # right, left
        (cx, cy, cz), radii = p.mm(72 * side, 6, 22, vary=0.04), p.mm(62, 92, 135, vary=0.06)
        part, mask = p.canvas.ellipsoid((cx, cy, cz), radii, power=2.6)
        # The diaphragm: a dome, higher on the right.
        dome, dome_mask = p.canvas.ellipsoid(
            (cx, 0, cz - 0.95 * radii[2]), p.mm(95, 105, 78 if side > 0 else 60), power=2
        )
        under = np.zeros(p.canvas.size, bool)
        under[dome] = dome_mask
        air = mask & cavity[part] & ~under[part]
        base = float(p.generator.uniform(-880, -830))
        behind = (-y / p.mm(100)[0]) * 25  # blood sinks to the back of a patient who lies
        filled = base + 22 * mottle[part] + np.broadcast_to(behind, p.canvas.size)[part]
        p.values[part][air] = filled[air]
        p.labels[part][air] = _LUNG
    # Windpipe and main bronchi, with walls.
    (tx, ty), radius = p.mm(2, -8), p.mm(9, vary=0.1)[0]
    fork = p.mm(50)[0]
    tubes: list[tuple[Point, Point]] = [((tx, ty, fork), (tx, ty, p.canvas.extent[2]))]
    tubes += [((tx, ty, fork), p.mm(side * 48, -12, 12)) for side in (1, -1)]
    for grow, value, label in ((1.35, 20.0, _MUSCLE), (1.0, -995.0, _AIRWAY)):
        for at, (start, end) in enumerate(tubes):
            p.put(p.canvas.tube(start, end, radius * grow * (1 if at == 0 else 0.75)), value, label, only=cavity)


def _abdomen(p: _Patient, cavity: np.ndarray, contrast: float) -> None:
    free = cavity & (p.labels != _LUNG) & (p.labels != _AIRWAY)
    (cx, cy, cz), radii = p.mm(62, 4, -135, vary=0.04), p.mm(92, 84, 92, vary=0.06)
    p.put(p.canvas.ellipsoid((cx, cy, cz), radii, power=2.4), 58 + 50 * contrast, _LIVER, only=free)
    p.put(
        p.canvas.ellipsoid(p.mm(-96, -38, -118, vary=0.05), p.mm(30, 42, 48, vary=0.1)),
        50 + 60 * contrast,
        _ORGAN,
        only=free,
    )
    where, reach = p.mm(-58, 32, -128, vary=0.06), p.mm(48, 40, 46, vary=0.12)
    p.put(p.canvas.ellipsoid(where, reach), 40, _ORGAN, only=free)
    p.put(p.canvas.ellipsoid(where, [0.88 * r for r in reach]), 12, _ORGAN, only=free)
    gas = p.canvas.ellipsoid(
        (where[0], where[1] + 0.45 * reach[1], where[2]), [0.6 * reach[0], 0.3 * reach[1], 0.5 * reach[2]]
    )
    p.put(gas, -960, _AIRWAY, only=free)
    for side in (1, -1):
        where, reach = p.mm(side * 60, -48, -190 + 8 * side, vary=0.04), p.mm(28, 30, 56, vary=0.08)
        p.put(p.canvas.ellipsoid(where, reach), 36 + 140 * contrast, _ORGAN, only=free)
        p.put(
            p.canvas.ellipsoid((where[0] - side * 0.35 * reach[0], *where[1:]), [0.45 * r for r in reach]),
            -60,
            _FAT,
            only=free,
        )


def _heart(p: _Patient, cavity: np.ndarray, contrast: float) -> None:
    centre, reach = p.mm(-20, 26, -22, vary=0.05), p.mm(62, 50, 66, vary=0.06)
    mediastinum = p.canvas.ellipsoid(p.mm(0, 6, 60), p.mm(34, 74, 150), power=2.4)
    lung = p.labels == _LUNG
    p.put(mediastinum, -70, _FAT, only=lung)
    p.put(p.canvas.ellipsoid(centre, reach), 48, _MUSCLE, only=cavity)
    blood = 42 + 180 * contrast
    for (dx, dy, dz), radii in (
        ((-16, 0, -10), (26, 24, 34)),
        ((20, 10, -4), (22, 22, 30)),
        ((2, -20, 26), (30, 16, 18)),
    ):
        at = [c + d for c, d in zip(centre, p.mm(dx, dy, dz), strict=True)]
        p.put(p.canvas.ellipsoid(at, p.mm(*radii, vary=0.08)), blood, _BLOOD, only=cavity)
    # Aorta: up from the heart, over, and down before the spine; and the lower hollow vein.
    radius = p.mm(13, vary=0.12)[0]
    path = [(-6, 20, 20), (10, 26, 72), (0, 8, 94), (-18, -22, 88), (-24, -42, 60), (-24, -44, -60), (-12, -38, -400)]
    points = [p.mm(*point) for point in path]
    for start, end in pairwise(points):
        p.put(p.canvas.tube(start, end, radius), blood + 12, _BLOOD, only=cavity)
    p.put(p.canvas.tube(p.mm(22, -8, -40), p.mm(24, -34, -400), 0.9 * radius), blood, _BLOOD, only=cavity)


def _vessels(p: _Patient, contrast: float, generator: np.random.Generator) -> None:
    """Draw branching vessels into the lungs and the liver, down to those that a voxel no longer shows."""
    lung, liver = p.labels == _LUNG, p.labels == _LIVER
    finest = min(p.canvas.spacing) / 2

    def grow(start: np.ndarray, way: np.ndarray, radius: float, only: np.ndarray, value: float) -> None:
        if radius < max(0.9 * p.scale, 0.35 * finest):
            return
        length = p.scale * float(generator.uniform(0.75, 1.2)) * (14 + 3.2 * radius / p.scale)
        end = start + way * length
        share = min(1.0, (radius / finest) ** 2)
        p.put(p.canvas.tube(start.tolist(), end.tolist(), max(radius, finest)), value, _BLOOD, only=only, share=share)
        for _ in range(2 if radius < 4.5 * p.scale else 3):
            turn = way + 0.75 * generator.normal(size=3)
            grow(end, turn / np.linalg.norm(turn), radius * float(generator.uniform(0.66, 0.82)), only, value)

    for side in (1, -1):
        for way in (
            (side, 0.2, 0.9),
            (side, 0.6, -0.3),
            (side, -0.7, -0.5),
            (side, -0.5, 0.5),
            (0.6 * side, 0.3, -1.2),
        ):
            direction = np.array(way) / np.linalg.norm(way)
            grow(np.array(p.mm(side * 34, -2, 14)), direction, p.mm(5.6, vary=0.1)[0], lung, 40 + 120 * contrast)
    for way in ((0.8, 0.4, 0.3), (0.6, -0.6, 0.2), (0.9, 0.0, -0.4)):
        direction = np.array(way) / np.linalg.norm(way)
        grow(np.array(p.mm(28, -6, -130)), direction, p.mm(6, vary=0.1)[0], liver, 45 + 130 * contrast)


def _skeleton(p: _Patient, cavity: np.ndarray) -> None:
    from scipy import ndimage

    _, (x, y, z) = p.canvas.box(*([(-1e9,) * 3, (1e9,) * 3]))
    # Ribs: bands that sink towards the front, in the shell around the cavity.
    outside = ndimage.distance_transform_edt(~cavity, sampling=p.canvas.spacing).astype(np.float32)
    step, thick = p.mm(27, 10)
    phase = np.mod((z + 0.38 * y + p.generator.uniform(0, step)) / step, 1.0)
    shell = (outside > 0) & (outside <= thick) & (p.labels == _MUSCLE)
    chest = (z > p.mm(-105)[0] - 0.3 * y) & (z < p.mm(175)[0])
    rib = shell & (np.abs(phase - 0.5) < 0.21) & chest & (np.abs(x) > p.mm(13)[0])
    p.values[rib] = np.where(np.abs(outside - thick / 2)[rib] > 0.25 * thick, 520, 230)
    p.labels[rib] = _BONE
    sternum = shell & (np.abs(x) < p.mm(16)[0]) & (y > 0) & (z > p.mm(-40)[0]) & (z < p.mm(120)[0])
    p.values[sternum] = 260
    p.labels[sternum] = _BONE
    # Spine: bodies with a hard rim, discs between, a canal behind, processes.
    (cy, rx, ry), gap = p.mm(-66, 21, 17, vary=0.04), p.mm(29, vary=0.05)[0]
    at = np.mod(z / gap + p.generator.uniform(), 1.0)
    disc = at < 0.2
    round_ = (x / rx) ** 2 + ((y - cy) / ry) ** 2
    rim = (round_ > 0.72) | (np.abs(at - 0.6) > 0.34)
    everywhere = (slice(None), slice(None), slice(None))
    body = np.broadcast_to(round_ <= 1, p.canvas.size)
    marrow = float(p.generator.uniform(140, 230))
    back = cy - ry
    arch = (np.abs(x) < p.mm(17)[0]) & (y < back + p.mm(4)[0]) & (y > back - p.mm(22)[0]) & (at > 0.3)
    wings = (np.abs(x) < p.mm(40)[0]) & (np.abs(y - back + p.mm(8)[0]) < p.mm(5)[0]) & (np.abs(at - 0.62) < 0.16)
    spine = (np.abs(x) < p.mm(4.5)[0]) & (y < back - p.mm(20)[0]) & (y > back - p.mm(38)[0]) & (np.abs(at - 0.6) < 0.3)
    solid = (p.labels != _AIR) & (p.labels != _COUCH)
    p.put((everywhere, arch | wings | spine), 380, _BONE, only=solid)
    p.put((everywhere, body), 90, _MUSCLE)
    p.put((everywhere, body & ~disc & (z < 1e9)), marrow, _BONE)
    p.put((everywhere, body & ~disc & rim), 480, _BONE)
    p.put(
        (everywhere, ((x / p.mm(10)[0]) ** 2 + ((y - back + p.mm(9)[0]) / p.mm(8)[0]) ** 2 <= 1) & (z < 1e9)),
        28,
        _MUSCLE,
    )


def _lesions(p: _Patient, values: np.ndarray, marks: np.ndarray, generator: np.random.Generator, count: int) -> None:
    in_liver = count // 3
    jobs = ((_LUNG, count - in_liver, p.mm(6, 16)), (_LIVER, in_liver, p.mm(9, 20)))
    number = 0
    for label, some, radius in jobs:
        if not some:
            continue
        found = plant_lesions(p.labels, p.canvas, generator, count=some, within=label, radius=(radius[0], radius[1]))
        if len(found) < some:
            raise ValueError(
                f"there is room for {len(found)} of {some} lesions in the {STRUCTURES[label]} of this phantom: plant fewer, "
                "or take finer voxels"
            )
        for mask in found:
            number += 1
            solid = (
                float(generator.uniform(20, 70)) if generator.uniform() < 0.7 else float(generator.uniform(-520, -350))
            )
            values[mask] = solid if label == _LUNG else float(generator.uniform(5, 30))
            marks[mask] = number


def _grain(generator: np.random.Generator, size: tuple[int, int, int], sigma: float) -> np.ndarray:
    """Return noise with the short correlation that a reconstruction kernel leaves within a slice."""
    from scipy import ndimage

    white = generator.standard_normal(size, dtype=np.float32)
    field = ndimage.gaussian_filter(white, (0.6, 0.6, 0.0))
    return (sigma / max(float(field.std()), 1e-6)) * field
