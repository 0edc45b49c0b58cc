"""Charts as PNG bytes: training curves, KL of each latent dimension, and a map of the latents.

Drawn with matplotlib's object interface: no pyplot, no global state, no display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Mapping[str, Sequence[tuple[float, float]]]

INK, MUTED, GRID = "#2b3140", "#6b7280", "#e5e7eb"
BLUE, ORANGE, GREY = "#2563a8", "#d9772b", "#b8bfca"
#: Twelve colours, told apart in pairs also without full colour vision.
CLASSES = (
    "#2563a8", "#d9772b", "#3f9b4f", "#c23b4a", "#7a5bb5", "#8a6246",
    "#d873b1", "#6f7680", "#b5a827", "#2aa7b8", "#1b3a66", "#f2a7a0",
)  # fmt: skip
DPI = 150

#: Heading of each known quantity, in the order of the panels; others follow by name.
TITLES = {
    "total": "total loss",
    "nll": "reconstruction (NLL, nats)",
    "kl": "KL (nats)",
    "elbo": "ELBO (nats)",
    "bits_per_dim": "bits per dimension",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "active_units": "active units",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "images_per_s": "images per second",
}


def curves(history: History, *, columns: int = 3) -> bytes:
    """Draw training curves as small multiples: one panel a quantity, training and validation in it.

    Panels of positive values that span more than a factor of 50 have a logarithmic axis. Curves of more than 200 points
    are shown pale under their running mean.

    Args:
        history: points (step, value) by name; "train/kl" and "val/kl" share a panel, and "train/weight/kl" has one of its own where
            the weight changes.
        columns: panels in a row.

    Returns:
        PNG bytes.

    Raises:
        ValueError: where there is no finite point.
    """
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name, points in history.items():
        stage, _, quantity = name.rpartition("/")
        array = np.array([p for p in points if math.isfinite(p[1])], dtype=float)
        if stage.endswith("/weight"):
            # On an axis of its own, and only where it changes: beside the loss that it weighs it would set the scale.
            stage, quantity = stage.removesuffix("/weight"), f"weight of {TITLES.get(quantity, quantity)}"
            array = array[:0] if len(array) and np.ptp(array[:, 1]) == 0 else array
        if len(array):
            panels.setdefault(quantity, {})[stage or "train"] = array
    if not panels:
        raise ValueError("got a history without any finite value; there is nothing to draw")
    known = list(TITLES)
    order = sorted(panels, key=lambda q: (known.index(q) if q in known else len(known), q))
    columns = min(columns, len(order))
    rows = math.ceil(len(order) / columns)
    figure = figure_of(3.6 * columns, 2.3 * rows)
    for index, quantity in enumerate(order):
        axes = figure.add_subplot(rows, columns, index + 1)
        style_axes(axes, grid="both")
        axes.set_title(TITLES.get(quantity, quantity.replace("_", " ")), loc="left", fontsize=9.5, color=INK)
        for stage, array in panels[quantity].items():
            _curve(axes, array, stage, ORANGE if stage == "val" else BLUE, smooth=quantity != "lr")
        values = np.concatenate([a[:, 1] for a in panels[quantity].values()])
        if quantity not in ("lr", "images_per_s") and values.min() > 0 and values.max() / values.min() > 50:
            axes.set_yscale("log")
        if index >= len(order) - columns:
            axes.set_xlabel("step", fontsize=8.5, color=MUTED)
        if len(panels[quantity]) > 1:
            legend = axes.legend(frameon=False, fontsize=8, loc="best", handlelength=1.2)
            for text in legend.get_texts():
                text.set_color(MUTED)
    return png_of(figure)


def kl_bar(kl_per_dimension: Sequence[float], *, threshold: float = 0.01) -> bytes:
    """Draw the KL of each latent dimension, largest first.

    Args:
        kl_per_dimension: nats, ``[D]``, D >= 1.
        threshold: KL above which a dimension counts as used, in nats.

    Returns:
        PNG bytes.

    Raises:
        ValueError: for an empty list.
    """
    if not len(kl_per_dimension):
        raise ValueError("got no dimension; expected the KL of at least one")
    values = np.asarray(kl_per_dimension, dtype=float)
    order = np.argsort(-values, kind="stable")
    used = int((values > threshold).sum())
    figure = figure_of(10.8, 2.9)
    axes = figure.add_subplot()
    style_axes(axes, grid="y")
    axes.bar(
        range(len(values)), values[order], color=[BLUE if v > threshold else GREY for v in values[order]], width=0.8
    )
    axes.axhline(threshold, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.set_ylabel("KL (nats)", fontsize=9, color=MUTED)
    axes.set_title(
        f"{used} of {len(values)} dimensions above {threshold:g} nats (dashed); {values.sum():.1f} nats in all",
        loc="left", fontsize=9.5, color=INK,
    )  # fmt: skip
    if len(values) <= 48:
        axes.set_xticks(range(len(values)), [str(i) for i in order], fontsize=7.5 if len(values) > 32 else 8.5)
        axes.set_xlabel("latent dimension", fontsize=9, color=MUTED)
    else:
        axes.set_xlabel("latent dimensions, largest first", fontsize=9, color=MUTED)
    return png_of(figure)


def code_histogram(counts: Sequence[Sequence[int]], num_codes: int) -> bytes:
    """Draw how often each code was chosen, most frequent first, one line for each codebook.

    Args:
        counts: how often each code occurs that does, one sequence a codebook, at least one count each.
        num_codes: size of a codebook.

    Returns:
        PNG bytes.

    Raises:
        ValueError: where nothing was counted.
    """
    if not counts or not all(len(book) for book in counts):
        raise ValueError("got a codebook without a single code; expected the counts of at least one image")
    figure = figure_of(10.8, 2.9)
    axes = figure.add_subplot()
    style_axes(axes, grid="y")
    said = []
    for i, book in enumerate(counts):
        share = np.sort(np.asarray(book, dtype=float))[::-1] / sum(book)
        perplexity = float(np.exp(-(share * np.log(share)).sum()))
        # Steps, and down to zero after the last code that occurs.
        edges = np.arange(len(share) + 1)
        axes.stairs(
            100 * share,
            edges,
            baseline=0,
            fill=len(counts) == 1,
            alpha=1 if len(counts) > 1 else 0.85,
            color=CLASSES[i % len(CLASSES)] if len(counts) > 1 else BLUE,
            linewidth=1.4,
        )
        name = f"codebook {i + 1}: " if len(counts) > 1 else ""
        said.append(f"{name}{len(share):,} of {num_codes:,} codes occur, perplexity {perplexity:.1f}")
    axes.axhline(100 / num_codes, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, min(num_codes, max(64, 2 * max(len(book) for book in counts))))
    axes.set_ylabel("share (%)", fontsize=9, color=MUTED)
    axes.set_xlabel("codes, most frequent first", fontsize=9, color=MUTED)
    axes.set_title("\n".join(said), loc="left", fontsize=9.5, color=INK)
    return png_of(figure)


def latent_map(
    latents: Any,
    labels: Any = None,
    *,
    classes: Sequence[str] | None = None,
    methods: Sequence[Literal["pca", "tsne"]] = ("pca",),
    seed: int = 0,
) -> bytes:
    """Draw latents in the plane, coloured by label.

    Args:
        latents: posterior means, ``[N, D]``, N >= 2.
        labels: class index of each, ``[N]``; more than twelve different values are shown on a continuous scale.
        classes: name of each class index.
        methods: one panel each: "pca" (principal components, by singular value decomposition) or "tsne" (van der Maaten
            & Hinton, Visualizing data using t-SNE, 2008; scikit-learn's).
        seed: seed of t-SNE.

    Returns:
        PNG bytes.

    Raises:
        ValueError: for fewer than two latents, unequal lengths, or an unknown method.
    """
    points = np.asarray(latents, dtype=float)
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"got latents of shape {points.shape}; expected [N, D] with at least two")
    groups = None if labels is None else np.asarray(labels)
    if groups is not None and len(groups) != len(points):
        raise ValueError(f"got {len(groups)} labels for {len(points)} latents; expected one for each")
    figure = figure_of(5.4 * len(methods) if len(methods) > 1 else 7.2, 4.8)
    drawn: Any = None
    for index, method in enumerate(methods):
        plane, x_name, y_name = _project(points, method, seed)
        axes = figure.add_subplot(1, len(methods), index + 1)
        style_axes(axes, grid="both")
        axes.set_xlabel(x_name, fontsize=9, color=MUTED)
        axes.set_ylabel(y_name, fontsize=9, color=MUTED)
        if method == "tsne":
            # Coordinates of t-SNE have no unit and no meaning of their own.
            axes.tick_params(labelleft=False, labelbottom=False)
            axes.grid(False)
        drawn = _scatter(axes, plane, groups, classes)
    if isinstance(drawn, list):
        legend = figure.legend(
            handles=drawn, loc="outside right center", frameon=False, fontsize=9, markerscale=2, handletextpad=0.1
        )
        for text in legend.get_texts():
            text.set_color(INK)
    elif drawn is not None and groups is not None:
        bar = figure.colorbar(drawn, ax=figure.axes, fraction=0.03, pad=0.02)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    return png_of(figure)


def principal_components(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points onto their first two principal components.

    Args:
        points: ``[N, D]``.

    Returns:
        Coordinates ``[N, 2]`` (zeros where D is 1) and the share of the variance of each, ``[2]``. The largest loading
        of a component is positive, so that the picture does not depend on the solver.
    """
    centred = points - points.mean(0)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    axes = axes * np.where(signs == 0, 1, signs)[:, None]
    plane = np.zeros((len(points), 2))
    share = np.zeros(2)
    count = min(2, len(axes))
    plane[:, :count] = centred @ axes[:count].T
    share[:count] = (scales**2 / max(float((scales**2).sum()), 1e-300))[:count]
    return plane, share


# -- inside


def _project(points: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, str, str]:
    if method == "pca":
        plane, share = principal_components(points)
        return plane, f"component 1 ({share[0]:.0%} of the variance)", f"component 2 ({share[1]:.0%})"
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        model = TSNE(n_components=2, perplexity=perplexity, init="random", random_state=seed)
        return model.fit_transform(points), "t-SNE 1", "t-SNE 2"
    raise ValueError(f"got method {method!r}; expected 'pca' or 'tsne'")


def _scatter(axes: Axes, plane: np.ndarray, groups: np.ndarray | None, names: Sequence[str] | None) -> Any:
    size = float(np.clip(9000 / len(plane), 5, 30))
    look: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.8}
    if groups is None:
        axes.scatter(plane[:, 0], plane[:, 1], color=BLUE, **look)
        return None
    values = np.unique(groups)
    if len(values) > len(CLASSES):
        return axes.scatter(plane[:, 0], plane[:, 1], c=groups.astype(float), cmap="viridis", **look)
    handles = []
    for index, value in enumerate(values):
        inside = groups == value
        known = names is not None and float(value).is_integer() and 0 <= int(value) < len(names)
        name = names[int(value)] if known and names is not None else f"{value:g}"
        # Mathtext would take a dollar sign in a class name for a formula.
        label = name.replace("$", r"\$")
        handles.append(axes.scatter(plane[inside, 0], plane[inside, 1], color=CLASSES[index], label=label, **look))
    return handles


def _curve(axes: Axes, array: np.ndarray, label: str, colour: str, *, smooth: bool) -> None:
    steps, values = array[:, 0], array[:, 1]
    if smooth and len(array) > 200:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        width = len(array) // 50
        kernel = np.ones(2 * width + 1)
        values = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    marker = "o" if len(array) < 15 else ""
    axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3, label=label)


def figure_of(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09), facecolor="white"
    )
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, *, grid: Literal["both", "x", "y"]) -> None:
    """Give axes the look of every chart here: a pale grid, no frame, no ticks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, colors=MUTED)


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    # No software version in the file: the same picture is the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
