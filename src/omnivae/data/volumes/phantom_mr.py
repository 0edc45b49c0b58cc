"""An MR-like phantom: a head, T1- or T2-weighted, with an uneven coil and Rician noise; another person for each seed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from omnivae.data.volumes.drawing import Canvas, smooth_noise
from omnivae.data.volumes.phantoms import Phantom, assemble, plant_lesions

STRUCTURES = {
    0: "air",
    1: "scalp",
    2: "skull",
    3: "csf",
    4: "grey",
    5: "white",
    6: "deep grey",
    7: "soft tissue",
    8: "stem",
}
_AIR, _SCALP, _SKULL, _CSF, _GREY, _WHITE, _DEEP, _SOFT, _STEM = STRUCTURES
#: Structure -> signal, and last the signal of a lesion.
_SIGNAL = {
    "t1": {
        _AIR: 6,
        _SCALP: 880,
        _SKULL: 70,
        _CSF: 170,
        _GREY: 480,
        _WHITE: 700,
        _DEEP: 590,
        _SOFT: 430,
        _STEM: 650,
        -1: 360,
    },
    "t2": {
        _AIR: 6,
        _SCALP: 520,
        _SKULL: 60,
        _CSF: 980,
        _GREY: 560,
        _WHITE: 400,
        _DEEP: 450,
        _SOFT: 300,
        _STEM: 420,
        -1: 860,
    },
}


def mr_phantom(
    seed: int = 0,
    *,
    size: tuple[int, int, int] = (96, 96, 96),
    spacing: tuple[float, float, float] = (2.4, 2.4, 2.4),
    weighting: Literal["t1", "t2"] = "t1",
    lesions: int = 2,
    noise: float = 18.0,
    orientation: str = "RAS",
) -> Phantom:
    """Draw an MR image of a head, whose values have no unit.

    Scalp, skull, folded grey and white matter, fluid, ventricles, deep grey matter, cerebellum, brain stem and neck; the
    sensitivity of the coil varies smoothly by about a fifth. Lesions lie in the white matter.

    Args:
        seed: of the person; both weightings of a seed are of the same person, lesions included.
        size: voxels along the axes to the right, front and top; the anatomy is scaled to the width.
        spacing: mm along the same axes.
        weighting: "t1" (fluid dark) or "t2" (fluid bright).
        lesions: how many to plant.
        noise: standard deviation of each of the two channels of the Rician noise; white matter is 700 in T1.
        orientation: of the axes.

    Returns:
        Volume (int16, arbitrary unit), labels and lesions.

    Raises:
        ValueError: for sizes, counts and weightings that cannot be.

    Example:
        >>> phantom = mr_phantom(1, size=(32, 32, 32), spacing=(7.2, 7.2, 7.2), lesions=0)
        >>> values = phantom.volume.array[0]
        >>> bool(values[phantom.mask("white")].mean() > values[phantom.mask("csf")].mean())
        True
    """
    if weighting not in _SIGNAL:
        raise ValueError(f"got the weighting {weighting!r}; expected 't1' or 't2'")
    if min(size) < 8 or min(spacing) <= 0:
        raise ValueError(
            f"got size {list(size)} and spacing {list(spacing)}; expected 8 voxels or more, and lengths above 0"
        )
    if not 0 <= lesions <= 255 or noise < 0:
        raise ValueError(f"got {lesions} lesions and noise {noise:g}; expected 0 to 255 lesions and no negative noise")
    streams = np.random.SeedSequence(seed).spawn(4)
    anatomy, texture, tumour, grain = (np.random.default_rng(stream) for stream in streams)
    canvas = Canvas(size, spacing)
    scale = 0.43 * canvas.extent[0] / 80  # the head's half width is 80 mm where it is life-size
    labels = _head(canvas, scale, anatomy, texture)
    signal = np.zeros(size, np.float32)
    for label, value in _SIGNAL[weighting].items():
        if label >= 0:
            signal[labels == label] = value
    marks = np.zeros(size, np.uint8)
    found = plant_lesions(labels, canvas, tumour, count=lesions, within=_WHITE, radius=(3.5 * scale, 9 * scale))
    if len(found) < lesions:
        raise ValueError(f"there is room for {len(found)} of {lesions} lesions: plant fewer, or take finer voxels")
    for number, mask in enumerate(found, 1):
        signal[mask] = _SIGNAL[weighting][-1]
        marks[mask] = number
    values = _scan(signal, size, texture, grain, noise)
    return assemble(values, labels, marks, canvas, names=STRUCTURES, unit="arbitrary", orientation=orientation)


def _head(canvas: Canvas, scale: float, anatomy: np.random.Generator, texture: np.random.Generator) -> np.ndarray:
    """Return the structure of each voxel."""

    def mm(*lengths: float, vary: float = 0.0) -> list[float]:
        return [float(n * scale * anatomy.uniform(1 - vary, 1 + vary)) for n in lengths]

    labels = np.zeros(canvas.size, np.uint8)
    _, (x, y, z) = canvas.box((-1e9,) * 3, (1e9,) * 3)
    up = mm(18)[0]
    rx, ry, rz = mm(68, 84, 70, vary=0.04)

    def shell(more: float) -> np.ndarray:
        """Return how far out each voxel lies: 1 at the surface of the brain grown by some mm."""
        grown = mm(more)[0]
        # Narrower in front than behind, flatter below than above.
        wide = rx * (1 - 0.10 * y / ry) + grown
        high = np.where(z - up > 0, rz, 0.8 * rz) + grown
        return ((x / wide) ** 2 + (y / (ry + grown)) ** 2 + ((z - up) / high) ** 2) ** 0.5

    neck = (x / mm(52)[0]) ** 2 + ((y + mm(12)[0]) / mm(58)[0]) ** 2 <= 1
    face = (np.abs(x / mm(54)[0]) ** 2.5 + np.abs((y - mm(40)[0]) / mm(52)[0]) ** 2.5 <= 1) & (z > mm(-95)[0])
    low = z < mm(-20)[0]
    labels[(neck | face) & low] = _SCALP
    inner = (x / mm(46)[0]) ** 2 + ((y + mm(12)[0]) / mm(52)[0]) ** 2 <= 1
    labels[(inner & low) | (face & low & (np.abs(x) < mm(44)[0]) & (y < mm(84)[0]))] = _SOFT
    for more, label in ((17, _SCALP), (11, _SKULL), (4, _CSF)):
        labels[shell(more) <= 1] = label
    # Grey matter, folded: furrows run where a smooth field crosses zero, wider towards the surface, grey on both sides.
    out = shell(0)
    folds = np.abs(smooth_noise(texture, canvas.size, 15) + 0.3 * smooth_noise(texture, canvas.size, 22))
    open_ = 0.20 * np.clip((out - 0.66) / 0.34, 0, 1)
    grey = 0.62 * np.clip((out - 0.58) / 0.24, 0, 1)
    labels[out <= 1] = _WHITE
    labels[(out <= 1) & ((folds < open_ + grey) | (out > 0.94))] = _GREY
    labels[(out <= 1) & (folds < open_)] = _CSF
    apart = np.abs(x) + 0 * out
    deep = (out > 0.62) & (out <= 1) & (z > up - 0.5 * rz)
    labels[deep & (apart < mm(5)[0]) & (labels == _WHITE)] = _GREY
    labels[deep & (apart < mm(1.6)[0])] = _CSF
    # Deep grey matter and ventricles, on both sides.
    for side in (1, -1):
        for centre, radii, label in (
            ((19, 8, 14), (9, 20, 11), _DEEP),
            ((13, -12, 16), (10, 14, 10), _DEEP),
            ((11, 6, 27), (5.5, 30, 8), _CSF),
            ((21, -34, 20), (6, 17, 8), _CSF),
        ):
            where = mm(side * centre[0], centre[1], centre[2], vary=0.04)
            part, mask = canvas.ellipsoid(where, mm(*radii, vary=0.1))
            labels[part][mask] = label
    part, mask = canvas.ellipsoid(mm(0, -6, 12), mm(2.2, 12, 9, vary=0.1))
    labels[part][mask] = _CSF
    # Cerebellum with its leaves, and the stem.
    part, mask = canvas.ellipsoid(mm(0, -46, -36), mm(46, 28, 24), power=2.3)
    ring, ringed = canvas.ellipsoid(mm(0, -46, -36), mm(49, 31, 27), power=2.3)
    labels[ring][ringed & np.isin(labels[ring], (_SKULL, _SCALP, _SOFT, _CSF))] = _CSF
    leaves = np.sin(z[:, :, part[2]] / mm(1.3)[0]) > 0.2
    labels[part] = np.where(mask, np.where(leaves, _WHITE, _GREY), labels[part])
    part, mask = canvas.tube(mm(0, -14, -4), mm(0, -26, -400), mm(13)[0])
    labels[part][mask] = np.where(labels[part][mask] == _AIR, _AIR, _STEM)
    return labels


def _scan(
    signal: np.ndarray,
    size: tuple[int, int, int],
    texture: np.random.Generator,
    grain: np.random.Generator,
    noise: float,
) -> np.ndarray:
    """Return what a scanner makes of a signal: partial volume, an uneven coil, Rician noise, whole numbers."""
    from scipy import ndimage

    soft = ndimage.gaussian_filter(signal, 0.5)
    soft *= 1 + 0.02 * smooth_noise(texture, size, 14)
    soft *= np.exp(0.16 * ndimage.gaussian_filter(smooth_noise(texture, size, 3), [n / 12 for n in size]))
    real = soft + noise * grain.standard_normal(size, dtype=np.float32)
    imaginary = noise * grain.standard_normal(size, dtype=np.float32)
    return np.clip(np.rint(np.hypot(real, imaginary)), 0, 32767).astype(np.int16)
