"""A room with an object, ray cast: the factors of 3D Shapes (Burgess and Kim, 3D Shapes Dataset, 2018).

Hue of floor, wall and object, scale, shape and the camera's orientation have the numbers of values and the order of the original,
480,000 pictures of 64 x 64 pixels. The scene is our own: a square room seen from a camera that circles the object, a lamp that
stays where it is in the room, diffuse and specular light, the object's shadow.

Hues only tint what the rays hit, so a picture is a weighted sum of four planes that depend on scale, shape and orientation alone.
Each of those 480 arrangements is ray cast once, when it is first asked for.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from omnivae.data.worlds.base import World

IMAGE_SIZE = 64
_SCALES, _DEGREES = np.linspace(0.75, 1.25, 8), np.linspace(-30.0, 30.0, 15)
_HUES = np.linspace(0.0, 0.9, 10)

# Lengths are in units of the object's half width at scale 1; y is up, the object stands on the floor in the middle of the room.
_ROOM_HALF, _ROOM_HEIGHT = 5.0, 7.0
_CAMERA_DISTANCE, _CAMERA_HEIGHT, _LOOK_AT_HEIGHT, _HALF_VIEW = 8.5, 3.6, 1.25, 0.38
_LAMP = np.array([3.2, 6.2, 3.8])
_AMBIENT, _SHINE, _SHARPNESS = 0.42, 0.35, 30.0
#: Rays of a pixel, along each axis.
_RAYS = 3
_FLOOR, _WALL, _OBJECT = range(3)


def _draw(factors: np.ndarray) -> np.ndarray:
    images = np.empty((len(factors), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    colours = np.ones((len(factors), 4, 3), dtype=np.float32)  # the last plane is the lamp's white reflection
    colours[:, :3] = hue_to_rgb(_HUES[factors[:, :3]])
    for i, (scale, shape, degrees) in enumerate(factors[:, 3:].tolist()):
        # The planes are so scaled that no sum exceeds 255.
        mixed = planes(scale, shape, degrees) @ colours[i]
        images[i] = (mixed + np.float32(0.5)).astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE, 3)
    return images


def hue_to_rgb(hue: np.ndarray) -> np.ndarray:
    """Return colours of saturation 0.85 and value 1.

    Args:
        hue: any shape, in turns: 0 is red, 1/3 green, 2/3 blue.

    Returns:
        ``[..., 3]`` in [0, 1].
    """
    apart = np.abs((hue[..., None] - np.array([0.0, 1 / 3, 2 / 3]) + 0.5) % 1.0 - 0.5)
    return 0.15 + 0.85 * np.clip(2.0 - 6.0 * apart, 0.0, 1.0)


@cache
def planes(scale: int, shape: int, degrees: int) -> np.ndarray:
    """Return how bright floor, wall, object and reflection are in each pixel.

    Args:
        scale: class of the scale, 0 to 7.
        shape: cube, cylinder, sphere or capsule, 0 to 3.
        degrees: class of the orientation, 0 to 14.

    Returns:
        ``[64 * 64, 4]`` float32, in [0, 255] for a white surface.
    """
    eye, rays = _camera(np.deg2rad(_DEGREES[degrees]))
    size = float(_SCALES[scale])
    hit, normal = _object(shape, eye / size, rays)
    hit = hit * size
    far, inward = _room(eye, rays)
    on_object = hit < far
    distance = np.where(on_object, hit, far)
    normal = np.where(on_object[:, None], normal, inward)
    surface = np.where(on_object, _OBJECT, np.where(inward[:, 1] > 0.5, _FLOOR, _WALL))

    point = eye + distance[:, None] * rays
    to_lamp = _LAMP - point
    length = np.linalg.norm(to_lamp, axis=1)
    to_lamp /= length[:, None]
    # A ray to the lamp starts a little off the surface, so that it does not meet it again.
    blocked = _object(shape, (point + 1e-3 * normal) / size, to_lamp)[0] * size < length
    facing = np.clip((normal * to_lamp).sum(1), 0.0, 1.0) * ~blocked
    light = _AMBIENT + (1.0 - _AMBIENT) * facing
    halfway = to_lamp - rays
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    gleam = _SHINE * np.clip((normal * halfway).sum(1), 0.0, 1.0) ** _SHARPNESS * on_object * ~blocked

    brightness = np.zeros((len(rays), 4), dtype=np.float32)
    # Light and reflection share what a pixel can show.
    brightness[np.arange(len(rays)), surface] = light * (1.0 - gleam)
    brightness[:, 3] = gleam
    grid = brightness.reshape(IMAGE_SIZE, _RAYS, IMAGE_SIZE, _RAYS, 4)
    return np.float32(255) * grid.mean(axis=(1, 3)).reshape(-1, 4)


def _camera(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return where the camera is, and the unit directions of its rays ``[(64 * 3)**2, 3]`` from the top left."""
    eye = np.array([_CAMERA_DISTANCE * np.sin(angle), _CAMERA_HEIGHT, _CAMERA_DISTANCE * np.cos(angle)])
    ahead = np.array([0.0, _LOOK_AT_HEIGHT, 0.0]) - eye
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, ahead)
    number = IMAGE_SIZE * _RAYS
    offset = _HALF_VIEW * ((np.arange(number) + 0.5) / number * 2.0 - 1.0)
    rays = ahead + offset[None, :, None] * right - offset[:, None, None] * up
    rays = rays.reshape(-1, 3)
    return eye, rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _room(eye: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance at which rays leave the room, and the inward normal there; the near walls are not seen."""
    low, high = np.array([-_ROOM_HALF, 0.0, -_ROOM_HALF]), np.array([_ROOM_HALF, _ROOM_HEIGHT, _ROOM_HALF])
    with np.errstate(divide="ignore"):
        leave = np.where(rays > 0, (high - eye) / rays, (low - eye) / rays)
    leave[rays == 0] = np.inf
    axis = leave.argmin(axis=1)
    rows = np.arange(len(rays))
    normal = np.zeros_like(rays)
    normal[rows, axis] = -np.sign(rays[rows, axis])
    return leave[rows, axis], normal


def _object(shape: int, start: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the object at scale 1 (infinite where it is missed), and its outward normal."""
    start = np.broadcast_to(start, rays.shape)
    return (_cube, _cylinder, _sphere, _capsule)[shape](start, rays)


def _cube(start: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre, half = np.array([0.0, 0.95, 0.0]), 0.95
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (centre - half - start) / rays, (centre + half - start) / rays
    enter, leave = np.fmin(a, b), np.fmax(a, b)
    axis = enter.argmax(axis=1)
    rows = np.arange(len(rays))
    first = enter[rows, axis]
    hit = (first < leave.min(axis=1)) & (first > 0)
    normal = np.zeros_like(rays)
    normal[rows, axis] = -np.sign(rays[rows, axis])
    return np.where(hit, first, np.inf), normal


def _sphere(
    start: np.ndarray, rays: np.ndarray, height: float = 1.1, radius: float = 1.1
) -> tuple[np.ndarray, np.ndarray]:
    centre = np.array([0.0, height, 0.0])
    middle = ((centre - start) * rays).sum(1)
    inside = radius**2 - (np.square(centre - start).sum(1) - middle**2)
    first = middle - np.sqrt(np.maximum(inside, 0.0))
    distance = np.where((inside > 0) & (first > 0), first, np.inf)
    point = start + np.where(np.isfinite(distance), distance, 0.0)[:, None] * rays
    return distance, (point - centre) / radius


def _tube(start: np.ndarray, rays: np.ndarray, low: float, high: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The side of an upright cylinder."""
    flat, origin = rays[:, [0, 2]], start[:, [0, 2]]
    a = np.maximum(np.square(flat).sum(1), 1e-12)
    b = (flat * origin).sum(1)
    inside = b**2 - a * (np.square(origin).sum(1) - radius**2)
    first = (-b - np.sqrt(np.maximum(inside, 0.0))) / a
    height = start[:, 1] + first * rays[:, 1]
    hit = (inside > 0) & (first > 0) & (height >= low) & (height <= high)
    point = start + np.where(hit, first, 0.0)[:, None] * rays
    return np.where(hit, first, np.inf), point * np.array([1.0, 0.0, 1.0]) / radius


def _cylinder(start: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    radius, top = 0.9, 2.0
    distance, normal = _tube(start, rays, 0.0, top, radius)
    with np.errstate(divide="ignore", invalid="ignore"):
        lid = (top - start[:, 1]) / rays[:, 1]
        over = start + lid[:, None] * rays
        seen = (lid > 0) & (np.square(over[:, [0, 2]]).sum(1) < radius**2) & (lid < distance)
    return np.where(seen, lid, distance), np.where(seen[:, None], [0.0, 1.0, 0.0], normal)


def _capsule(start: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    radius, top = 0.75, 2.5
    distance, normal = _tube(start, rays, radius, top - radius, radius)
    for height in (radius, top - radius):
        other, other_normal = _sphere(start, rays, height, radius)
        nearer = other < distance
        distance, normal = np.where(nearer, other, distance), np.where(nearer[:, None], other_normal, normal)
    return distance, normal


SHAPES3D = World(
    name="shapes3d",
    names=("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"),
    values=(_HUES, _HUES, _HUES, _SCALES, np.arange(4.0), _DEGREES),
    image_shape=(IMAGE_SIZE, IMAGE_SIZE),
    channels=3,
    draw=_draw,
)
