"""From a file of foreign weights to a model: everything, or an error; in part only if asked, and then remembered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from omnivae.hub.coverage import Coverage, load_tensors
from omnivae.hub.known import licence_of
from omnivae.hub.layouts import Architecture
from omnivae.hub.reading import Checkpoint, read_checkpoint
from omnivae.hub.recognise import build, converted, recognise
from omnivae.models.vae import VAE


def load_checkpoint(
    path: str | Path,
    *,
    layout: str | None = None,
    settings: Mapping[str, Any] | None = None,
    entry: str | None = None,
) -> VAE:
    """Build the model that a file of foreign weights is of, with every weight in it.

    Args:
        path: ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` or ``.safetensors``, or a folder of diffusers.
        layout: name of the layout, instead of finding it.
        settings: what weights cannot reveal, by the original's argument names, such as ``{"norm_num_groups": 16}``.
        entry: which of several dictionaries of tensors to take.

    Returns:
        The model, in evaluation mode; ``model.statistics["origin"]`` says where it came from.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is damaged, holds code, or is of no known layout.

    Example:
        >>> import tempfile, torch
        >>> from omnivae.recipes import MaisiVAE
        >>> from omnivae.networks.maisi import to_monai
        >>> original = MaisiVAE(num_channels=(8, 16), num_res_blocks=(1, 1), norm_num_groups=4)
        >>> file = Path(tempfile.mkdtemp()) / "autoencoder.pt"
        >>> torch.save(to_monai(original.state_dict()), file)
        >>> model = load_checkpoint(file, settings={"norm_num_groups": 4})
        >>> model.statistics["origin"]["layout"], model.statistics["intensity"]["unit"]
        ('MONAI AutoencoderKlMaisi', 'HU')
    """
    checkpoint = read_checkpoint(path, entry=entry)
    return model_of(checkpoint, recognise(checkpoint, layout=layout, settings=settings))


def model_of(checkpoint: Checkpoint, architecture: Architecture) -> VAE:
    """Return our model of an architecture with a checkpoint's weights in it, all of them.

    Args:
        checkpoint: the weights.
        architecture: what :func:`recognise` returned for them.

    Returns:
        The model, in evaluation mode.
    """
    model = build(architecture)
    load_tensors(model, converted(checkpoint, architecture), source=str(checkpoint.path))
    model.statistics = model.statistics | {"origin": _origin(checkpoint, architecture)}
    return model.eval()


def load_maisi(path: str | Path, *, modality: str | None = None) -> VAE:
    """Return MAISI's autoencoder with the weights of a file: a :class:`~omnivae.MaisiVAE`, all of its tensors loaded.

    Args:
        path: ``autoencoder.pt``, ``autoencoder_v1.pt``, ``autoencoder_v2.pt`` (weights under ``unet_state_dict``), ...
        modality: "CT" or "MR", which intensities it was trained on; "CT" for one channel unless given.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds something else; says what.
    """
    return load_checkpoint(
        path, layout="MONAI AutoencoderKlMaisi", settings=None if modality is None else {"modality": modality}
    )


def load_foreign(
    path: str | Path,
    model: nn.Module,
    *,
    partial: bool = False,
    layout: str | None = None,
    entry: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Coverage:
    """Load foreign weights into a model that exists, whole by default.

    The names of the file are tried as they are first; where they are not the model's, the layout is recognised and its
    names are translated.

    Args:
        path: the file.
        model: where the weights go.
        partial: take what fits by name and shape, warn with counts and names, and let the model card remember.
        layout: name of the layout, instead of finding it.
        entry: which of several dictionaries of tensors to take.
        settings: what weights cannot reveal, by the original's argument names.

    Returns:
        What was loaded.

    Raises:
        ValueError: when not everything fits and ``partial`` is false; nothing is loaded then.
    """
    checkpoint = read_checkpoint(path, entry=entry)
    tensors = dict(checkpoint.tensors)
    if layout is not None or not set(tensors) & set(model.state_dict()):
        tensors = converted(checkpoint, recognise(checkpoint, layout=layout, settings=settings))
    return load_tensors(model, tensors, source=str(checkpoint.path), partial=partial)


def _origin(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Any]:
    origin: dict[str, Any] = {
        "file": checkpoint.path.name,
        "sha256": checkpoint.digest(),
        "layout": architecture.layout,
        "tensors": len(architecture.names) + len(architecture.splits),
        "assumed": {choice.name: choice.assumed for choice in architecture.choices},
    }
    licence = licence_of(checkpoint, architecture)
    return origin | ({"licence": licence} if licence else {})
