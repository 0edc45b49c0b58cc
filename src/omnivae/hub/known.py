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

#: Licences of MAISI's files by name, as read in the bundle's LICENSE.weights (NSCLv1) and in the README.md of
#: github.com/NVIDIA-Medtech/NV-Generate-CTMR; the code of both is Apache-2.0.
MAISI_FILES = {
    "autoencoder.pt": RESEARCH_ONLY,
    "autoencoder_epoch273.pt": RESEARCH_ONLY,
    "autoencoder_v1.pt": "NVIDIA Open Model License (NV-Generate-CT)",
    "autoencoder_v2.pt": "NVIDIA non-commercial licence (NV-Generate-MR)",
}
#: The architecture of the released files; other weights of it are somebody's own.
_MAISI_PARAMETERS = 20_944_897


@dataclass(frozen=True)
class Stated:
    """What publishers state about the weights of an architecture; fine-tuned weights of it are somebody's own.

    Attributes:
        licence: in one sentence, whose they are first.
        read: where each licence was read, and nowhere else; what could not be read is not claimed.
    """

    licence: str
    read: tuple[str, ...]


_DEEP_COMPRESSION = Stated(
    "MIT's DC-AE: dc-ae-f32c32-in-1.0 was published under Apache-2.0; check the model card of the others",
    ("huggingface.co/mit-han-lab/dc-ae-f32c32-in-1.0, README.md at e4af5f2",),
)
#: Name of the class and numbers in the file -> what is stated.
ARCHITECTURES: dict[tuple[str, int], Stated] = {
    ("AutoencoderKL", 83_653_863): Stated(
        "Stable Diffusion's: CreativeML OpenRAIL-M (1.4), CreativeML Open RAIL++-M (2.1); sd-vae-ft-mse and sdxl-vae MIT; "
        "check the model card of others",
        (
            "huggingface.co/CompVis/stable-diffusion-v1-4",
            "huggingface.co/stabilityai/stable-diffusion-2-1-base",
            "huggingface.co/stabilityai/sd-vae-ft-mse, README.md",
            "huggingface.co/stabilityai/sdxl-vae",
        ),
    ),
    ("AutoencoderKL", 83_819_683): Stated(
        "FLUX.1's and Stable Diffusion 3's: FLUX.1's autoencoder is Apache-2.0, that of the non-commercial FLUX.1 [dev] too; "
        "Stable Diffusion 3 Medium is under the Stability AI Community License (paid above a yearly revenue of 1M USD)",
        ("github.com/black-forest-labs/flux, README.md", "stability.ai/news/license-update"),
    ),
    ("AutoencoderKLCogVideoX", 215_583_907): Stated(
        "CogVideoX's: the autoencoder of CogVideoX-2B is Apache-2.0; the repositories of CogVideoX-5B and 1.5-5B are under the "
        "CogVideoX License (research; commercial use after registration)",
        (
            "github.com/THUDM/CogVideo, README.md",
            "huggingface.co/THUDM/CogVideoX-5b, README.md and LICENSE",
            "huggingface.co/THUDM/CogVideoX1.5-5B-SAT, LICENSE",
        ),
    ),
    ("AutoencoderDC", 323_369_260): _DEEP_COMPRESSION,
    ("AutoencoderDC", 676_908_940): _DEEP_COMPRESSION,
    ("AutoencoderDC", 1_120_695_052): _DEEP_COMPRESSION,
    ("AutoencoderDC", 312_250_275): Stated("SANA's DC-AE: check the model card", ()),
}
#: MedVAE's files, of whatever width.
MEDVAE = Stated("MedVAE's: published under MIT", ("huggingface.co/stanfordmimi/MedVAE",))


def licence_of(checkpoint: Checkpoint, architecture: Architecture) -> str | None:
    """Return what is known about the licence of weights, ``None`` for weights that are not known.

    Args:
        checkpoint: the weights.
        architecture: what they are of.

    Returns:
        A sentence.
    """
    if architecture.layout == "MedVAE":
        return f"the layout is {MEDVAE.licence}"
    library, _, name = architecture.layout.partition(" ")
    name = "AutoencoderDC" if library == "efficientvit" else name
    known = ARCHITECTURES.get((name, checkpoint.num_parameters)) if library != "MONAI" else None
    if known:
        return f"the architecture is {known.licence}"
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
