"""VAEs of video: natively in 2-D plus time, or through MAISI's networks in stacks of frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnivae.likelihoods import Likelihood
from omnivae.models import StackedVAE
from omnivae.networks.kl import KLDecoder, KLEncoder
from omnivae.networks.maisi import from_monai
from omnivae.networks.video import LiftedNetwork
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import RECONSTRUCTION, member
from omnivae.recipes.volumes import MaisiVAE

log = logging.getLogger(__name__)

#: Widths of the stages as multiples of ``base_channels``; of MAISI's the ones that NVIDIA published.
NATIVE_WIDTHS, MAISI_WIDTHS = (1, 2, 4, 4), (1, 2, 4)


@member(
    name="video_vae",
    paper="Ho et al., Video Diffusion Models (2022); Guo et al., MAISI: Medical AI for Synthetic Imaging (2024)",
    equation="|x - x̂| + β KL(q(z|x) ‖ N(0, I)), β = 1e-6; frames folded into the batch, kernels over three frames",
    purpose="video and slices of volumes; every frame kept, or four to one with MAISI's networks",
    losses=RECONSTRUCTION,
)
class VideoVAE(StackedVAE):
    """VAE of video ``[B, C, T, H, W]``: every number of frames comes back exactly.

    Natively the latent is ``[B, latent_dim, T, H/8, W/8]``: the KL autoencoder of latent diffusion with kernels over three
    frames and strides (1, 2, 2). With ``use_maisi`` it is ``[B, latent_dim, T/4, H/4, W/4]``: MAISI's 3-D networks see
    ``maisi_stack_size`` frames at a time, the last frame repeated where they do not fill a stack.

    Args:
        in_channels: channels of a frame; MAISI's networks take 1. Colour given to a model of one channel becomes grey.
        latent_dim: channels of z.
        base_channels: width of the first stage; natively (1, 2, 4, 4) times as wide, with MAISI (1, 2, 4) times.
        scaling_factor: factor of the latents; ``measure_scaling_factor`` sets it from data.
        use_maisi: MAISI's networks instead of the native ones.
        maisi_checkpoint: MAISI's weights (``autoencoder.pt``); loaded whole or refused. A saved model does not need it again.
        maisi_partial: load what fits of the weights, and report and remember what does not.
        maisi_stack_size: frames of a stack, a multiple of 4; ``None`` for the whole clip at once.
        stack_size: frames of a stack natively; ``None`` for the whole clip.
        overlap: frames that neighbouring windows share, blended linearly; 0 for independent stacks.
        num_res_blocks: residual blocks of each encoder stage.
        num_groups: groups of each group normalisation; divides every width.
        mid_attention: whether the middle has attention between the positions of a frame; native networks only.
        time_stride: frames that become one in native networks: 1, 2, 4 or 8.
        likelihood: p(x|z), a name or an object; Laplace with scale 1 by default.
        value_range: lowest and highest pixel value; (-1, 1) natively and (0, 1) with MAISI, unless the likelihood says.

    Raises:
        ValueError: for MAISI's networks with other than one channel, weights that do not fit, or stacks that cannot be.
        FileNotFoundError: when there is no checkpoint.

    Example:
        >>> import torch
        >>> model = VideoVAE(1, 4, base_channels=8, num_res_blocks=1, num_groups=4).eval()
        >>> z = model.encode(torch.zeros(1, 1, 5, 32, 32))
        >>> z.shape, model.decode(z).shape, model.encoder.stride
        (torch.Size([1, 4, 5, 4, 4]), torch.Size([1, 1, 5, 32, 32]), (1, 8, 8))
    """

    #: Axes of what it encodes: frames, height and width.
    axes = 3

    def __init__(
        self,
        in_channels: int = 1,
        latent_dim: int = 4,
        base_channels: int = 64,
        scaling_factor: float = 1.0,
        *,
        use_maisi: bool = False,
        maisi_checkpoint: str | None = None,
        maisi_partial: bool = False,
        maisi_stack_size: int | None = 4,
        stack_size: int | None = None,
        overlap: int = 0,
        num_res_blocks: int = 2,
        num_groups: int = 32,
        mid_attention: bool = False,
        time_stride: int = 1,
        likelihood: str | Likelihood = "laplace_fixed",
        value_range: Sequence[float] | None = None,
    ) -> None:
        stacks: dict[str, Any] = {"overlap": overlap, "scaling_factor": scaling_factor}
        if use_maisi:
            _refuse_native(in_channels, stack_size, mid_attention, time_stride)
            whole = MaisiVAE(
                latent_dim=latent_dim,
                num_channels=[base_channels * width for width in MAISI_WIDTHS],
                num_res_blocks=[num_res_blocks] * len(MAISI_WIDTHS),
                norm_num_groups=num_groups,
                likelihood=likelihood,
                value_range=(0.0, 1.0) if value_range is None else value_range,
            )
            parts = (whole.encoder, whole.posterior, whole.decoder, whole.likelihood_head, whole.prior)
            super().__init__(*parts, stack_size=maisi_stack_size, value_range=whole.value_range, **stacks)
            self.statistics = dict(whole.statistics)
            self._stack_argument = "maisi_stack_size"
            if maisi_stack_size is not None:
                log.info("Temporal stacking: %d frames per 3D volume", maisi_stack_size)
            if maisi_checkpoint is not None:
                self._load_maisi_vae(maisi_checkpoint, partial=maisi_partial)
            return
        if maisi_checkpoint is not None or maisi_partial:
            raise ValueError(f"got maisi_checkpoint={maisi_checkpoint!r} without use_maisi=True; set both")
        head, value_range = likelihood_and_range(likelihood, value_range)
        channels = [base_channels * width for width in NATIVE_WIDTHS]
        shared: dict[str, Any] = {
            "num_res_blocks": num_res_blocks,
            "num_groups": num_groups,
            "mid_attention": mid_attention,
        }
        encoder = KLEncoder(in_channels, 2 * latent_dim, channels, **shared)
        decoder = KLDecoder(latent_dim, head.num_parameters(in_channels), channels[::-1], **shared)
        super().__init__(
            LiftedNetwork(encoder, time_stride=time_stride),
            GaussianPosterior(2 * latent_dim, latent_dim, dim=3),
            LiftedNetwork(decoder, time_stride=time_stride),
            head,
            StandardNormal(),
            stack_size=stack_size,
            value_range=value_range,
            **stacks,
        )

    def config_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments; the weights are saved with the model, so no checkpoint is named."""
        return super().config_arguments() | {"maisi_checkpoint": None, "maisi_partial": False}

    def _load_maisi_vae(self, path: str | Path, *, partial: bool = False) -> None:
        # Reading files of others is not this package's work, and few models of video start from one.
        from omnivae.hub import load_tensors, read_checkpoint

        if not Path(path).exists():
            raise FileNotFoundError(
                f"no MAISI checkpoint at {path}: give maisi_checkpoint the path of the downloaded autoencoder.pt"
            )
        tensors = read_checkpoint(path).tensors
        found = load_tensors(self, from_monai(tensors), source=str(path), partial=partial)
        log.info("%s: %s", path, found.summary().splitlines()[0])


def _refuse_native(in_channels: int, stack_size: int | None, mid_attention: bool, time_stride: int) -> None:
    """Raise ``ValueError`` for arguments that MAISI's networks would ignore."""
    if in_channels != 1:
        raise ValueError(
            f"got in_channels={in_channels} with use_maisi=True; MAISI's networks take one channel: set in_channels=1, and "
            "colour clips are averaged to grey"
        )
    for name, value, default in (
        ("stack_size", stack_size, None),
        ("mid_attention", mid_attention, False),
        ("time_stride", time_stride, 1),
    ):
        if value != default:
            remedy = "set maisi_stack_size" if name == "stack_size" else "leave it out"
            raise ValueError(f"got {name}={value} with use_maisi=True; that is for the native networks: {remedy}")
