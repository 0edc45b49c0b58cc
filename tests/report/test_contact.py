import numpy as np
import pytest

from omnivae.report import contact_sheet


def test_every_image_is_there_whole_and_in_its_proportions():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    shapes = [(40, 40), (20, 80), (400, 100)]
    tiles = [
        (f"{i}.png", np.full((*shape, 3), colour, np.uint8))
        for i, (shape, colour) in enumerate(zip(shapes, colours, strict=True))
    ]
    sheet = np.asarray(contact_sheet(tiles, title="three", columns=3, side=80))
    sizes = []
    for colour in colours:
        rows, columns = np.nonzero((sheet == colour).all(-1))
        sizes.append((int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1))
    assert sizes == [(80, 80), (20, 80), (80, 20)]  # enlarged by 2, as it is, made smaller


def test_long_names_stay_below_their_image():
    tiles = [("a" * 300 + ".png", np.zeros((8, 8, 3), np.uint8))] * 2
    sheet = np.asarray(contact_sheet(tiles, title="two", columns=2, side=80).convert("L"))
    gap = sheet[24 + 20 + 14 + 90 :, 24 + 80 + 2 : 24 + 80 + 12]  # between the captions
    assert gap.min() == 255
    with pytest.raises(ValueError, match="got no images"):
        contact_sheet([], title="none")
