"""Configurations of video-to-video pipelines load as they are written, and nothing in them is ignored without a word."""

import logging
from pathlib import Path

import pytest
import yaml

from omnivae.cli.train import read_run
from omnivae.jobs.config import RunConfig, normalise, read_yaml
from omnivae.jobs.video_form import from_video_form

CONFIGS = Path(__file__).parents[2] / "configs"

MAISI = """
model:
  in_channels: 1
  latent_dim: 4
  vae_base_channels: 64
  vae_scaling_factor: 0.18215
  unet_model_channels: 128
  unet_attention_levels: [1, 2]
  noise_schedule: 'cosine'
  diffusion_timesteps: 1000
pretrained:
  use_pretrained: true
  vae:
    enabled: true
    use_maisi: true
    checkpoint_path: './pretrained/maisi_vae/models/autoencoder.pt'
    stack_size: 4
    freeze_epochs: 5
  two_phase_training: true
  phase1_epochs: 5
  layer_lr_multipliers: {vae_encoder: 0.1, vae_decoder: 0.2, unet: 1.0}
data:
  data_source: 'huggingface'
  dataset_name: 'someone/scans'
  categories: ['APE', 'non APE']
  num_frames: 24
  resolution: [256, 192]
  window_center: 200
  window_width: 1800
  val_split: 0.15
  test_split: 0.10
  seed: 42
  batch_size: 2
  num_workers: 8
  max_samples: null
training:
  num_epochs: 50
  learning_rate: 0.0001
  weight_decay: 0.01
  optimizer: 'adamw'
  gradient_accumulation_steps: 16
  max_grad_norm: 1.0
  mixed_precision: true
  precision: 'fp16'
  scheduler: 'cosine'
  warmup_steps: 1000
  min_lr: 0.000001
  checkpoint_every: 1000
  log_interval: 100
hardware: {device: 'cuda', num_gpus: 1, distributed: false, gradient_checkpointing: true, cpu_offload: false}
inference: {sampler: 'ddim', num_inference_steps: 50}
resume: {checkpoint_path: null, resume_optimizer: true}
early_stopping: {enabled: false, patience: 10}
"""

#: As the guide to medical VAEs prints it.
GUIDE = """
model:
  in_channels: 1
  latent_dim: 4
pretrained:
  use_pretrained: true
  vae:
    enabled: true
    use_maisi: true
    checkpoint_path: './pretrained/maisi_vae/models/autoencoder.pt'
    freeze_epochs: 5
"""


def load(text, tmp_path, *options):
    (tmp_path / "run.yaml").write_text(text)
    return read_run(["--config", str(tmp_path / "run.yaml"), *options]).config


def test_the_published_configuration_says_the_same_here(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        config = load(MAISI, tmp_path)
    assert config.model == {
        "recipe": "video_vae",
        "in_channels": 1,
        "latent_dim": 4,
        "base_channels": 64,
        "scaling_factor": 0.18215,
        "use_maisi": True,
        "maisi_checkpoint": "./pretrained/maisi_vae/models/autoencoder.pt",
        "maisi_stack_size": 4,
    }
    assert config.data.path == "hf://someone/scans"
    assert (config.data.val_fraction, config.data.test_fraction, config.data.split_seed) == (0.15, 0.1, 42)
    assert config.data.num_workers == 8
    volume = config.data.volume
    assert (volume.patch_size, volume.window, volume.orientation) == ((24, 256, 192), (-700.0, 1100.0), "SPL")
    training = config.training
    assert (training.batch_size, training.accumulate, training.num_epochs) == (2, 16, 50)
    assert (training.learning_rate, training.weight_decay, training.gradient_clip) == (1e-4, 0.01, 1.0)
    assert (training.precision, training.schedule, training.warmup_steps) == ("16", "cosine", 1000)
    assert (training.log_every, training.checkpoint_every) == (100, 1000)
    assert training.gradient_checkpointing
    assert (training.freeze, training.freeze_epochs) == (("encoder", "posterior"), 5)
    assert training.lr_multipliers == {"encoder": 0.1, "posterior": 0.1, "decoder": 0.2}
    assert set(config.losses) == {"l1", "kl"}
    text = caplog.text
    for key in ("model.unet_model_channels", "model.noise_schedule", "inference.sampler"):
        assert key in text.split("for the diffusion model")[1].splitlines()[0]
    for key in ("training.min_lr", "data.categories", "resume.resume_optimizer", "hardware.device"):
        assert key in text.split("without a counterpart here")[1].splitlines()[0]
    assert "measured on Stable Diffusion's VAE" in text
    assert "-700 to 1100 HU; MAISI's weights were trained on -1000 to 1000 HU" in text


def test_every_key_is_translated_or_named(caplog):
    """What is in the file and neither changes the result nor appears in a message would be ignored in silence."""
    values = yaml.safe_load(MAISI)
    with caplog.at_level(logging.INFO):
        whole = from_video_form(values)
        said = caplog.text
        for section, keys in values.items():
            for key, value in keys.items():
                if value in (None, False) or (section, key) == ("hardware", "distributed"):
                    continue
                rest = {
                    s: {k: v for k, v in entries.items() if (s, k) != (section, key)} for s, entries in values.items()
                }
                try:
                    other = from_video_form(rest)
                except ValueError:
                    continue
                # Two-phase training and its length, and mixed precision and its kind, are each said twice.
                twice = {"two_phase_training", "phase1_epochs", "mixed_precision", "use_pretrained", "data_source"}
                assert other != whole or f"{section}.{key}" in said or key in twice, key


def test_the_guide_loads_as_printed(tmp_path):
    config = load(GUIDE, tmp_path, "--data.path", str(tmp_path))
    assert config.model["use_maisi"] is True
    assert config.model["maisi_checkpoint"].endswith("autoencoder.pt")
    assert config.training.freeze_epochs == 5
    assert config.data.channels == 1


def test_overrides_win(tmp_path):
    config = load(GUIDE, tmp_path, "--training.freeze_epochs", "2", "--model.maisi_stack_size", "8")
    assert config.training.freeze_epochs == 2
    assert config.model["maisi_stack_size"] == 8


def test_it_is_written_in_this_librarys_form_and_read_again(tmp_path):
    config = load(MAISI, tmp_path)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = RunConfig.from_dict(read_yaml(tmp_path / "config.yaml"))
    assert again.to_dict() == config.to_dict()


def test_without_pretrained_weights_the_native_networks_are_trained(tmp_path):
    for key in ("use_pretrained", "enabled"):
        values = yaml.safe_load(GUIDE)
        (values["pretrained"] if key == "use_pretrained" else values["pretrained"]["vae"])[key] = False
        found = normalise(values)
        assert "use_maisi" not in found["model"]
        assert "freeze" not in found.get("training", {})


def test_two_phase_training_may_be_off():
    values = yaml.safe_load(GUIDE)
    values["pretrained"]["two_phase_training"] = False
    assert "training" not in normalise(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["model"].update(latent_dims=4),
            "unknown key 'model.latent_dims'.*did you mean 'model.latent_dim'",
        ),
        (lambda v: v["pretrained"]["vae"].update(stack=4), r"unknown key 'pretrained\.vae\.stack'"),
        (lambda v: v["pretrained"]["vae"].update(model_name="sd-vae"), "remove it"),
        (lambda v: v["pretrained"].update(phase1_epochs=3), "freeze_epochs is 5 and pretrained.phase1_epochs is 3"),
        (lambda v: v.update(optimiser={"name": "adam"}), "unknown section 'optimiser'"),
        (lambda v: v.update(data={"window_center": 40}), "belong together"),
        (lambda v: v.update(data={"resolution": [64, 32]}), "give one side twice"),
        (lambda v: v.update(training={"precision": "fp8"}), "expected fp16, bf16 or fp32"),
        (lambda v: v.update(training="fast"), "expected names and values"),
        (lambda v: v.update(training={"batch_size": 4}, data={"batch_size": 2}), "give one of them"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    values = yaml.safe_load(GUIDE)
    change(values)
    with pytest.raises(ValueError, match=message):
        normalise(values)


@pytest.mark.parametrize("name", ["video.yaml", "video_maisi.yaml"])
def test_the_configurations_that_come_along_are_read_whole(name, caplog):
    with caplog.at_level(logging.WARNING):
        config = read_run(["--config", str(CONFIGS / name)]).config
    assert config.model["recipe"] == "video_vae"
    assert caplog.text == ""
