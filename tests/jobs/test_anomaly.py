"""Anomalies in phantoms: planted lesions are found, and where none are planted nothing is claimed."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from omnivae.cli.main import main
from omnivae.jobs.anomaly import find_anomalies

SIDE = 16


def phantom(random, lesion=False):
    """A smooth body of random place, size and brightness on a dark ground; a lesion is a bright spot of 3 pixels inside."""
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = random.uniform(6.5, 8.5, 2)
    ry, rx = random.uniform(4, 6, 2)
    body = 1 / (1 + np.exp(4 * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 - 1)))
    image = random.uniform(0.4, 0.7) * body
    if lesion:
        ly, lx = (round(c + random.uniform(-2, 2)) for c in (cy, cx))
        image[ly - 1 : ly + 2, lx - 1 : lx + 2] += 0.6
    image += random.normal(0, 0.02, image.shape)
    return Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def write(folder, count, random, lesion=False):
    folder.mkdir(parents=True)
    for i in range(count):
        phantom(random, lesion).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base = tmp_path_factory.mktemp("phantoms")
    random = np.random.default_rng(0)
    write(base / "train", 200, random)
    write(base / "held", 60, random)
    write(base / "planted" / "good", 40, random)
    write(base / "planted" / "lesion", 40, random, lesion=True)
    write(base / "none" / "good", 40, random)
    write(base / "none" / "same", 40, random)
    arguments = ["--model.recipe", "conv_vae", "--model.latent_dim", "6", "--model.channels", "[8,16]"]
    arguments += ["--training.max_steps", "200", "--training.learning_rate", "3e-3", "--training.val_images", "8"]
    arguments += ["--training.precision", "32", "--training.ema", "0"]
    data = ["--data.path", base / "train"]
    assert main([str(a) for a in ["train", *data, "--output", base / "run", *arguments]]) == 0
    return base


def test_planted_lesions_are_found(world, tmp_path):
    report = find_anomalies(
        world / "run",
        str(world / "planted"),
        tmp_path / "out",
        normal=str(world / "held"),
        scores=["reconstruction", "elbo", "nll"],
        num_samples_nll=5,
    )
    for score in ("reconstruction", "elbo", "nll"):
        assert report.detection[score]["auroc"].mean > 0.9, score
        assert report.detection[score]["average_precision"].mean > 0.85
    flagged = report.flagged["reconstruction"]
    assert flagged[report.anomalous].mean() > 0.5
    assert flagged[~report.anomalous].mean() < 0.2
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["name"] for row in rows] == report.names
    assert float(rows[3]["elbo"]) == report.scores["elbo"][3]
    assert {row["anomalous"] for row in rows} == {"0", "1"}
    content = json.loads((tmp_path / "out" / "anomaly.json").read_text())
    assert content["thresholds"]["elbo"]["num_normal"] == 60
    assert (tmp_path / "out" / "worst.png").stat().st_size > 1000
    assert not report.notes


def test_all_scores_are_measured_unless_told(world, monkeypatch):
    monkeypatch.setattr("omnivae.metrics.regret.STEPS", 2)
    report = find_anomalies(
        world / "run", str(world / "planted"), normal=str(world / "held"), limit=20, num_samples_nll=2
    )
    assert list(report.scores) == ["reconstruction", "elbo", "nll", "regret"]
    assert len(report.names) == 20
    assert np.isfinite(report.scores["regret"]).all()


def test_where_nothing_is_planted_nothing_is_found(world):
    scores = ["reconstruction", "elbo"]
    report = find_anomalies(world / "run", str(world / "none"), normal=str(world / "held"), scores=scores)
    for score in scores:
        found = report.detection[score]["auroc"]
        assert found.low < 0.5 < found.high
        assert report.flagged[score].mean() < 0.2


def test_images_that_should_be_apart_are_named(world):
    report = find_anomalies(
        world / "run", str(world / "held"), normal=str(world / "held"), scores=["reconstruction"], rate=0.1
    )
    assert any("60 of the 60 images to score are also" in note for note in report.notes)
    copy = world / "copies"
    if not copy.exists():
        copy.mkdir()
        for file in sorted((world / "train").iterdir())[:40]:
            (copy / f"renamed-{file.name}").write_bytes(file.read_bytes())
    seen = find_anomalies(world / "run", str(world / "held"), normal=str(copy), scores=["reconstruction"])
    assert any("normal images are among those that the model was trained on" in note for note in seen.notes)
    # Without --normal the run's own test images are taken, which it was not trained on.
    own = find_anomalies(world / "run", str(world / "held"), scores=["reconstruction"], rate=0.1)
    assert own.thresholds["reconstruction"].num_normal == 20
    assert not own.notes


def test_what_cannot_work_is_refused(world):
    run, held = world / "run", str(world / "held")
    with pytest.raises(ValueError, match="unknown score 'elb'"):
        find_anomalies(run, held, scores=["elb"])
    with pytest.raises(ValueError, match="needs at least 99 normal images, got 60"):
        find_anomalies(run, held, normal=held, scores=["reconstruction"], rate=0.01)
    with pytest.raises(ValueError, match="no class 'bad'"):
        find_anomalies(run, str(world / "planted"), normal=held, scores=["reconstruction"], normal_label="bad")
    with pytest.raises(ValueError, match="no class labels"):
        find_anomalies(run, held, normal=held, scores=["reconstruction"], normal_label="good")
