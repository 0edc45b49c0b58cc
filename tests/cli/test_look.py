"""The commands that look at a trained model: what they write, and that a run and a bare model directory both serve."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def bare_model(spatial_run, tmp_path_factory):
    """The model directory of a run, away from it."""
    directory = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(spatial_run / "model", directory)
    return directory


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# -- evaluate


def test_evaluate_writes_a_table_and_json(omnivae, digits_run, tmp_path):
    file = tmp_path / "out" / "result.json"
    metrics = ["psnr", "ssim", "ms_ssim", "mse", "l1", "elbo", "nll"]
    outcome = omnivae(
        "evaluate", digits_run, "--data.path", "digits", "--metrics", *metrics, "--num_samples_nll", 4, "--json", file
    )
    assert outcome.code == 0, outcome.err
    result = json.loads(file.read_text())
    assert list(result["metrics"]) == metrics
    for name in metrics:
        assert set(result["metrics"][name]) == {"mean", "low", "high"}
        assert result["metrics"][name]["low"] <= result["metrics"][name]["mean"] <= result["metrics"][name]["high"]
        assert name in outcome.out
        values = result["per_image"][name]
        assert len(values) == result["images"]
        assert np.mean(list(values.values())) == pytest.approx(result["metrics"][name]["mean"], rel=1e-6)
    # The bound with more samples is tighter than the ELBO, up to noise: nll <= -elbo.
    assert result["metrics"]["nll"]["mean"] <= -result["metrics"]["elbo"]["mean"] + 0.5


def test_evaluation_does_not_depend_on_the_batch_size(omnivae, digits_run, tmp_path):
    for size in (3, 64):
        file = tmp_path / f"{size}.json"
        outcome = omnivae(
            "evaluate",
            digits_run,
            "--metrics",
            "psnr",
            "elbo",
            "--batch_size",
            size,
            "--data.limit",
            20,
            "--json",
            file,
        )
        assert outcome.code == 0, outcome.err
    small, large = (json.loads((tmp_path / f"{size}.json").read_text()) for size in (3, 64))
    assert small["images"] == large["images"] == 20
    for name in ("psnr", "elbo"):
        assert small["metrics"][name]["mean"] == pytest.approx(large["metrics"][name]["mean"], rel=1e-5)


def test_a_bare_model_evaluates_any_folder(omnivae, bare_model, make_images, tmp_path):
    folder = make_images(tmp_path / "pictures", [(16, 16)] * 5)
    file = tmp_path / "r.json"
    outcome = omnivae("evaluate", bare_model, "--data.path", folder, "--metrics", "mse", "--json", file)
    assert outcome.code == 0, outcome.err
    assert json.loads(file.read_text())["images"] == 5


def test_a_bare_model_without_data_says_what_is_missing(refused, bare_model):
    assert "--data.path" in refused("evaluate", bare_model)


@pytest.mark.parametrize("metric", ["pnsr", "lpips?"])
def test_unknown_metrics_are_named(refused, digits_run, metric):
    assert metric in refused("evaluate", digits_run, "--metrics", metric)


# -- reconstruct


def test_reconstructions_keep_names_and_sizes(omnivae, spatial_run, make_images, tmp_path):
    folder = make_images(tmp_path / "in", [(16, 16), (9, 23), (1, 1)])
    files = sorted(folder.iterdir())
    outcome = omnivae("reconstruct", spatial_run, *files, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f.name for f in files]
    for file in files:
        assert picture(tmp_path / "out" / file.name).shape == picture(file).shape
        assert str(tmp_path / "out" / file.name) in outcome.out


def test_reconstructing_keeps_the_originals(refused, spatial_run, make_images, tmp_path):
    folder = make_images(tmp_path / "in", [(16, 16)])
    file = next(folder.iterdir())
    before = file.read_bytes()
    assert "overwritten" in refused("reconstruct", spatial_run, file, "--output", folder)
    assert file.read_bytes() == before


def test_reconstructing_two_files_of_one_name_is_refused(refused, spatial_run, make_images, tmp_path):
    files = [next(make_images(tmp_path / name, [(16, 16)]).iterdir()) for name in "ab"]
    assert "image-000.png" in refused("reconstruct", spatial_run, *files, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reconstructing_a_missing_or_damaged_file_names_it(refused, spatial_run, tmp_path):
    assert "nowhere.png" in refused("reconstruct", spatial_run, tmp_path / "nowhere.png", "--output", tmp_path / "out")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in refused("reconstruct", spatial_run, tmp_path / "broken.png", "--output", tmp_path / "out")


def test_reconstructing_another_number_of_channels_is_refused(refused, spatial_run, make_images, tmp_path):
    file = next(make_images(tmp_path / "grey", [(16, 16)], channels=1).iterdir())
    assert "1 channels and the model takes 3" in refused("reconstruct", spatial_run, file, "--output", tmp_path / "out")


# -- sample, interpolate, traverse, report


def test_samples_are_reproducible(omnivae, digits_run, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        outcome = omnivae("sample", digits_run, "--n", 5, "--seed", seed, "--output", tmp_path / f"{name}.png")
        assert outcome.code == 0, outcome.err
    assert np.array_equal(picture(tmp_path / "a.png"), picture(tmp_path / "b.png"))
    assert not np.array_equal(picture(tmp_path / "a.png"), picture(tmp_path / "c.png"))


def test_a_bare_spatial_model_samples_any_size(omnivae, bare_model, tmp_path):
    outcome = omnivae("sample", bare_model, "--n", 1, "--size", 20, 36, "--output", tmp_path / "s.png")
    assert outcome.code == 0, outcome.err
    height, width, _ = picture(tmp_path / "s.png").shape
    assert height >= 20
    assert width >= 36


def test_interpolation(omnivae, refused, bare_model, make_images, tmp_path):
    folder = make_images(tmp_path / "in", [(16, 16), (16, 16), (20, 16)])
    first, second, other = sorted(folder.iterdir())
    for mode in ("linear", "spherical", "both"):
        target = tmp_path / f"{mode}.png"
        outcome = omnivae("interpolate", bare_model, first, second, "--steps", 4, "--mode", mode, "--output", target)
        assert outcome.code == 0, outcome.err
        assert picture(target).shape[1] >= 4 * 16
    assert "same channels and size" in refused("interpolate", bare_model, first, other, "--output", tmp_path / "x.png")


@pytest.mark.parametrize("run", ["digits_run", "spatial_run"])
def test_traversal(omnivae, request, run, tmp_path):
    run = request.getfixturevalue(run)
    target = tmp_path / "t.png"
    outcome = omnivae("traverse", run, "--num_dimensions", 2, "--steps", 3, "--output", target)
    assert outcome.code == 0, outcome.err
    assert picture(target).size


def test_report_is_one_self_contained_file(omnivae, digits_run, tmp_path):
    target = tmp_path / "deep" / "page.html"
    outcome = omnivae("report", digits_run, "--output", target)
    assert outcome.code == 0, outcome.err
    text = target.read_text()
    assert "data:image/png;base64," in text
    for foreign in ('src="http', "src='http", 'href="http', "@import", "<link "):
        assert foreign not in text


def test_report_of_a_bare_model(omnivae, refused, bare_model, make_images, tmp_path):
    folder = make_images(tmp_path / "pictures", [(16, 16)] * 6)
    outcome = omnivae("report", bare_model, "--data.path", folder, "--output", tmp_path / "page.html")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "page.html").stat().st_size > 1000
    assert "--data.path" in refused("report", bare_model, "--output", tmp_path / "other.html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "RUN", "--n", "0"], "--n 0"),
        (["sample", "RUN", "--output", "samples.txt"], "samples.txt"),
        (["sample", "RUN", "--temperature", "warm"], "temperature: expected float"),
        (["sample", "RUN", "--size", "4", "-4"], "size"),
        (["interpolate", "RUN", "a.png", "b.png", "--mode", "cubic"], "mode"),
        (["traverse", "RUN", "--steps", "0"], "steps"),
        (["traverse", "RUN", "--num_dimensions", "0"], "num_dimensions"),
        (["evaluate", "RUN", "--batch_size", "0"], "batch_size"),
        (["evaluate", "RUN", "--num_samples_nll", "0", "--metrics", "nll"], "num_samples_nll"),
        (["evaluate", "RUN", "--data.limit", "0"], "limit"),
        (["evaluate", "RUN", "--data.split", "training"], "split"),
        (["evaluate", "RUN", "--jsno", "x"], "did you mean 'json'"),
        (["reconstruct", "RUN", "--output", "x"], "files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_work_are_named(refused, spatial_run, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(*[spatial_run if a == "RUN" else a for a in arguments])
    assert words in said


@pytest.mark.parametrize("command", ["evaluate", "sample", "traverse", "report"])
def test_a_model_that_is_not_there_is_named(refused, tmp_path, command):
    assert "no model at" in refused(command, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(command, tmp_path / "empty")
