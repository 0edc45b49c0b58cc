"""Configurations of video-to-video diffusion pipelines with a pretrained VAE: what concerns the VAE, in this library's form.

Their sections are model, pretrained, data, training, hardware, inference, resume and early_stopping. What concerns the VAE and
its training is translated; what is for the diffusion model is named in one warning, what has no counterpart here in another;
a key that is none of these is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omnivae.component import suggestion

log = logging.getLogger(__name__)

SECTIONS = (
    "model",
    "pretrained",
    "data",
    "training",
    "hardware",
    "inference",
    "resume",
    "early_stopping",
    "losses",
    "checkpoint",
)

#: Their key -> ours, where the value stays as it is.
RENAMED = {
    "model.in_channels": "model.in_channels",
    "model.latent_dim": "model.latent_dim",
    "model.vae_base_channels": "model.base_channels",
    "model.vae_scaling_factor": "model.scaling_factor",
    "data.val_split": "data.val_fraction",
    "data.test_split": "data.test_fraction",
    "data.seed": "data.split_seed",
    "data.num_workers": "data.num_workers",
    "data.max_samples": "data.limit",
    "data.batch_size": "training.batch_size",
    "training.batch_size": "training.batch_size",
    "training.num_epochs": "training.num_epochs",
    "training.max_steps": "training.max_steps",
    "training.learning_rate": "training.learning_rate",
    "training.weight_decay": "training.weight_decay",
    "training.optimizer": "training.optimizer",
    "training.scheduler": "training.schedule",
    "training.warmup_steps": "training.warmup_steps",
    "training.gradient_accumulation_steps": "training.accumulate",
    "training.max_grad_norm": "training.gradient_clip",
    "training.checkpoint_every": "training.checkpoint_every",
    "training.validate_every": "training.validate_every",
    "training.log_interval": "training.log_every",
    "training.num_validation_samples": "training.val_images",
    "training.seed": "training.seed",
    "training.gradient_checkpointing": "training.gradient_checkpointing",
    "hardware.gradient_checkpointing": "training.gradient_checkpointing",
    "hardware.num_gpus": "training.devices",
}

#: For the diffusion model, which is trained on the latents of this one.
DIFFUSION = (
    "model.unet_",
    "model.noise_schedule",
    "model.diffusion_timesteps",
    "model.beta_start",
    "model.beta_end",
    "pretrained.layer_lr_multipliers.unet",
    "pretrained.unet",
    "inference.",
)

#: Nothing here depends on them: files go where --output says, a run continues by itself, batches are pinned and full.
WITHOUT_COUNTERPART = (
    "data.streaming",
    "data.use_cache",
    "data.cache_dir",
    "data.force_reprocess",
    "data.categories",
    "data.pin_memory",
    "data.drop_last",
    "training.model_suffix",
    "training.min_lr",
    "training.keep_last_n_checkpoints",
    "training.output_dir",
    "training.log_dir",
    "training.checkpoint_dir",
    "training.experiment_name",
    "training.use_wandb",
    "training.wandb_project",
    "training.wandb_entity",
    "hardware.device",
    "hardware.distributed",
    "hardware.cpu_offload",
    "resume.",
    "early_stopping.",
)

#: The factor of Stable Diffusion's VAE, which pipelines copy to others that it does not fit.
STABLE_DIFFUSION_FACTOR = 0.18215

#: Hounsfield units that MAISI's weights were trained on.
MAISI_WINDOW = (-1000, 1000)

#: Read one by one below.
_TRANSLATED = (
    "pretrained.use_pretrained",
    "pretrained.two_phase_training",
    "pretrained.phase1_epochs",
    "pretrained.vae.enabled",
    "pretrained.vae.use_maisi",
    "pretrained.vae.checkpoint_path",
    "pretrained.vae.stack_size",
    "pretrained.vae.freeze_epochs",
    "pretrained.layer_lr_multipliers.vae_encoder",
    "pretrained.layer_lr_multipliers.vae_decoder",
    "data.data_source",
    "data.dataset_name",
    "data.path",
    "data.num_frames",
    "data.resolution",
    "data.window_center",
    "data.window_width",
    "training.mixed_precision",
    "training.precision",
)


def is_video_form(values: Mapping[str, Any]) -> bool:
    """Return whether a configuration is one of these.

    Args:
        values: sections as read.
    """
    model = values.get("model")
    named = model if isinstance(model, Mapping) else {}
    return "pretrained" in values or any(str(key).startswith(("unet_", "vae_")) for key in named)


def from_video_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a configuration.

    Args:
        values: sections as read.

    Returns:
        Sections in this library's form, for the recipe ``video_vae``.

    Raises:
        ValueError: for a key that nobody knows, or values that contradict each other.

    Example:
        >>> found = from_video_form({"model": {"in_channels": 1}, "pretrained": {"vae": {"freeze_epochs": 5}}})
        >>> found["model"]
        {'recipe': 'video_vae', 'in_channels': 1}
    """
    flat = _flatten(values)
    _refuse_unknown(flat)
    result: dict[str, Any] = {"model.recipe": "video_vae"}
    for theirs, ours in RENAMED.items():
        if flat.get(theirs) is None:
            continue
        if result.get(ours, flat[theirs]) != flat[theirs]:
            raise ValueError(f"{theirs} is {flat[theirs]} and another key says {ours}={result[ours]}; give one of them")
        result[ours] = flat[theirs]
    result |= _pretrained(flat) | _phases(flat) | _data(flat) | _precision(flat)
    _tell(flat, result)
    sections: dict[str, Any] = {}
    for key, value in result.items():
        at = sections
        *folders, name = key.split(".")
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = value
    return sections | {name: values[name] for name in ("losses", "checkpoint") if name in values}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if not prefix and key in ("losses", "checkpoint"):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
        elif prefix:
            flat[name] = value
        elif value is not None:
            raise ValueError(f"the section {key!r} is {value!r}; expected names and values under it")
    return flat


def _refuse_unknown(flat: Mapping[str, Any]) -> None:
    known = (*RENAMED, *_TRANSLATED, *WITHOUT_COUNTERPART, *DIFFUSION)
    for key in flat:
        section = key.split(".")[0]
        if section not in SECTIONS:
            raise ValueError(
                f"unknown section {section!r}{suggestion(section, SECTIONS)}; expected {', '.join(SECTIONS)}"
            )
        if key in ("pretrained.vae.model_name", "pretrained.vae.method", "pretrained.vae.inflate_method"):
            raise ValueError(
                f"{key} asks for a VAE of images by its name; remove it: convert the weights with `omnivae inspect-checkpoint` "
                "and lift them with omnivae.inflate, or set pretrained.vae.use_maisi and checkpoint_path"
            )
        if key not in known and not key.startswith((*DIFFUSION, *_sections_of(WITHOUT_COUNTERPART))):
            raise ValueError(f"unknown key {key!r} in the configuration{suggestion(key, known)}")


def _sections_of(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if key.endswith("."))


def _pretrained(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return which networks the model has and which weights it starts from."""
    if not (flat.get("pretrained.use_pretrained", True) and flat.get("pretrained.vae.enabled", True)):
        return {}
    if not flat.get("pretrained.vae.use_maisi", False):
        path = flat.get("pretrained.vae.checkpoint_path")
        return {} if path is None else {"checkpoint": path}
    result: dict[str, Any] = {"model.use_maisi": True}
    for theirs, ours in (("checkpoint_path", "maisi_checkpoint"), ("stack_size", "maisi_stack_size")):
        if flat.get(f"pretrained.vae.{theirs}") is not None:
            result[f"model.{ours}"] = flat[f"pretrained.vae.{theirs}"]
    return result


def _phases(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is frozen for how long, and at which rates parts learn."""
    result: dict[str, Any] = {}
    rates = {
        part: flat[f"pretrained.layer_lr_multipliers.{theirs}"]
        for theirs, parts in (("vae_encoder", ("encoder", "posterior")), ("vae_decoder", ("decoder",)))
        for part in parts
        if flat.get(f"pretrained.layer_lr_multipliers.{theirs}") is not None
    }
    if rates:
        result["training.lr_multipliers"] = rates
    lengths = [flat.get(key) for key in ("pretrained.vae.freeze_epochs", "pretrained.phase1_epochs")]
    given = {n for n in lengths if n is not None}
    if len(given) > 1:
        raise ValueError(
            f"pretrained.vae.freeze_epochs is {lengths[0]} and pretrained.phase1_epochs is {lengths[1]}; make them equal"
        )
    pretrained = flat.get("pretrained.use_pretrained", True) and flat.get("pretrained.vae.enabled", True)
    if not (given and max(given) > 0 and pretrained and flat.get("pretrained.two_phase_training", True)):
        return result
    # In the pipeline the diffusion model learns while the VAE is frozen; of a VAE alone, the latent space stays as it is
    # loaded while the decoder learns.
    epochs = given.pop()
    log.info("the encoder stays as it is loaded for %d epochs while the decoder learns, then both learn", epochs)
    return result | {"training.freeze": ["encoder", "posterior"], "training.freeze_epochs": epochs}


def _data(flat: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    name, source = flat.get("data.dataset_name"), flat.get("data.data_source")
    if source not in (None, "huggingface", "local"):
        raise ValueError(f"got data.data_source={source!r}; expected 'huggingface' or 'local'")
    if flat.get("data.path") is not None:
        result["data.path"] = flat["data.path"]
    elif name is not None and source == "huggingface":
        result["data.path"] = f"hf://{name}"
    resolution, frames = flat.get("data.resolution"), flat.get("data.num_frames")
    plane = None if resolution is None else [resolution] * 2 if isinstance(resolution, int) else list(resolution)
    centre, width = flat.get("data.window_center"), flat.get("data.window_width")
    if (centre is None) != (width is None):
        raise ValueError("data.window_center and data.window_width belong together; give both, in Hounsfield units")
    if centre is not None and width is not None:
        # Slices of CT from the feet up are the frames; rows run to the back and columns to the left, as on a screen.
        result |= {"data.volume.window": [centre - width / 2, centre + width / 2], "data.volume.orientation": "SPL"}
        if frames is not None and plane is not None:
            result["data.volume.patch_size"] = [frames, *plane]
        return result
    if plane is not None:
        if len(set(plane)) != 1:
            raise ValueError(f"got data.resolution={resolution}; frames are cut to squares, so give one side twice")
        result["data.image_size"] = plane[0]
    if frames is not None:
        result["data.num_frames"] = frames
    if flat.get("model.in_channels") in (1, 3):
        result["data.channels"] = flat["model.in_channels"]
    return result


def _precision(flat: Mapping[str, Any]) -> dict[str, Any]:
    mixed, precision = flat.get("training.mixed_precision"), flat.get("training.precision")
    known = {"fp16": "16", "bf16": "bf16", "fp32": "32", "16": "16", "32": "32", "auto": "auto"}
    if mixed is False:
        return {"training.precision": "32"}
    if precision is None:
        return {} if mixed is None else {"training.precision": "auto"}
    if str(precision) not in known:
        raise ValueError(
            f"got training.precision={precision!r}{suggestion(str(precision), known)}; expected fp16, bf16 or fp32"
        )
    return {"training.precision": known[str(precision)]}


def _tell(flat: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    later = [key for key in flat if key.startswith(DIFFUSION)]
    if later:
        log.warning("for the diffusion model, which this command does not train: %s", ", ".join(later))
    unused = [
        key
        for key, value in flat.items()
        if (key in WITHOUT_COUNTERPART or key.startswith(_sections_of(WITHOUT_COUNTERPART)))
        and value not in (None, False)
    ]
    if unused:
        log.warning("without a counterpart here, and without effect: %s", ", ".join(unused))
    window = result.get("data.volume.window")
    if result.get("model.use_maisi") and window is not None and tuple(window) != MAISI_WINDOW:
        log.warning(
            "the window of data.window_center and data.window_width is %g to %g HU; MAISI's weights were trained on %d to %d HU",
            *window,
            *MAISI_WINDOW,
        )
    if result.get("model.scaling_factor") == STABLE_DIFFUSION_FACTOR:
        log.warning(
            "model.vae_scaling_factor is %s, which was measured on Stable Diffusion's VAE; measure this one's with "
            "VideoVAE.measure_scaling_factor",
            STABLE_DIFFUSION_FACTOR,
        )
