"""The commands on codes: arithmetic, anomaly, denoise, impute."""

import numpy as np
import pytest
from PIL import Image


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def shades(tmp_path):
    """Folders of bright and of dark digits-sized pictures."""
    random = np.random.default_rng(0)
    for name, low, high in (("bright", 150, 256), ("dark", 0, 100)):
        (tmp_path / name).mkdir()
        for i in range(6):
            pixels = random.integers(low, high, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_arithmetic_of_folders(omnivae, refused, digits_run, shades):
    one = shades / "dark" / "0.png"
    target = shades / "out" / "a.png"
    common = ["arithmetic", digits_run, "--to", one, "--output", target]
    outcome = omnivae(*common, "--plus", shades / "bright", "--minus", shades / "dark", "--strengths", 0, 1)
    assert outcome.code == 0, outcome.err
    assert "6 images with the attribute, 6 without" in outcome.out
    assert picture(target).shape[1] == 3 * 96 + 2 * 4
    assert "two folders" in refused(*common, "--plus", shades / "bright")
    assert "two folders" in refused(*common)
    assert "two folders" in refused(*common, "--plus", shades, "--minus", shades, "--plus_label", "1")


def test_arithmetic_of_classes(omnivae, refused, digits_run, shades):
    target = shades / "a.png"
    common = ["arithmetic", digits_run, "--to", *sorted((shades / "dark").iterdir())[:2], "--output", target]
    outcome = omnivae(*common, "--plus_label", "3", "--minus_label", "1")
    assert outcome.code == 0, outcome.err
    assert picture(target).shape[1] == 8 * 96 + 7 * 4
    assert "no class 'cat'" in refused(*common, "--plus_label", "cat")
    # Class folders of nothing but pictures side by side are labels too; a flat folder has none.
    flat = shades / "dark"
    assert "no class labels" in refused(*common, "--plus_label", "1", "--data.path", flat)
