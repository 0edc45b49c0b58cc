"""VisCy's BetaVae25D: microscopy stacks to one vector, with the names of VisCy's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from omnivae.component import to_config
from omnivae.likelihoods import Likelihood
from omnivae.models.canvas import CanvasVAE
from omnivae.networks.beta_vae_25d import MomentsEncoder, VaeDecoder, VaeEncoder, VaeUpStage
from omnivae.networks.depth import UnitNorm, UpsampleMode
from omnivae.posteriors import SplitPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import Arguments, member

__all__ = ["VISCY_LOSSES", "BetaVae25D", "VaeDecoder", "VaeEncoder", "VaeUpStage"]

#: What VisCy minimises: squared error summed over the stack, KL summed over the vector, means over the batch.
VISCY_LOSSES: dict[str, Arguments] = {"mse": {}, "kl": {}}


@member(
    name="beta_vae_25d",
    paper="Higgins et al., beta-VAE (2017), on stacks of slices as VisCy's BetaVae25D",
    equation="‖x - x̂‖² + β KL(q(z|x) ‖ N(0, I)), β = 1; a timm backbone over depth folded into channels",
    purpose="microscopy: thin stacks of a fixed size to one vector; VisCy's weights load as they are",
    losses=VISCY_LOSSES,
)
class BetaVae25D(CanvasVAE):
    """VisCy's 2.5-D beta-VAE: a stack of slices to one vector and back (Higgins et al., beta-VAE, 2017).

    The arguments up to ``upsample_pre_conv`` are VisCy's, and so are the names of the weights: exactly ``encoder.`` and
    ``decoder.``. Unlike there, encoding is deterministic, evaluation reconstructs from the mean, and inputs that are not
    square come back not square.

    Args:
        backbone: a network of timm of the resnet or convnext family, such as "resnet50" or "convnext_tiny".
        in_channels: channels of the stack.
        in_stack_depth: slices of the stack.
        out_stack_depth: slices of the reconstruction.
        latent_dim: size of the vector.
        input_spatial_size: height and width; multiples of 64 (resnet) or 32 (convnext) with a stem stride of 4.
        stem_kernel_size: kernel of the stem along depth, height and width.
        stem_stride: its stride.
        drop_path_rate: share of the backbone's residual branches that training leaves out.
        decoder_stages: times that the decoder doubles the size before its head enlarges it by 4. Four stages of a resnet
            and three of a convnext undo a stem stride of 4; three of a resnet return half the height and width.
        head_expansion_ratio: width of the head's convolution as a multiple of ``4 * in_channels``.
        head_pool: average pixels in the head.
        upsample_mode: "pixelshuffle" or "deconv".
        conv_blocks: residual units of each stage.
        norm_name: "batch" or "instance".
        upsample_pre_conv: "default" for a convolution before pixels are shuffled, or ``None``.
        match_input: resample what the decoder returns (trilinear) to the input's size; it adds no weights. Training needs
            it where the sizes differ.
        pretrained: start the backbone from timm's weights, which are downloaded; models loaded from files never do.
        compatible: accept what VisCy accepts in silence: borders and slices that no kernel reaches, a vector that is cut
            to fit the decoder's layout.
        likelihood: p(x|z), a name (see ``recipes.common.LIKELIHOODS``) or an object; Gaussian with scale 1 by default.
        value_range: lowest and highest value; follows the likelihood by default.

    Raises:
        ValueError: for another backbone, or sizes that do not fit together.

    Example:
        >>> import torch
        >>> model = BetaVae25D("test_convnext", 1, 4, 4, 8, (32, 64), decoder_stages=3).eval()
        >>> output = model(torch.zeros(1, 1, 4, 32, 64))
        >>> output.recon_x.shape, output.mean.shape
        (torch.Size([1, 1, 4, 32, 64]), torch.Size([1, 8]))
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        in_channels: int = 2,
        in_stack_depth: int = 16,
        out_stack_depth: int = 16,
        latent_dim: int = 1024,
        input_spatial_size: Sequence[int] = (256, 256),
        stem_kernel_size: Sequence[int] = (2, 4, 4),
        stem_stride: Sequence[int] = (2, 4, 4),
        drop_path_rate: float = 0.0,
        decoder_stages: int = 4,
        head_expansion_ratio: int = 2,
        head_pool: bool = False,
        upsample_mode: UpsampleMode = "pixelshuffle",
        conv_blocks: int = 2,
        norm_name: UnitNorm = "batch",
        upsample_pre_conv: Literal["default"] | None = None,
        *,
        match_input: bool = False,
        pretrained: bool = False,
        compatible: bool = False,
        likelihood: str | Likelihood = "gaussian_fixed",
        value_range: Sequence[float] | None = None,
    ) -> None:
        if decoder_stages < 1:
            raise ValueError(f"got decoder_stages={decoder_stages}; expected at least 1")
        head, value_range = likelihood_and_range(likelihood, value_range)
        encoder = MomentsEncoder(
            backbone,
            in_channels,
            in_stack_depth,
            latent_dim,
            input_spatial_size,
            stem_kernel_size,
            stem_stride,
            drop_path_rate,
            pretrained,
            compatible=compatible,
        )
        width = encoder.num_channels[-1]
        last = 4 * head_expansion_ratio * in_channels * (out_stack_depth + 2)
        decoder = VaeDecoder(
            (*(width // 2**i for i in range(decoder_stages)), last),
            latent_dim,
            head.num_parameters(in_channels),
            out_stack_depth,
            head_expansion_ratio,
            (2,) * decoder_stages,
            encoder.encoder_spatial_size,
            head_pool,
            upsample_mode,
            conv_blocks,
            norm_name,
            upsample_pre_conv,
            output_size=encoder.canvas if match_input else None,
            compatible=compatible,
        )
        super().__init__(
            encoder,
            SplitPosterior(latent_dim),
            decoder,
            head,
            StandardNormal(),
            value_range=value_range,
            image_size=encoder.canvas,
            output_size=encoder.canvas if match_input else decoder.natural_size,
        )
        self._resolved = {"likelihood": to_config(head), "value_range": list(value_range), "pretrained": False}

    def config_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments; a file of this model holds the backbone's weights, so none are downloaded."""
        return super().config_arguments() | self._resolved
