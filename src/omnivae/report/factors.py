"""What the codes of a model know of known factors, as pictures and as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnivae.metrics.disentanglement.information import mutual_information
from omnivae.metrics.disentanglement.table import make_table
from omnivae.metrics.factors import FactorTable
from omnivae.report.plots import INK, MUTED, figure_of, png_of

#: A code that tells less than this share of every factor's entropy has no factor (counts of 2,000 rows alone give up to 0.05).
LEAST_SHARE = 0.1


def factor_maps(details: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw how much each code knows of each factor, and how much it matters to the prediction of each.

    Args:
        details: of an evaluation, with "mig", or "dci_disentanglement", or both.

    Returns:
        A PNG.
    """
    panels = []
    if "mig" in details:
        of = details["mig"]
        share = np.array(of["mutual_information"]) / np.array(of["entropy"])
        panels.append(("Mutual information, share of the factor's entropy", of["factors"], share))
    if "dci_disentanglement" in details:
        of = details["dci_disentanglement"]
        panels.append(("Importance to the prediction (DCI)", of["factors"], np.array(of["importances"])))
    rows = len(panels[0][2])
    figure = figure_of(max(4.6, 1.6 + 0.62 * len(panels[0][1])) * len(panels), 1.7 + 0.3 * rows)
    for place, (title, names, values) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_title(title, fontsize=10, color=INK, pad=8)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8.5, color=MUTED)
        axes.set_yticks(range(rows), [f"z{i}" for i in range(rows)], fontsize=8.5, color=MUTED)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        if rows <= 32:
            for (i, j), value in np.ndenumerate(values):
                colour = "white" if value > 0.6 else INK if value >= 0.005 else MUTED
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    return png_of(figure)


def labels_of(information: np.ndarray, entropy: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return for each code the factor of which it knows the largest share, and that share.

    Args:
        information: mutual information ``[D, F]`` in nats.
        entropy: of each factor ``[F]`` in nats.
        names: one for each factor.

    Returns:
        Texts such as "scale 82 %"; empty for a code that tells next to nothing of any factor.

    Example:
        >>> labels_of(np.array([[0.9, 0.1], [0.0, 0.01]]), np.array([1.0, 2.0]), ["scale", "shape"])
        ['scale 90 %', '']
    """
    share = np.asarray(information) / np.asarray(entropy)
    best = share.argmax(axis=1)
    return [
        f"{names[j]} {row[j]:.0%}".replace("%", " %") if row[j] >= LEAST_SHARE else ""
        for j, row in zip(best, share, strict=True)
    ]


def labels_of_table(table: FactorTable) -> list[str]:
    """Return :func:`labels_of` of a table of codes and factors.

    Args:
        table: the rows.
    """
    information, entropy = mutual_information(make_table(table.codes, table.factors, table.names))
    return labels_of(information, entropy, table.names)
