import io

import numpy as np
from PIL import Image

from omnivae.metrics.factors import FactorTable
from omnivae.report.factors import factor_maps, labels_of_table


def test_codes_are_labelled_with_what_they_know():
    rng = np.random.default_rng(0)
    factors = rng.integers((3, 8), size=(2000, 2))
    codes = np.stack([rng.normal(size=2000), factors[:, 1], -factors[:, 0] + 0.01 * rng.normal(size=2000)], axis=1)
    table = FactorTable(codes, factors, ("shape", "position"), drawn=True)
    assert labels_of_table(table) == ["", "position 100 %", "shape 100 %"]


def test_what_a_code_knows_is_dark():
    matrix = np.zeros((6, 2))
    matrix[1, 0] = matrix[4, 1] = 1.0
    details = {"mig": {"factors": ["shape", "scale"], "mutual_information": 2 * matrix, "entropy": [2.0, 2.0]}}
    picture = np.asarray(Image.open(io.BytesIO(factor_maps(details))).convert("RGB")).astype(int)
    # the end of the scale: two dark cells, one above the other's left
    dark = (picture == [8, 48, 107]).all(-1)
    rows, columns = np.nonzero(dark)
    first, second = rows < np.median(rows), rows > np.median(rows)
    assert dark.sum() > 1000
    assert columns[first].max() < columns[second].min()
    both = details | {"dci_disentanglement": {"factors": ["shape", "scale"], "importances": matrix}}
    assert np.asarray(Image.open(io.BytesIO(factor_maps(both)))).shape[1] > picture.shape[1]
