"""``omnivae train``: a run directory, overrides, the same command again, the flat form of other code bases."""

import json

import pytest
import torch
import yaml

from omnivae.cli.train import read_run
from omnivae.jobs.config import read_yaml
from omnivae.losses import LinearSchedule
from omnivae.models import VAE

DOCUMENT_3 = """\
# configs/transvae_large_f16d32.yaml
model:
  variant: large
  compression_ratio: 16
  latent_dim: 32
  depths: [3, 3, 3, 4, 6]
  base_dims: [192, 192, 384, 768, 1536]
  mlp_ratio: 1.0
  head_dim: 64
  use_rope: true
  use_conv_ffn: true
  use_dc_path: true

training:
  batch_size: 256
  learning_rate: 1e-4
  num_epochs: 100
  warmup_steps: 1000
  optimizer: adamw
  weight_decay: 0.0

losses:
  l1_weight: 1.0
  lpips_weight: 1.0
  kl_weight: 1e-8
  vf_weight: 0.1
  gan_weight: 0.05
"""


def steps_of(run):
    lines = (run / "metrics.csv").read_text().splitlines()
    total = lines[0].split(",").index("train/total")
    return [int(line.split(",")[0]) for line in lines[1:] if line.split(",")[total]]


# -- a run


def test_a_run_directory_holds_what_is_promised(digits_run):
    names = {path.name for path in digits_run.iterdir()}
    assert {"config.yaml", "checkpoints", "model", "metrics.csv", "report.html"} <= names
    assert {path.name for path in (digits_run / "model").iterdir()} >= {"config.json", "model.safetensors"}
    assert (digits_run / "checkpoints" / "last.safetensors").is_file()
    assert list((digits_run / "pictures").glob("*.png"))
    assert steps_of(digits_run) == [1, 2, 3]
    config = yaml.safe_load((digits_run / "config.yaml").read_text())
    assert set(config) == {"model", "data", "losses", "training"}
    assert config["losses"]["kl"]["weight"] == 2
    assert "<html" in (digits_run / "report.html").read_text()
    assert VAE.from_pretrained(digits_run).in_channels == 1
    leftovers = [path for path in digits_run.rglob("*") if path.suffix in (".tmp", ".ckpt", ".pt", ".pth", ".pkl")]
    assert leftovers == []


def test_the_same_command_returns_at_once_and_a_longer_one_continues(omnivae, training, tmp_path):
    run = tmp_path / "run"
    arguments = ["--training.schedule", "constant", "--report", "false"]
    assert omnivae(*training(run, *arguments)).code == 0
    weights = (run / "model" / "model.safetensors").read_bytes()
    again = omnivae(*training(run, *arguments))
    assert again.code == 0
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert steps_of(run) == [1, 2, 3]
    longer = omnivae(*training(run, *arguments, steps=5))
    assert longer.code == 0
    assert "5 steps done" in longer.out
    assert steps_of(run) == [1, 2, 3, 4, 5]
    assert (run / "model" / "model.safetensors").read_bytes() != weights
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["max_steps"] == 5


def test_a_run_continues_without_its_configuration(omnivae, training, tmp_path):
    run = tmp_path / "run"
    assert omnivae(*training(run, "--report", "false")).code == 0
    outcome = omnivae("train", "--output", run, "--training.max_steps", 4, "--report", "false")
    assert outcome.code == 0, outcome.err
    assert steps_of(run) == [1, 2, 3, 4]


def test_without_a_configuration_a_recipe_is_chosen_and_printed(omnivae, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "--data.path", "digits", "--output", run, "--training.max_steps", 1, "--report", "false"]
    outcome = omnivae(*arguments)
    assert outcome.code == 0
    assert "chosen from the images: recipe conv_vae" in outcome.err
    for word in ("bernoulli", "nll", "kl", "learning rate", "overridden"):
        assert word in outcome.err
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["recipe"] == "conv_vae"
    # The choice is stored: repeating the command continues and chooses nothing.
    again = omnivae(*arguments)
    assert again.code == 0
    assert "chosen" not in again.err


def test_a_folder_with_class_subfolders(spatial_run):
    config = yaml.safe_load((spatial_run / "config.yaml").read_text())
    assert config["data"]["path"].endswith("pictures")
    model = VAE.from_pretrained(spatial_run)
    assert model.in_channels == 3
    assert model.image_size is None


def test_larger_pictures_get_a_transvae(make_images, tmp_path, capsys):
    folder = make_images(tmp_path / "pictures", [(80, 96), (100, 90), (70, 70)] * 3)
    config, *_ = read_run(["--data.path", str(folder), "--output", str(tmp_path / "run")])
    assert config.model["recipe"] == "transvae"
    assert config.data.image_size % 16 == 0
    assert 16 <= config.data.image_size <= 96
    assert config.training.batch_size <= 7
    assert "transvae" in capsys.readouterr().err


# -- overrides


def read(*argv):
    return read_run([str(a) for a in argv])[0]


def test_every_field_can_be_overridden(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {recipe: conv_vae}\nlosses: {nll: {}, kl: {weight: 4}}\ntraining: {max_steps: 9}\n")
    config = read("--config", file, "--losses.kl.weight", "8", "--training.learning_rate=3e-4", "--data.path", "photos",
                  "--model.latent_dim", "7", "--training.ema", "0.5")  # fmt: skip
    assert config.losses["kl"]["weight"] == 8
    assert config.training.learning_rate == 3e-4
    assert config.training.max_steps == 9
    assert config.training.ema == 0.5
    assert config.data.path == "photos"
    assert config.model == {"recipe": "conv_vae", "latent_dim": 7}
    assert set(config.losses) == {"nll", "kl"}


def test_a_loss_can_be_added_and_left_out(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {recipe: conv_vae}\nlosses: {nll: {}, kl: {}}\n")
    assert set(read("--config", file, "--losses.mse.weight", "0.5").losses) == {"nll", "kl", "mse"}
    assert set(read("--config", file, "--losses.kl.weight", "0").losses) == {"nll"}


@pytest.mark.parametrize(
    "arguments", [["--losses.kl", '{"weight": 8}'], ['--losses.kl={"weight": 8.5}'], ["--losses.kl", "8"]]
)
def test_a_whole_loss_on_the_command_line_is_heeded_or_refused(arguments):
    try:
        config = read("--model.recipe", "conv_vae", "--losses.nll.weight", "1", *arguments)
    except ValueError:
        return
    assert config.losses["kl"]["weight"] in (8, 8.5)


SCHEDULE = {"component": "LinearSchedule", "start": 0.0, "end": 8.0, "length": 4}


def test_a_weight_may_be_a_schedule(omnivae, training, tmp_path):
    run = tmp_path / "run"
    arguments = training(
        run, "--losses.nll.weight", "1", "--losses.kl.weight", json.dumps(SCHEDULE), "--report", "false"
    )
    outcome = omnivae(*arguments)
    assert outcome.code == 0, outcome.err
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/weight/kl")
    weights = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert weights == [0.0, 2.0, 4.0]
    assert omnivae(*arguments).code == 0, "the stored schedule must equal the one given"


def test_a_schedule_in_a_file_equals_one_on_the_command_line(tmp_path):
    from omnivae.jobs.config import build_losses

    file = tmp_path / "c.yaml"
    file.write_text(
        yaml.safe_dump({"model": {"recipe": "conv_vae"}, "losses": {"nll": {}, "kl": {"weight": SCHEDULE}}})
    )
    from_file = build_losses(read("--config", file).losses)["kl"].weight
    given = read("--model.recipe", "conv_vae", "--losses.nll.weight", "1", "--losses.kl.weight", json.dumps(SCHEDULE))
    from_line = build_losses(given.losses)["kl"].weight
    for schedule in (from_file, from_line):
        assert isinstance(schedule, LinearSchedule)
        assert [schedule(t) for t in (0, 1, 4, 9)] == [0.0, 2.0, 8.0, 8.0]


def test_a_recipe_can_be_chosen_for_losses_with_a_schedule(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"data": {"path": "digits"}, "losses": {"nll": {}, "kl": {"weight": SCHEDULE}}}))
    config = read("--config", file)
    assert config.model["recipe"] == "conv_vae"
    assert set(config.losses) == {"nll", "kl"}
    assert "chosen from the images" in capsys.readouterr().err


def test_epochs_are_heeded_where_a_recipe_is_chosen(capsys):
    config = read("--data.path", "digits", "--training.num_epochs", "2", "--training.batch_size", "100")
    assert config.training.total_steps(1437) == 28


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: {recipe: conv_vae}\nlosses: {l1: {weight: 2E-3}, kl: 1e-6}\ntraining: {learning_rate: 1e-4}\n"
    )
    config = read("--config", file)
    assert config.losses["l1"]["weight"] == 2e-3
    assert config.losses["kl"]["weight"] == 1e-6
    assert config.training.learning_rate == 1e-4


# -- the form of document 3


def test_document_3s_file_loads_as_written(tmp_path):
    file = tmp_path / "transvae_large_f16d32.yaml"
    file.write_text(DOCUMENT_3)
    values = read_yaml(file)
    assert values["training"]["learning_rate"] == 1e-4
    assert values["losses"]["kl"]["weight"] == 1e-8
    config = read("--config", file, "--data.path", "photos")
    assert config.training.learning_rate == 1e-4
    assert config.training.batch_size == 256
    assert config.training.num_epochs == 100
    assert config.training.warmup_steps == 1000
    assert config.training.max_steps is None
    assert {name: loss["weight"] for name, loss in config.losses.items()} == {
        "l1": 1.0,
        "lpips": 1.0,
        "kl": 1e-8,
        "vf": 0.1,
        "gan": 0.05,
    }
    # In that form the pixel loss is a mean over every element and the KL a sum over the latent.
    assert config.losses["l1"]["per_element"] is True
    assert config.losses["kl"]["per_element"] is False
    assert config.model["variant"] == "large"
    assert config.model["depths"] == [3, 3, 3, 4, 6]
    assert config.model["use_dc_path"] is True


def test_document_3s_losses_with_foreign_weights_say_what_they_need(refused, tmp_path):
    file = tmp_path / "transvae_large_f16d32.yaml"
    file.write_text(DOCUMENT_3)
    said = refused("train", "--config", file, "--data.path", "digits", "--output", tmp_path / "run")
    assert "'lpips'" in said
    assert "--losses.lpips.weight 0" in said
    config = read("--config", file, *[f"--losses.{name}.weight=0" for name in ("lpips", "vf", "gan")])
    assert set(config.losses) == {"l1", "kl"}


def test_document_3s_flags():
    argv = [
        "--data_dir", "pics", "--output_dir", "out", "--batch_size", "128", "--num_epochs", "3", "--learning_rate", "2e-4",
        "--losses", "l1", "kl", "--loss_weights", "1.0", "1e-8", "--num_gpus", "1", "--freeze_encoder",
        "--model.variant", "tiny",
    ]  # fmt: skip
    config, output, *_ = read_run(argv)
    assert output == "out"
    assert config.data.path == "pics"
    assert config.training.batch_size == 128
    assert config.training.num_epochs == 3
    assert config.training.max_steps is None
    assert config.training.learning_rate == 2e-4
    assert config.training.devices == 1
    assert tuple(config.training.freeze) == ("encoder", "posterior")
    assert config.losses["l1"]["weight"] == 1.0
    assert config.losses["l1"]["per_element"] is True
    assert config.losses["kl"]["weight"] == 1e-8
    assert set(config.losses) == {"l1", "kl"}


def test_document_3s_flags_replace_the_losses_of_its_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(DOCUMENT_3)
    config = read("--config", file, "--losses", "l1", "kl", "--loss_weights", "0.5", "1e-6", "--batch_size=8")
    assert {name: loss["weight"] for name, loss in config.losses.items()} == {"l1": 0.5, "kl": 1e-6}
    assert config.training.batch_size == 8


def test_document_3s_flags_train(omnivae, tmp_path):
    run = tmp_path / "run"
    outcome = omnivae(
        "train", "--data_dir", "digits", "--output_dir", run, "--batch_size", 8, "--num_epochs", 1, "--learning_rate", "1e-3",
        "--losses", "l1", "kl", "--loss_weights", "1.0", "1e-8", "--num_gpus", 1, "--freeze_encoder",
        "--model.recipe", "conv_vae", "--model.channels", "[4,8]", "--data.limit", 24, "--report", "false",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert steps_of(run) == [1, 2, 3]


def test_weights_and_losses_must_agree_in_number(refused, tmp_path):
    said = refused("train", "--output", tmp_path / "r", "--losses", "l1", "kl", "--loss_weights", "1.0")
    assert said == "got 2 --losses and 1 --loss_weights; expected one weight for each loss"
    assert "expected numbers, got 'x'" in refused(
        "train", "--output", tmp_path / "r", "--losses", "l1", "--loss_weights", "x"
    )


def test_a_second_stage_starts_from_a_model_and_freezes_its_encoder(omnivae, training, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert omnivae(*training(first, "--report", "false")).code == 0
    arguments = training(second, "--checkpoint", first, "--freeze_encoder", "--training.ema", "0", "--report", "false")
    outcome = omnivae(*arguments)
    assert outcome.code == 0, outcome.err
    before, after = (VAE.from_pretrained(run).state_dict() for run in (first, second))
    encoder = [name for name in before if name.startswith(("encoder.", "posterior."))]
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("decoder."))
    refused = omnivae(*training(tmp_path / "third", "--checkpoint", tmp_path / "nowhere"))
    assert refused.code == 2
    assert "no model at" in refused.err


def test_a_named_recipe_keeps_its_objective_when_one_of_its_losses_is_changed():
    config = read("--model.recipe", "beta_vae", "--data.path", "digits")
    assert {name: loss["weight"] for name, loss in config.losses.items()} == {"nll": 1.0, "kl": 4.0}
    changed = read("--model.recipe", "beta_vae", "--data.path", "digits", "--losses.kl.weight", "8")
    assert {name: loss["weight"] for name, loss in changed.losses.items()} == {"nll": 1.0, "kl": 8.0}
    added = read(
        "--model.recipe", "conv_vae", "--data.path", "digits", "--losses.tc.weight", "5", "--losses.kl.weight", "0"
    )
    assert set(added.losses) == {"nll", "tc"}
    replaced = read("--model.recipe", "beta_vae", "--data.path", "digits", "--losses", "l1", "kl")
    assert set(replaced.losses) == {"l1", "kl"}
