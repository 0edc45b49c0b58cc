"""Charts are PNG files, drawn without touching matplotlib's global state; the projection equals scikit-learn's."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from omnivae.report import curves, kl_bar, latent_map
from omnivae.report.plots import principal_components

HISTORY = {
    "train/total": [(s, 100.0 * math.exp(-s / 50) + 1) for s in range(300)],
    "train/kl": [(0, 1.0), (1, math.nan), (2, 2.0)],
    "val/kl": [(2, 1.5)],
    "train/lr": [(0, 0.0), (10, 1e-3)],
    "odd_name": [(0, 1.0)],
}


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_curves_have_a_panel_for_each_quantity():
    one = size(curves({"train/kl": [(0, 1.0), (1, 2.0)], "val/kl": [(1, 1.0)]}))
    four = size(curves(HISTORY))
    assert four[0] > 2.5 * one[0]
    assert four[1] == 2 * one[1]
    with pytest.raises(ValueError, match="nothing to draw"):
        curves({"train/kl": [(0, math.nan)]})


def test_kl_bar():
    assert size(kl_bar([0.5, 0.0, 2.0])) == size(kl_bar(np.linspace(0, 1, 100).tolist()))
    with pytest.raises(ValueError, match="at least one"):
        kl_bar([])


@pytest.mark.parametrize("labels", [None, [0, 1, 2] * 8, np.linspace(0, 1, 24)])
@pytest.mark.parametrize("dimensions", [1, 2, 6])
def test_latent_map(labels, dimensions):
    points = np.random.default_rng(0).normal(size=(24, dimensions))
    png = latent_map(points, labels, classes=["a", "$b", "c"])
    assert size(png)[0] > 600
    assert latent_map(points, labels, classes=["a", "$b", "c"]) == png


def test_latent_map_with_tsne():
    points = np.random.default_rng(0).normal(size=(24, 6))
    assert size(latent_map(points, methods=("pca", "tsne")))[0] > size(latent_map(points))[0]


def test_bad_latents_are_refused():
    points = np.zeros((4, 2))
    with pytest.raises(ValueError, match="got 3 labels for 4 latents"):
        latent_map(points, [0, 1, 2])
    with pytest.raises(ValueError, match="at least two"):
        latent_map(points[:1])
    with pytest.raises(ValueError, match="got method 'umap'"):
        latent_map(points, methods=("umap",))


def test_principal_components_equal_scikit_learn():
    points = np.random.default_rng(0).normal(size=(30, 5)) * [3, 1, 2, 0.5, 1]
    plane, share = principal_components(points)
    reference = PCA(2).fit(points)
    np.testing.assert_allclose(np.abs(plane), np.abs(reference.transform(points)), atol=1e-9)
    np.testing.assert_allclose(share, reference.explained_variance_ratio_, rtol=1e-9)


def test_no_pyplot():
    before = "matplotlib.pyplot" in sys.modules
    kl_bar([1.0])
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_weights_of_losses_do_not_share_the_axis_of_their_loss(monkeypatch):
    titles = []
    from matplotlib.axes import Axes

    real = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **look: titles.append(text) or real(self, text, **look))
    curves(
        {
            "train/kl": [(1, 10.0), (2, 12.0)],
            "train/weight/kl": [(1, 0.0), (2, 1e-7)],
            "train/l1": [(1, 1.0), (2, 0.5)],
            "train/weight/l1": [(1, 1.0), (2, 1.0)],
        }
    )
    assert len(titles) == 3
    assert sum(title.startswith("weight of") for title in titles) == 1  # that of l1 never changes
