"""Compare two evaluation cards and write the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omnivae.files import write_atomic
from omnivae.metrics import Comparison, compare


def compare_cards(
    a: str | Path,
    b: str | Path,
    *,
    metrics: Sequence[str] | None = None,
    common: bool = False,
    flips: int = 10_000,
    bootstrap: int = 10_000,
    seed: int = 0,
    json: str | Path | None = None,
    png: str | Path | None = None,
) -> Comparison:
    """Compare two cards, see :func:`omnivae.compare`, and write figures and a picture where asked to.

    Args:
        a: the JSON file of an evaluation, or a run that holds one.
        b: the other; differences are B - A.
        metrics: which to compare; by default all that both have and that can be compared.
        common: compare the images that both have, where they are not the same.
        flips: random sign patterns of the permutation test.
        bootstrap: resamples of the intervals.
        seed: of both.
        json: file for all figures.
        png: file for a picture of the paired differences.

    Returns:
        The differences and a verdict.

    Raises:
        FileNotFoundError: when a card does not exist.
        ValueError: where the cards cannot be compared, or the picture is no PNG.
    """
    if png is not None and Path(png).suffix.lower() != ".png":
        raise ValueError(f"got --png {png}; expected the name of a PNG file, such as difference.png")
    comparison = compare(a, b, metrics=metrics, common=common, flips=flips, bootstrap=bootstrap, seed=seed)
    if json is not None:
        comparison.to_json(json)
    if png is not None:
        from omnivae.report.differences import difference_picture

        write_atomic(Path(png), difference_picture(comparison))
    return comparison
