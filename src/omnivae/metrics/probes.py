"""Probes: what a linear or a nearest-neighbour classifier reads off the codes, on images held out from its training.

Alain & Bengio, Understanding intermediate layers using linear classifier probes, 2017. Features are posterior modes, each
standardised over the training half of the split; a spatial latent is averaged over blocks of positions until it has no more
than 1,024 elements. One split for all: 80 % of the images train the probe and 20 % test it, stratified by class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics.population import Estimate, Population, codes
from omnivae.metrics.registry import metric

#: Elements of a code that a probe sees at most.
MAX_FEATURES = 1024
TEST_SHARE = 0.2
NEIGHBOURS = 10


@dataclass(frozen=True)
class Split:
    """Standardised features and targets of a probe's training and test images."""

    train: np.ndarray
    test: np.ndarray
    train_target: np.ndarray
    test_target: np.ndarray

    @property
    def remark(self) -> str:
        """What the number is to be compared with."""
        _, counts = np.unique(self.test_target, return_counts=True)
        return (
            f"{len(self.train):,} images train the probe and {len(self.test):,} test it; always the largest class: "
            f"{counts.max() / counts.sum():.3g}"
        )


@metric(
    unit="",
    better="higher",
    meaning="Accuracy of a linear classifier of the class label from the code, on held-out images.",
    scope="population",
    masks=True,
    collect=codes,
)
def probe_accuracy(population: Population) -> Estimate:
    """Return the test accuracy of multinomial logistic regression (scikit-learn, L2 with C = 1) on the codes.

    Args:
        population: the images.

    Returns:
        A share of the test images.

    Raises:
        ValueError: without labels, for factor values, or for classes of fewer than two images.
    """
    from sklearn.linear_model import LogisticRegression

    split = population.once(class_split)
    probe = LogisticRegression(max_iter=2000).fit(split.train, split.train_target)
    right = (probe.predict(split.test) == split.test_target).astype(np.float64)
    return Estimate(right, remark=population.noted(split.remark))


@metric(
    unit="",
    better="higher",
    meaning=f"Accuracy of {NEIGHBOURS} nearest neighbours' vote on the class label from the code, on held-out images.",
    scope="population",
    masks=True,
    collect=codes,
)
def knn_accuracy(population: Population) -> Estimate:
    """Return the test accuracy of a 10-nearest-neighbour vote (Euclidean; fewer neighbours than 10 images have) on the codes.

    Args:
        population: the images.

    Returns:
        A share of the test images.

    Raises:
        ValueError: as :func:`probe_accuracy`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    split = population.once(class_split)
    probe = KNeighborsClassifier(min(NEIGHBOURS, len(split.train))).fit(split.train, split.train_target)
    right = (probe.predict(split.test) == split.test_target).astype(np.float64)
    return Estimate(right, remark=population.noted(split.remark))


@metric(
    unit="",
    better="higher",
    meaning="R² of a linear regression of numeric factors from the code, on held-out images, averaged over the factors.",
    scope="population",
    masks=True,
    collect=codes,
)
def probe_r2(population: Population) -> Estimate:
    """Return the test R² of ridge regression (scikit-learn, strength by leave-one-out among 1e-3 to 1e3) of each factor.

    ``R² = 1 - sum (y - prediction)² / sum (y - mean)²`` with the mean of the test images; its average over the factors.

    Args:
        population: the images, whose labels are factor values ``[F]``.

    Returns:
        At most 1; below 0 where the mean would be the better prediction.

    Raises:
        ValueError: without labels, for class labels, or for a factor that does not vary.
    """
    from sklearn.linear_model import RidgeCV

    split = population.once(factor_split)
    probe = RidgeCV(np.logspace(-3, 3, 13)).fit(split.train, split.train_target)
    prediction = probe.predict(split.test).reshape(split.test_target.shape)
    rows = np.stack([prediction, split.test_target], -1)
    note = f"{len(split.train):,} images train the probe and {len(split.test):,} test it"
    return Estimate(rows, mean_r2, population.noted(note))


def mean_r2(rows: np.ndarray) -> float:
    """Return R² averaged over factors.

    Args:
        rows: prediction and truth, ``[N, F, 2]``.
    """
    prediction, truth = rows[..., 0], rows[..., 1]
    spread = np.square(truth - truth.mean(0)).sum(0)
    # A resample may hold one value only, which says nothing about the factor.
    known = spread > 0
    return float((1 - np.square(truth - prediction).sum(0)[known] / spread[known]).mean())


def class_split(population: Population) -> Split:
    """Split codes and class labels.

    Args:
        population: the images.
    """
    from sklearn.model_selection import train_test_split

    labels = population.labels("probe_accuracy and knn_accuracy")
    if labels.ndim > 1:
        raise ValueError(
            f"probe_accuracy and knn_accuracy are of one class label, and these images have {labels.shape[1]} factors: measure "
            "probe_r2"
        )
    if np.issubdtype(labels.dtype, np.floating) and not np.equal(labels, np.round(labels)).all():
        raise ValueError("probe_accuracy and knn_accuracy are of class labels, and these are numbers: measure probe_r2")
    values, counts = np.unique(labels, return_counts=True)
    num_test = max(len(values), round(TEST_SHARE * len(labels)))
    if len(values) < 2 or counts.min() < 2 or len(labels) - num_test < len(values):
        raise ValueError(
            f"probe_accuracy and knn_accuracy need two classes or more with two images or more in each, got {len(values)} "
            f"classes and {counts.min()} images in the smallest; evaluate more images, or leave them out"
        )
    rows = train_test_split(np.arange(len(labels)), test_size=num_test, stratify=labels, random_state=population.seed)
    return _split(population, rows, labels)


def factor_split(population: Population) -> Split:
    """Split codes and factor values.

    Args:
        population: the images.
    """
    labels = population.labels("probe_r2").astype(np.float64)
    if labels.ndim == 1 and np.equal(labels, np.round(labels)).all():
        raise ValueError("probe_r2 is of numeric factors, and these labels are classes: measure probe_accuracy")
    population.demand("probe_r2", 10)
    labels = labels.reshape(len(labels), -1)
    order = np.random.default_rng(population.seed).permutation(len(labels))
    num_test = round(TEST_SHARE * len(labels))
    train, test = order[num_test:], order[:num_test]
    # Factors that the images do not vary (a fixed colour) are no question to a probe.
    varying = (labels[train].std(0) > 0) & (labels[test].std(0) > 0)
    if not varying.any():
        raise ValueError("probe_r2 needs factors that vary over the images, and these do not; leave it out")
    return _split(population, (train, test), labels[:, varying])


def features_of(z: Tensor) -> np.ndarray:
    """Return the features that a probe sees, ``[N, F]`` float64.

    Args:
        z: ``[N, C, *S]``.
    """
    while z.ndim > 2 and z[0].numel() > MAX_FEATURES and max(z.shape[2:]) > 1:
        pool = {3: torch.nn.functional.avg_pool1d, 4: torch.nn.functional.avg_pool2d, 5: torch.nn.functional.avg_pool3d}
        window = tuple(min(2, n) for n in z.shape[2:])
        z = pool[z.ndim](z, window, ceil_mode=True)  # type: ignore[operator]
    return z.flatten(1).double().numpy()


def _split(population: Population, rows: tuple[np.ndarray, np.ndarray], target: np.ndarray) -> Split:
    features = features_of(population.table(codes, "z"))
    train, test = (np.sort(part) for part in rows)
    mean, std = features[train].mean(0), features[train].std(0)
    # A dimension that never varies stays at zero.
    features = (features - mean) / np.where(std > 0, std, 1.0)
    return Split(features[train], features[test], target[train], target[test])
