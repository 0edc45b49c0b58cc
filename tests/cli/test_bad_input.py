"""The issue's list of bad input: each ends with exit code 2 and one sentence that says what was got and what to do."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import omnivae as library


def train(*arguments, output, data="digits"):
    return ["train", "--data.path", data, "--output", output, "--training.max_steps", 1, *arguments]


# -- the data


def test_missing_folder(refused, tmp_path):
    said = refused(*train(output=tmp_path / "run", data=tmp_path / "nowhere"))
    assert "no such file or folder" in said
    assert "nowhere" in said
    assert not (tmp_path / "run").exists()


def test_misspelt_embedded_data(refused, tmp_path):
    assert "did you mean 'digits'" in refused(*train(output=tmp_path / "run", data="digit"))


def test_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    said = refused(*train(output=tmp_path / "run", data=tmp_path / "empty"))
    assert "is empty" in said
    assert "data.path" in said


def test_no_image_in_the_folder(refused, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    (tmp_path / "texts" / "b.csv").write_text("1,2")
    said = refused(*train(output=tmp_path / "run", data=tmp_path / "texts"))
    assert "no image in" in said
    assert "1 .txt" in said


def test_a_damaged_image_is_named(refused, make_images, tmp_path):
    folder = make_images(tmp_path / "p", [(16, 16)] * 4)
    (folder / "image-002.png").write_bytes(b"\x89PNG\r\n\x1a\n but nothing more")
    assert "image-002.png" in refused(*train(output=tmp_path / "run", data=folder))


@pytest.mark.parametrize("count", [1, 2, 12])
def test_images_of_one_pixel_train_or_say_why(omnivae, make_images, tmp_path, count):
    folder = make_images(tmp_path / "p", [(1, 1)] * count)
    outcome = omnivae(*train(output=tmp_path / "run", data=folder))
    assert "Traceback" not in outcome.err
    if outcome.code:
        assert outcome.code == 2
        sentence = outcome.err.rstrip().splitlines()[-1]
        # Says why, in the user's words, and what to do; not in those of a layer deep inside.
        assert "image" in sentence
        assert "torch.Size" not in sentence
    else:
        assert (tmp_path / "run" / "report.html").is_file()


def test_images_of_one_pixel_train_a_spatial_model(omnivae, make_images, tmp_path):
    folder = make_images(tmp_path / "p", [(1, 1)] * 12)
    small = ["--model.recipe", "conv_vae", "--model.latent", "spatial", "--model.channels", "[4]"]
    outcome = omnivae(*train(*small, "--training.batch_size", 4, output=tmp_path / "run", data=folder))
    assert outcome.code == 0, outcome.err


def test_mixed_channel_counts(refused, make_images, tmp_path):
    folder = make_images(tmp_path / "p", [(16, 16)] * 5)
    make_images(folder / "grey", [(16, 16)] * 3, channels=1)
    said = refused(*train(output=tmp_path / "run", data=folder))
    assert "5 images have 3 channels" in said
    assert "3 have 1" in said
    assert "data.channels" in said


def test_mixed_channel_counts_train_when_united(omnivae, make_images, tmp_path):
    folder = make_images(tmp_path / "p", [(16, 16)] * 5)
    make_images(folder / "grey", [(16, 16)] * 5, channels=1)
    outcome = omnivae(*train("--data.channels", 1, "--report", "false", output=tmp_path / "run", data=folder))
    assert outcome.code == 0, outcome.err


def test_mixed_sizes_say_which_setting_unites_them(refused, make_images, tmp_path):
    folder = make_images(tmp_path / "p", [(16, 16), (16, 20)] * 5)
    said = refused(*train("--model.recipe", "conv_vae", output=tmp_path / "run", data=folder))
    assert "data.image_size" in said


def test_nan_in_an_image_file(refused, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    for i in range(6):
        pixels = np.full((16, 16), 0.5, dtype=np.float32)
        pixels[3, 4] = math.nan
        Image.fromarray(pixels).save(folder / f"{i}.tiff")
    said = refused(*train("--model.recipe", "conv_vae", output=tmp_path / "run", data=folder))
    assert ".tiff" in said or "NaN" in said


# -- values, through the library


class One:
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"x": self.x, "key": "a.png"}


@pytest.fixture(scope="module")
def model():
    return library.conv_vae(in_channels=1, image_size=8, channels=[4], latent_dim=2).eval()


@pytest.mark.parametrize("scale", [255.0, 1.5])
def test_values_outside_the_range_contract(model, scale):
    with pytest.raises(ValueError, match=r"'a\.png' has values in \[.*\], outside the model's range \[-1, 1\]; scale"):
        library.evaluate(model, One(scale * torch.ones(1, 8, 8)), ["mse"], progress=False)


def test_a_range_of_zero_to_one_refuses_negative_values():
    model = library.conv_vae(in_channels=1, image_size=8, channels=[4], latent_dim=2, likelihood="bernoulli").eval()
    with pytest.raises(ValueError, match=r"outside the model's range \[0, 1\]"):
        library.evaluate(model, One(-0.5 * torch.ones(1, 8, 8)), ["mse"], progress=False)


def test_a_range_that_does_not_exist_is_refused(refused, tmp_path):
    said = refused(*train("--data.value_range", "[0,255]", output=tmp_path / "run"))
    assert "value_range" in said
    assert "(0, 1) or (-1, 1)" in said


def test_bernoulli_refuses_another_range(refused, tmp_path):
    arguments = ["--model.recipe", "conv_vae", "--model.likelihood", "bernoulli", "--data.value_range", "[-1,1]"]
    said = refused(*train(*arguments, output=tmp_path / "run"))
    assert "defined on [0, 1]" in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_the_input(model, value):
    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 2:4, 3] = value
    for call in (model, model.encode):
        with pytest.raises(ValueError, match="2 NaN or infinite values in the input"):
            call(x)
    with pytest.raises(ValueError, match=r"'a\.png' has 2 NaN or infinite values"):
        library.evaluate(model, One(x[1]), ["mse"], progress=False)


# -- the configuration


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["--training.lerning_rate", "1e-3"], "training.learning_rate"),
        (["--training.batchsize=4"], "training.batch_size"),
        (["--data.imagesize", "8"], "data.image_size"),
        (["--losses.kl.wieght", "8"], "losses.kl.weight"),
        (["--losses.kll.weight", "8"], "kl"),
        (["--model.recipe", "conv_vae", "--model.latentdim", "3"], "model.latent_dim"),
        (["--model.recipe", "conv_vea"], "conv_vae"),
        (["--modle.recipe", "conv_vae"], "model.recipe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_options_suggest_the_nearest(refused, tmp_path, arguments, nearest):
    said = refused(*train(*arguments, output=tmp_path / "run"))
    assert "unknown" in said
    assert f"did you mean {nearest!r}" in said or f"did you mean '--{nearest}'" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("training: {lerning_rate: 1e-3}", "lerning_rate", "training.learning_rate"),
        ("data: {pth: digits}", "pth", "data.path"),
        ("model: {recipe: conv_vae, latentdim: 3}", "latentdim", "model.latent_dim"),
        ("model: {recipe: conv_vea}", "conv_vea", "conv_vae"),
        ("losses: {kll: {weight: 1}}", "kll", "kl"),
        ("losses: {kll_weight: 1}", "kll", "kl"),
        ("losses: {kl: {wieght: 1}}", "wieght", "losses.kl.weight"),
        ("trainig: {max_steps: 1}", "trainig", "training"),
    ],
)
def test_unknown_keys_of_a_file_suggest_the_nearest(refused, tmp_path, text, unknown, nearest):
    (tmp_path / "c.yaml").write_text(text)
    said = refused("train", "--config", tmp_path / "c.yaml", "--output", tmp_path / "run")
    assert unknown in said
    assert f"did you mean {nearest!r}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {batch_size: many}", ("batch_size", "int", "many")),
        ("training: {batch_size: 2.5}", ("batch_size", "int", "2.5")),
        ("training: {learning_rate: fast}", ("learning_rate", "float", "fast")),
        ("training: {schedule: linear}", ("schedule", "cosine", "linear")),
        ("training: {betas: 0.9}", ("betas",)),
        ("model: {recipe: conv_vae, latent_dim: [3]}", ("latent_dim", "int")),
        ("model: {recipe: conv_vae, channels: 8}", ("channels", "8")),
        ("data: {image_size: small}", ("image_size", "small")),
        ("data: {flip: maybe}", ("flip", "bool", "maybe")),
        ("losses: {kl: {weight: heavy}}", ("kl", "weight", "heavy")),
        ("losses: {kl: [1]}", ("losses.kl", "weight")),
        ("training: 3", ("training", "3")),
        ("losses: [l1, kl]", ("losses", "l1")),
        ("- 1\n- 2", ("sections",)),
        ("model: {recipe: 3}", ("3",)),
        ("model: {recipe: conv_vae\n", ("YAML",)),
    ],
)
def test_wrong_types_in_a_file(refused, tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    said = refused("train", "--config", tmp_path / "c.yaml", "--output", tmp_path / "run")
    for word in words:
        assert word in said
    assert "typing." not in said
    assert "<class" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training.batch_size", "many"], ("training.batch_size", "int", "many")),
        (["--training.precision", "fp8"], ("training.precision", "bf16", "fp8")),
        (["--losses.kl.weight", "heavy"], ("losses.kl.weight", "heavy")),
        (["--training.freeze", "encodr"], ("freeze", "encodr")),
        (["--model.recipe", "conv_vae", "--model.latent", "cubic"], ("latent", "spatial", "cubic")),
        (["--model.recipe", "conv_vae", "--model.likelihood", "gausian"], ("gausian", "gaussian")),
        (["--training.devices", "0"], ("devices",)),
        (["--report", "perhaps"], ("report",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_wrong_types_on_the_command_line(refused, tmp_path, arguments, words):
    said = refused(*train(*arguments, output=tmp_path / "run"))
    for word in words:
        assert word in said
    assert "typing." not in said
    assert "<class" not in said


def test_a_configuration_that_is_not_there(refused, tmp_path):
    assert "no.yaml" in refused("train", "--config", tmp_path / "no.yaml", "--output", tmp_path / "run")


@pytest.mark.parametrize(
    "text",
    [
        "model: {recipe: conv_vae, likelihood: {class_path: os.system, init_args: {command: 'true'}}}",
        "losses: {kl: {weight: {class_path: builtins.print}}}",
    ],
)
def test_a_configuration_never_imports_what_it_names(refused, tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    said = refused("train", "--config", tmp_path / "c.yaml", "--output", tmp_path / "run")
    assert "class to import" in said


def test_a_schedule_that_does_not_exist(refused, tmp_path):
    text = "model: {recipe: conv_vae}\nlosses: {nll: {}, kl: {weight: {component: LinaerSchedule, length: 3}}}"
    (tmp_path / "c.yaml").write_text(text)
    said = refused("train", "--config", tmp_path / "c.yaml", "--output", tmp_path / "run")
    assert "did you mean 'LinearSchedule'" in said


# -- the model


def test_unknown_variant_lists_them(refused, tmp_path):
    said = refused(*train("--model.variant", "colossal", output=tmp_path / "run"))
    for name in ("colossal", "tiny", "base", "large", "huge", "giant"):
        assert name in said


@pytest.mark.parametrize("recipe", ["cnn_vae", "vit_vae", "swin_vae"])
def test_unknown_variants_of_the_baselines(refused, tmp_path, recipe):
    said = refused(*train("--model.recipe", recipe, "--model.variant", "tinny", output=tmp_path / "run"))
    assert "did you mean 'tiny'" in said


def test_a_compression_ratio_that_the_variant_lacks(refused, tmp_path):
    said = refused(*train("--model.variant", "tiny", "--model.compression_ratio", 8, output=tmp_path / "run"))
    assert "'tiny' has no compression ratio 8; it has 16" in said


def test_a_model_directory_of_another_architecture(refused, digits_run, spatial_run, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(digits_run / "model", broken)
    shutil.copy(spatial_run / "model" / "model.safetensors", broken / "model.safetensors")
    said = refused("evaluate", broken, "--data.path", "digits")
    assert "do not fit" in said
    # The first keys that differ, by name, and the shapes on both sides.
    assert "encoder.stages.0.0.weight" in said or "encoder." in said
    assert "(4, 3, 4, 4) in the file, (4, 1, 4, 4) in the model" in said


def test_a_model_directory_that_names_something_unknown(refused, digits_run, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(digits_run / "model", broken)
    config = json.loads((broken / "config.json").read_text())
    config["model"]["encoder"]["component"] = "ConvEncodr"
    (broken / "config.json").write_text(json.dumps(config))
    said = refused("sample", broken, "--output", tmp_path / "s.png")
    assert "'ConvEncodr'; did you mean 'ConvEncoder'" in said


def test_damaged_weights(refused, digits_run, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(digits_run / "model", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or incomplete" in refused("sample", broken, "--output", tmp_path / "s.png")


# -- the run


def test_an_output_directory_that_holds_another_run(refused, training, digits_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refused(*training(run, "--losses.nll.weight", "1", "--losses.kl.weight", "9"))
    assert "holds another run" in said
    assert "losses.kl.weight: 2.0 there, 9.0 asked" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_output_directory_with_foreign_files(refused, training, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    said = refused(*training(tmp_path))
    assert "not empty and holds no run" in said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_output_that_is_a_file(refused, training, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file; give --output a directory" in refused(*training(tmp_path / "file"))


def test_no_output(refused):
    assert refused("train", "--data.path", "digits") == "say where the run goes: --output DIRECTORY"


@pytest.mark.parametrize("more", [[], ["--model.recipe", "conv_vae", "--model.channels", "[4,8]"]])
def test_a_batch_larger_than_the_data(refused, tmp_path, more):
    said = refused(*train("--data.limit", 20, "--training.batch_size", 21, *more, output=tmp_path / "run"))
    assert said == ("a batch of 21 is larger than the 20 training images; set training.batch_size to 20 or less")


@pytest.mark.parametrize("value", ["-1e-3", "-1", "0", ".nan", ".inf"])
def test_a_learning_rate_that_is_not_positive(refused, tmp_path, value):
    said = refused(*train("--training.learning_rate", value, output=tmp_path / "run"))
    assert "training.learning_rate" in said
    assert "expected a positive number" in said
    assert not (tmp_path / "run").exists()


def test_a_mistake_does_not_block_the_directory(omnivae, refused, training, tmp_path):
    run = tmp_path / "run"
    refused(*training(run, "--training.batch_size", "1000"))
    outcome = omnivae(*training(run, "--report", "false"))
    assert outcome.code == 0, outcome.err
