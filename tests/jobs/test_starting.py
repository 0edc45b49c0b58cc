"""Weights that do not fit a configuration: which of its options differ, and which make them fit."""

import logging
import shutil

import pytest
import torch

from omnivae import VAE, MaisiVAE
from omnivae.cli.main import main
from omnivae.jobs.config import read_yaml
from omnivae.jobs.starting import start_from
from omnivae.networks.maisi import to_monai
from omnivae.recipes import RECIPES, cogvideox_vae, conv_vae, dc_ae, kl_autoencoder, vq_vae

SMALL = {"channels": (8, 16), "num_groups": 4, "num_res_blocks": 1}


def begin(recipe, arguments, start):
    """What a run does: build the model of a configuration and load the weights of another."""
    import inspect

    def rebuild(changes):
        return RECIPES[recipe](**{**arguments, **changes})

    model = rebuild({})
    options = {name: p.default for name, p in inspect.signature(RECIPES[recipe]).parameters.items()}
    start_from(model, start, "runs/first/model", rebuild=rebuild, options=options)
    return model


def misfit(recipe, arguments, start):
    with pytest.raises(ValueError, match=r"the weights in runs/first/model do not fit") as error:
        begin(recipe, arguments, start)
    return str(error.value)


def test_what_fits_is_loaded():
    start = kl_autoencoder(**SMALL)
    model = begin("kl_autoencoder", SMALL, start)
    assert all(torch.equal(v, start.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_options_that_differ_are_named_with_both_values_and_the_way_out():
    start = MaisiVAE(num_channels=(8, 16), num_res_blocks=(1, 1), norm_num_groups=4)
    text = misfit("maisi_vae", {"num_channels": (8, 24), "num_res_blocks": (1, 1), "norm_num_groups": 8}, start)
    assert "model.num_channels is [8, 24] here and [8, 16] in the checkpoint" in text
    assert text.endswith("They fit with --model.num_channels '[8,16]' --model.norm_num_groups 4")
    assert "out_channels" not in text  # one channel, spelt out or not


def test_one_option_of_encoder_and_decoder_is_named_once():
    text = misfit("kl_autoencoder", SMALL | {"num_res_blocks": 2, "latent_dim": 3}, kl_autoencoder(**SMALL))
    assert text.endswith("They fit with --model.num_res_blocks 1 --model.latent_dim 4")


def test_the_way_out_is_what_the_model_was_built_with():
    blocks = {"latent_dim": 4, "channels": (8, 8, 16), "num_blocks": (0, 1, 1), "decoder_num_blocks": (0, 1, 1)}
    text = misfit("dc_ae", blocks, dc_ae(**blocks | {"decoder_num_blocks": (0, 2, 1), "downsample": "conv"}))
    assert text.endswith("They fit with --model.downsample conv --model.decoder_num_blocks '[0,2,1]'")


def test_another_kind_of_model_is_said_to_be_one():
    text = misfit("vq_vae", {}, conv_vae(image_size=16, channels=(4, 8)))
    assert "its posterior is a GaussianPosterior, here a VQPosterior" in text
    assert "choose the recipe" in text
    assert "They fit with" not in text


def test_weights_that_fit_but_meant_another_function_are_told(caplog):
    start = kl_autoencoder(**SMALL)
    with caplog.at_level(logging.WARNING, logger="omnivae"):
        begin("kl_autoencoder", SMALL | {"num_groups": 8}, start)
    assert "model.num_groups is 8 here and 4 in the checkpoint" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="omnivae"):
        begin("kl_autoencoder", SMALL | {"value_range": (0.0, 1.0), "likelihood": "gaussian_fixed"}, start)
        begin("vq_vae", {"channels": (4,), "num_codes": 4}, vq_vae(channels=(4,), num_codes=4, image_size=8))
    assert caplog.text == ""


def test_the_command_says_it_in_one_sentence(tmp_path, capsys):
    kl_autoencoder(**SMALL).save_pretrained(tmp_path / "start")
    arguments = ["--model.recipe", "kl_autoencoder", "--model.channels", "[4,8]", "--model.num_groups", "4"]
    arguments += ["--data.path", "photos", "--data.limit", "8", "--checkpoint", str(tmp_path / "start")]
    assert main(["train", *arguments, "--output", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert "They fit with --model.channels '[8,16]' --model.num_res_blocks 1" in printed
    assert "conv_in.weight" not in printed


@pytest.mark.parametrize("recipe", ["cogvideox_vae", "dc_ae"])
def test_converted_models_of_diffusers_go_on_training(tmp_path, recipe):
    from hub import originals

    original = {"cogvideox_vae": originals.cogvideox, "dc_ae": originals.deep_compression}[recipe]()
    original.save_pretrained(tmp_path / "theirs")
    arguments = [str(tmp_path / "theirs"), "-o", str(tmp_path / "model"), "--config-out", str(tmp_path / "c.yaml")]
    assert main(["inspect-checkpoint", *arguments, "--trials", "false"]) == 0
    data = {"cogvideox_vae": "moving_sprites", "dc_ae": "photos"}[recipe]
    arguments = ["--config", str(tmp_path / "c.yaml"), "--checkpoint", str(tmp_path / "model"), "--data.path", data]
    arguments += ["--data.limit", "4", "--training.batch_size", "2", "--training.max_steps", "1"]
    arguments += ["--training.learning_rate", "1e-3", "--training.warmup_steps", "0", "--training.val_images", "2"]
    arguments += ["--data.image_size", "16"] if recipe == "dc_ae" else []
    from omnivae.cli.train import read_run
    from omnivae.jobs.train import train

    config = read_run([*arguments, "--output", str(tmp_path / "run")]).config
    assert train(config, tmp_path / "run", progress=False, report=False).complete
    before, after = (VAE.from_pretrained(tmp_path / name).state_dict() for name in ("model", "run"))
    moved = [float((after[name] - t).abs().max()) for name, t in before.items() if t.is_floating_point()]
    # One step of 1e-3 away from the weights that were converted, and from nothing else.
    assert 0 < max(moved) < 0.01


def test_a_large_default_is_not_built_to_say_so():
    # The released sizes are compared on the meta device: no memory, no time.
    with torch.device("meta"):
        released = cogvideox_vae()
    text = misfit("cogvideox_vae", {"channels": (8, 8, 8, 8), "num_res_blocks": 1, "num_groups": 4}, released)
    assert "--model.channels '[128,256,256,512]' --model.num_res_blocks 3 --model.num_groups 32" in text


def test_weights_without_a_configuration_bring_their_model_and_losses(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    train = [
        "train",
        "--data.path",
        "digits",
        "--training.max_steps",
        "2",
        "--training.batch_size",
        "4",
        "--report",
        "false",
    ]
    model = ["--model.recipe", "conv_vae", "--model.channels", "[4,8]", "--model.latent_dim", "3"]
    assert main([*train, *model, "--losses.kl.weight", "0.25", "--output", str(first)]) == 0
    for checkpoint in (first, first / "model"):
        capsys.readouterr()
        assert main([*train, "--checkpoint", str(checkpoint), "--output", str(second)]) == 0
        assert f"model and losses as in {first / 'config.yaml'}" in capsys.readouterr().err
        config = read_yaml(second / "config.yaml")
        assert config["model"]["channels"] == [4, 8]
        assert config["losses"]["kl"]["weight"] == 0.25
        shutil.rmtree(second)
    # What is said on the command line counts.
    assert main([*train, "--checkpoint", str(first), "--losses.kl.weight", "0.5", "--output", str(second)]) == 0
    assert read_yaml(second / "config.yaml")["losses"]["kl"]["weight"] == 0.5


def test_other_peoples_weights_are_trained_on_with_what_the_doctor_proposes(tmp_path, capsys):
    source = MaisiVAE(num_channels=(8, 16), num_res_blocks=(1, 1), norm_num_groups=4, attention_levels=(False, False))
    torch.save(to_monai(source.state_dict()), tmp_path / "autoencoder.pt")
    models = tmp_path / "models"
    assert (
        main(
            [
                "inspect-checkpoint",
                str(tmp_path / "autoencoder.pt"),
                "-o",
                str(models),
                "--set",
                '{"norm_num_groups": 4}',
            ]
        )
        == 0
    )
    volumes = ["--data.path", "ct_phantoms", "--data.volume.patch_size", "8", "--data.limit", "2", "--report", "false"]
    steps = ["--training.max_steps", "1", "--training.batch_size", "1"]
    assert main(["train", "--checkpoint", str(models), *volumes, *steps, "--output", str(tmp_path / "run")]) == 0
    assert "model and losses as in" in capsys.readouterr().err
    assert read_yaml(tmp_path / "run" / "config.yaml")["model"]["recipe"] == "maisi_vae"


def test_weights_that_do_not_say_how_they_were_made_are_refused(tmp_path, capsys):
    conv_vae(channels=(4,), image_size=8).save_pretrained(tmp_path / "bare")
    assert (
        main(
            [
                "train",
                "--data.path",
                "digits",
                "--checkpoint",
                str(tmp_path / "bare"),
                "--output",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    assert "does not say how its model was made: give --config FILE" in capsys.readouterr().err
