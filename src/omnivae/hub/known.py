"""Published weights: where they are, how they are checked, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass

from omnivae.hub.layouts import Architecture
from omnivae.hub.reading import Checkpoint

RESEARCH_ONLY = "NSCLv1: research and evaluation only, no commercial use"


@dataclass(frozen=True)
class Published:
    """Weights that their authors publish.

    Attributes:
        title: what they are.
        file: name that the file gets here.
        urls: where it is, tried in this order.
        md5: checksum that the publisher states; ``None`` where none is stated.
        licence: of the weights, which is not that of the code.
    """

    title: str
    file: str
    urls: tuple[str, ...]
    md5: str | None
    licence: str


#: Name for ``--download`` -> what it fetches. The checksum is that of the model zoo's ``large_files.yml``.
PUBLISHED: dict[str, Published] = {
    "maisi": Published(
        title="MAISI's autoencoder of CT volumes (bundle maisi_ct_generative 1.0.0)",
        file="autoencoder.pt",
        urls=("https://huggingface.co/MONAI/maisi_ct_generative/resolve/1.0.0/models/autoencoder.pt",),
        md5="917cfb1e49631c8a713e3bb7c758fbca",
        licence=RESEARCH_ONLY,
    ),
}

#: Licences of MAISI's files by name; the code of MONAI is Apache-2.0 throughout.
MAISI_FILES = {
    "autoencoder.pt": RESEARCH_ONLY,
    "autoencoder_epoch273.pt": RESEARCH_ONLY,
    "autoencoder_v1.pt": "NVIDIA Open Model License (NV-Generate-CT)",
    "autoencoder_v2.pt": "NVIDIA non-commercial licence (NV-Generate-MR)",
}
#: The architecture of the released files; other weights of it are somebody's own.
_MAISI_PARAMETERS = 20_944_897
#: Parameters of published architectures -> whose they are, and the licences that their publishers state. Fine-tuned weights
#: of the same architecture are somebody's own.
_ARCHITECTURES: dict[tuple[str, int], str] = {
    (
        "AutoencoderKL",
        83_653_863,
    ): "Stable Diffusion's: released weights are CreativeML OpenRAIL-M (1.x) and OpenRAIL++-M "
    "(2.x); sd-vae-ft-mse and sdxl-vae are MIT",
    (
        "AutoencoderKL",
        83_819_683,
    ): "FLUX.1's and Stable Diffusion 3's: released weights are Apache-2.0 (FLUX.1 schnell), "
    "non-commercial (FLUX.1 dev) and Stability AI Community License (Stable Diffusion 3)",
    (
        "AutoencoderKLCogVideoX",
        215_583_907,
    ): "CogVideoX's: the autoencoder of CogVideoX-2B is Apache-2.0; see the model card of others",
}


def licence_of(checkpoint: Checkpoint, architecture: Architecture) -> str | None:
    """Return what is known about the licence of weights, ``None`` for weights that are not known.

    Args:
        checkpoint: the weights.
        architecture: what they are of.

    Returns:
        A sentence.
    """
    if architecture.layout == "MedVAE":
        return "MedVAE's published weights: MIT"
    library, _, name = architecture.layout.partition(" ")
    known = _ARCHITECTURES.get((name, checkpoint.num_parameters)) if library != "MONAI" else None
    if known:
        return f"the architecture is {known}"
    if architecture.layout != "MONAI AutoencoderKlMaisi" or checkpoint.num_parameters != _MAISI_PARAMETERS:
        return None
    if checkpoint.digest("md5") == PUBLISHED["maisi"].md5:
        return f"{PUBLISHED['maisi'].licence} (checksum of MAISI's released file)"
    stated = MAISI_FILES.get(checkpoint.path.name)
    if stated:
        return (
            f"{stated}, if this is NVIDIA's file of that name (the checksum is not that of the released autoencoder.pt)"
        )
    return (
        "the architecture is that of NVIDIA's MAISI: released weights are NSCLv1 (research and evaluation only), "
        "autoencoder_v1.pt NVIDIA Open Model License, autoencoder_v2.pt non-commercial; the code is Apache-2.0"
    )
