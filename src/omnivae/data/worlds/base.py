"""A world: every combination of a few factors, each with one picture, rendered when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, eq=False)
class World:
    """A generative process whose factors are known: pictures by their factors or by number, the same every time.

    Attributes:
        name: what ``data.path`` and ``--world`` call it.
        names: one for each factor.
        values: what the classes of each factor stand for, one array a factor, in their order.
        image_shape: height and width of a picture, for a video its frames before them.
        channels: 1 (grey) or 3 (RGB).
        draw: from checked classes ``[N, F]`` int64 to pixels ``[N, *S, C]`` uint8.

    Example:
        >>> from omnivae.data.worlds import world
        >>> dsprites = world("dsprites")
        >>> dsprites.num_images, dsprites.factor_sizes, dsprites.render(dsprites.factors([5])).shape
        (737280, (3, 6, 40, 32, 32), (1, 64, 64, 1))
    """

    name: str
    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]
    image_shape: tuple[int, ...]
    channels: int
    draw: Callable[[np.ndarray], np.ndarray]

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """Number of values of each factor."""
        return tuple(len(values) for values in self.values)

    @property
    def num_factors(self) -> int:
        """Number of factors F."""
        return len(self.names)

    @property
    def num_images(self) -> int:
        """Number of combinations, each of which has one picture."""
        return prod(self.factor_sizes)

    def factors(self, index: np.ndarray | list[int]) -> np.ndarray:
        """Return the factor classes of pictures by their numbers; the last factor varies fastest.

        Args:
            index: ``[N]``, 0 to ``num_images - 1``.

        Returns:
            Class indices ``[N, F]`` int64.

        Raises:
            ValueError: for a number out of range.
        """
        index = np.asarray(index, dtype=np.int64)
        if index.ndim != 1 or (index < 0).any() or (index >= self.num_images).any():
            raise ValueError(
                f"got picture numbers of shape {index.shape}; expected [N], each from 0 to {self.num_images - 1:,}"
            )
        return np.stack(np.unravel_index(index, self.factor_sizes), axis=-1).astype(np.int64)

    def index(self, factors: np.ndarray) -> np.ndarray:
        """Return the numbers of pictures by their factors: the inverse of :meth:`factors`.

        Args:
            factors: class indices ``[N, F]``.

        Returns:
            ``[N]`` int64.
        """
        return np.ravel_multi_index(tuple(self._checked(factors).T), self.factor_sizes).astype(np.int64)

    def factor_values(self, factors: np.ndarray) -> np.ndarray:
        """Return what factor classes stand for.

        Args:
            factors: class indices ``[N, F]``.

        Returns:
            Values ``[N, F]`` float64, in the units that ``values`` has.
        """
        factors = self._checked(factors)
        return np.stack([values[factors[:, i]] for i, values in enumerate(self.values)], axis=-1).astype(np.float64)

    def render(self, factors: np.ndarray) -> np.ndarray:
        """Draw the pictures of factors.

        Args:
            factors: class indices ``[N, F]``.

        Returns:
            Pixels ``[N, *S, C]`` uint8.

        Raises:
            ValueError: for another shape of array, or a class out of its range.
        """
        return self.draw(self._checked(factors))

    def sample(self, count: int, *, seed: int = 0) -> np.ndarray:
        """Draw factors uniformly and independently.

        Args:
            count: number of rows.
            seed: another one gives other rows.

        Returns:
            Class indices ``[count, F]`` int64.
        """
        return np.random.default_rng(seed).integers(self.factor_sizes, size=(count, self.num_factors))

    def _checked(self, factors: np.ndarray) -> np.ndarray:
        array = np.asarray(factors)
        if array.ndim != 2 or array.shape[1] != self.num_factors:
            raise ValueError(
                f"got factors of shape {array.shape}; expected [N, {self.num_factors}]: {', '.join(self.names)}"
            )
        classes = array.astype(np.int64)
        if (classes != array).any() or (classes < 0).any() or (classes >= np.array(self.factor_sizes)).any():
            raise ValueError(f"a factor is out of its range: expected whole numbers, 0 <= factor < {self.factor_sizes}")
        return classes
