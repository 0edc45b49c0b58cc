"""Conditional models on the command line: what they are told by labels, and by name."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from omnivae import VAE, PosteriorStore
from omnivae.cli.main import main

FAST = [
    "--training.batch_size",
    "20",
    "--training.precision",
    "32",
    "--training.val_images",
    "16",
    "--data.limit",
    "200",
]


def train(output, recipe, *more):
    cond = ["--data.cond", "label", "--report", "false", "--training.max_steps", "4"]
    arguments = ["train", "--model.recipe", recipe, "--data.path", "digits", "--output", output, *cond, *FAST, *more]
    assert main([str(a) for a in arguments]) == 0
    return output


@pytest.fixture(scope="session")
def told_run(tmp_path_factory):
    """A run of c_vae on labelled digits; tests must not write to it."""
    place = tmp_path_factory.mktemp("told") / "run"
    return train(
        place, "c_vae", "--model.channels", "[4,8]", "--model.latent_dim", "3", "--training.learning_rate", "1e-2"
    )


@pytest.fixture(scope="session")
def inferring_run(tmp_path_factory):
    """A run of m2_vae on digits of which few have a label; tests must not write to it."""
    place = tmp_path_factory.mktemp("inferring") / "run"
    few = ["--data.labels_per_class", "2", "--data.binarize", "threshold", "--losses.m2.alpha", "1"]
    return train(place, "m2_vae", "--model.hidden", "[16]", "--model.latent_dim", "3", *few)


@pytest.fixture(scope="session")
def told_model(told_run):
    return VAE.from_pretrained(told_run / "model")


@pytest.fixture
def digits(tmp_path):
    """A folder of two pictures of digits, and their pixels in [0, 1]."""
    from omnivae import DataConfig, load_data

    test = load_data(DataConfig("digits"), value_range=(0.0, 1.0)).test
    (tmp_path / "in").mkdir()
    for i in range(2):
        pixels = (test[i]["x"][0] * 255).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def one_hot(label, n=1):
    return torch.eye(10)[[label]].expand(n, -1)


def decoded(model, path, cond, to):
    """What an image is as something else, computed with the model alone."""
    x = torch.from_numpy(pixels(path).copy())[None, None] / 255
    with torch.no_grad():
        return model.decode(model.encode(x, one_hot(cond)), one_hot(to))[0, 0].clamp(0, 1).numpy()


# -- sample


def test_the_condition_of_a_sample_is_a_name_a_pair_or_all(omnivae, told_run, tmp_path):
    written = {}
    for name in ("7", "label=7", "3", "all"):
        target = tmp_path / f"{len(written)}.png"
        outcome = omnivae("sample", told_run, "--cond", name, "--n", 4, "--output", target, "--precision", "32")
        assert outcome.code == 0, outcome.err
        written[name] = pixels(target)
    assert np.array_equal(written["7"], written["label=7"])
    assert not np.array_equal(written["7"], written["3"])
    nothing_said = tmp_path / "default.png"
    assert omnivae("sample", told_run, "--n", 4, "--output", nothing_said, "--precision", "32").code == 0
    assert np.array_equal(pixels(nothing_said), written["all"])
    assert written["all"].shape[0] > 4 * written["7"].shape[0] / 2  # a row for each of ten classes


def test_a_condition_that_the_model_does_not_know_is_one_sentence(refused, told_run, digits_run, tmp_path):
    target = ["--output", tmp_path / "a.png"]
    assert "'10' is no label that the model was trained on" in refused("sample", told_run, "--cond", "10", *target)
    assert "no attribute 'lable'" in refused("sample", told_run, "--cond", "lable=7", *target)
    assert "'label' twice" in refused("sample", told_run, "--cond", "label=7,label=8", *target)
    assert "this model takes no condition: leave --cond out" in refused("sample", digits_run, "--cond", "7", *target)
    assert "no condition" in refused("transfer", digits_run, *target)
    assert list(tmp_path.iterdir()) == []


# -- image files


def test_reconstruct_says_what_an_image_is_and_becomes(omnivae, refused, told_run, told_model, digits, tmp_path):
    common = ["reconstruct", told_run, digits, "--precision", "32"]
    assert "--cond 0 (one of 0, 1, 2" in refused(*common, "--output", tmp_path / "none")
    assert omnivae(*common, "--cond", "3", "--output", tmp_path / "same").code == 0
    assert omnivae(*common, "--cond", "3", "--to", "8", "--output", tmp_path / "other").code == 0
    for name in ("0.png", "1.png"):
        for folder, to in (("same", 3), ("other", 8)):
            expected = decoded(told_model, digits / name, 3, to)
            assert np.abs(pixels(tmp_path / folder / name) / 255 - expected).max() <= 0.5 / 255 + 1e-5
    assert not np.array_equal(pixels(tmp_path / "same" / "0.png"), pixels(tmp_path / "other" / "0.png"))
    assert "'x' is no label" in refused(*common, "--cond", "3", "--to", "x", "--output", tmp_path / "none")


def test_interpolate_goes_from_one_class_to_another(omnivae, refused, told_run, digits, tmp_path):
    first, second = sorted(digits.iterdir())
    common = ["interpolate", told_run, first, second, "--steps", 3, "--mode", "linear", "--precision", "32"]
    assert "--cond" in refused(*common, "--output", tmp_path / "none.png")
    shown = {}
    for name, more in {"same": [], "other": ["--to", "8"], "said": ["--to", "3"]}.items():
        assert omnivae(*common, "--cond", "3", *more, "--output", tmp_path / f"{name}.png").code == 0
        shown[name] = pixels(tmp_path / f"{name}.png")
    assert np.array_equal(shown["same"], shown["said"])
    assert not np.array_equal(shown["same"], shown["other"])


def test_transfer_and_traverse(omnivae, refused, told_run, digits, tmp_path):
    wide, narrow = tmp_path / "wide.png", tmp_path / "narrow.png"
    common = ["transfer", told_run, "--n", 2, "--precision", "32"]
    assert omnivae(*common, "--output", wide).code == 0
    assert omnivae(*common, "--to", "3", "label=8", "--output", narrow).code == 0
    # The image and its reconstruction, and a column for every class or for those named.
    assert pixels(wide).shape[1] / pixels(narrow).shape[1] == pytest.approx(12 / 4, rel=0.15)
    assert "'12' is no label" in refused(*common, "--to", "12", "--output", wide)
    common = ["traverse", told_run, "--steps", 3, "--num_dimensions", 2, "--precision", "32"]
    image = digits / "0.png"
    assert "--cond" in refused(*common, "--image", image, "--output", narrow)
    shown = {}
    for name, more in {
        "own": [],
        "as 3": ["--image", image, "--cond", "3"],
        "as 8": ["--image", image, "--cond", "8"],
    }.items():
        assert omnivae(*common, *more, "--output", tmp_path / f"{name}.png").code == 0
        shown[name] = pixels(tmp_path / f"{name}.png")
    assert not np.array_equal(shown["as 3"], shown["as 8"])


def test_imputation_takes_the_condition(omnivae, refused, told_run, digits, tmp_path):
    mask = np.full((8, 8), 255, dtype=np.uint8)
    mask[:, 4:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = ["impute", told_run, digits / "0.png", "--mask", tmp_path / "mask.png", "--num_samples", 20]
    assert "say --cond 0" in refused(*common, "--output", tmp_path / "none")
    filled = {}
    for label in ("3", "8"):
        assert omnivae(*common, "--cond", label, "--output", tmp_path / label).code == 0
        filled[label] = pixels(tmp_path / label / "0.png")
        assert np.array_equal(filled[label][:, :4], pixels(digits / "0.png")[:, :4])
    assert not np.array_equal(filled["3"], filled["8"])


def test_arithmetic_takes_the_condition_of_the_images_to_change(
    omnivae, refused, told_run, told_model, digits, tmp_path
):
    target = tmp_path / "a.png"
    common = [
        "arithmetic",
        told_run,
        "--to",
        digits / "0.png",
        "--plus_label",
        "3",
        "--strengths",
        0,
        "--precision",
        "32",
    ]
    assert "say --cond 0" in refused(*common, "--output", target)
    shown = {}
    for label in ("3", "8"):
        assert omnivae(*common, "--cond", label, "--output", target).code == 0
        shown[label] = pixels(target)
    # The original is the same; strength 0 is the reconstruction, of a 3 and of an 8.
    half = shown["3"].shape[1] // 2 - 4
    assert np.array_equal(shown["3"][:, :half], shown["8"][:, :half])
    assert not np.array_equal(shown["3"], shown["8"])
    assert (
        np.abs(decoded(told_model, digits / "0.png", 3, 3) - decoded(told_model, digits / "0.png", 8, 8)).max() > 1e-3
    )


def test_denoising_takes_the_condition(omnivae, refused, digits, tmp_path):
    noisy = ["--training.corrupt", "gaussian", "--training.corrupt_strength", "0.2"]
    run = train(tmp_path / "run", "c_vae", "--model.channels", "[4,8]", "--model.latent_dim", "3", *noisy)
    common = ["denoise", run, digits, "--precision", "32"]
    assert "say --cond 0" in refused(*common, "--output", tmp_path / "none")
    assert omnivae(*common, "--cond", "3", "--output", tmp_path / "clean").code == 0
    expected = decoded(VAE.from_pretrained(run / "model"), digits / "0.png", 3, 3)
    assert np.abs(pixels(tmp_path / "clean" / "0.png") / 255 - expected).max() <= 0.5 / 255 + 1e-5
    assert "without noisy files" in refused("denoise", run, "--cond", "3", "--output", tmp_path / "a.png")


# -- stores, pages, flight records


def test_a_store_keeps_what_each_image_was_told(omnivae, told_run, told_model, tmp_path):
    store = tmp_path / "store"
    encode = ["encode", told_run, "--output", store, "--data.limit", 6, "--dtype", "float32", "--precision", "32"]
    outcome = omnivae(*encode)
    assert outcome.code == 0, outcome.err
    held = PosteriorStore(store)
    conds = torch.tensor([held.cond(i) for i in range(len(held))])
    assert conds.shape == (6, 10)
    assert torch.equal(conds.argmax(1), torch.tensor([held.label(i) for i in range(len(held))]))
    outcome = omnivae("decode", store, "--model", told_run, "--output", tmp_path / "out", "--precision", "32")
    assert outcome.code == 0, outcome.err
    written = sorted(p for p in (tmp_path / "out").rglob("*.*") if p.suffix != ".json")
    assert len(written) == 6
    with torch.no_grad():
        expected = told_model.decode(torch.stack([held[i]["mean"] for i in range(6)]), conds).clamp(0, 1)
    # Files are named by the image's key, in another order: each is the nearest of what the model decodes.
    got = torch.from_numpy(np.stack([pixels(p) / 255 for p in written])).flatten(1)
    distance = (got[:, None] - expected.flatten(1)[None]).abs().amax(2)
    assert float(distance.min(1).values.max()) <= 0.5 / 255 + 1e-4
    assert distance.argmin(1).unique().numel() == 6


def test_a_report_of_a_conditional_model(omnivae, told_run, tmp_path):
    outcome = omnivae("report", told_run, "--output", tmp_path / "report.html")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_bad_step_of_a_conditional_model_is_replayed(omnivae, tmp_path):
    """The record holds what the images were told: the step can be computed again."""
    arguments = ["train", "--model.recipe", "c_vae", "--model.channels", "[4,8]", "--model.latent_dim", "3"]
    data = ["--data.path", "digits", "--data.cond", "label", "--report", "false", "--output", tmp_path / "run"]
    hot = ["--training.learning_rate", "1e20", "--training.warmup_steps", "0", "--training.max_steps", 20]
    assert omnivae(*arguments, *data, *FAST, *hot).code != 0
    (record,) = sorted((tmp_path / "run" / "flight").iterdir())
    outcome = omnivae("replay", record)
    assert outcome.code == 0, outcome.err
    assert "replayed: " in outcome.out


# -- a model that infers classes


def test_a_model_that_infers_classes_needs_not_be_told(omnivae, refused, inferring_run, digits, tmp_path):
    model = VAE.from_pretrained(inferring_run / "model")
    x = torch.from_numpy(pixels(digits / "0.png").copy())[None, None] / 255
    own = int(model.classify(x).argmax())
    common = ["reconstruct", inferring_run, digits / "0.png", "--precision", "32"]
    shown = {}
    for name, more in {"nothing": [], "own": ["--cond", own], "other": ["--cond", (own + 1) % 10]}.items():
        assert omnivae(*common, *more, "--output", tmp_path / name).code == 0
        shown[name] = pixels(tmp_path / name / "0.png")
    assert np.array_equal(shown["nothing"], shown["own"])
    assert not np.array_equal(shown["own"], shown["other"])
    files = sorted(digits.iterdir())
    assert omnivae("interpolate", inferring_run, *files, "--steps", 3, "--output", tmp_path / "a.png").code == 0
    assert omnivae("interpolate", inferring_run, *files, "--to", 3, "--output", tmp_path / "b.png").code == 0
    assert omnivae("sample", inferring_run, "--n", 2, "--output", tmp_path / "c.png").code == 0
    assert omnivae("transfer", inferring_run, "--n", 2, "--output", tmp_path / "d.png").code == 0
    result = tmp_path / "e.json"
    outcome = omnivae("evaluate", inferring_run, "--metrics", "class_accuracy", "elbo", "--json", result)
    assert outcome.code == 0, outcome.err
    figures = json.loads(result.read_text())["metrics"]
    assert 0 <= figures["class_accuracy"]["mean"] <= 1
    assert math.isfinite(figures["elbo"]["mean"])
