"""VisCy's BetaVaeMonai: MONAI's VarAutoEncoder, with the names of VisCy's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnivae.component import to_config
from omnivae.likelihoods import Likelihood
from omnivae.models.canvas import CanvasVAE
from omnivae.networks.monai_vae import VarDecoder, VarEncoder, var_autoencoder
from omnivae.posteriors import SplitPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.beta_vae_25d import VISCY_LOSSES
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import member


@member(
    name="beta_vae_monai",
    paper="Higgins et al., beta-VAE (2017), on MONAI's VarAutoEncoder as VisCy's BetaVaeMonai",
    equation="‖x - x̂‖² + β KL(q(z|x) ‖ N(0, I)), β = 1",
    purpose="small images and volumes of a fixed size to one vector; VisCy's and MONAI's weights load as they are",
    losses=VISCY_LOSSES,
)
class BetaVaeMonai(CanvasVAE):
    """VisCy's beta-VAE around MONAI's ``VarAutoEncoder``, which is its ``model`` (Higgins et al., beta-VAE, 2017).

    The arguments up to ``norm`` are VisCy's, those up to ``bias`` MONAI's, and the names of the weights are exactly
    ``model.``. Unlike there, encoding is deterministic and evaluation reconstructs from the mean (MONAI's takes the mean plus
    one standard deviation). Needs the extra ``microscopy`` or ``medical``.

    Args:
        spatial_dims: number of spatial axes, 1 to 3.
        in_shape: channels and spatial size of the input.
        out_channels: channels of the reconstruction.
        latent_size: size of the vector.
        channels: output channels of each level.
        strides: stride of each level.
        kernel_size: kernel of the encoder; odd.
        up_kernel_size: kernel of the decoder; odd.
        num_res_units: residual units of each level; 0 for a convolution.
        use_sigmoid: end in a sigmoid; the value range is then (0, 1) by default.
        norm: MONAI's name of the normalisation.
        inter_channels: channels of the layers between encoder and decoder.
        inter_dilations: their dilations.
        num_inter_units: their residual units.
        act: MONAI's name of the activation.
        dropout: probability of dropout, or ``None``.
        bias: whether convolutions have a bias.
        match_input: resample reconstructions (linear) to the input's size, where strides do not divide it.
        likelihood: p(x|z), a name (see ``recipes.common.LIKELIHOODS``) or an object; Gaussian with scale 1 by default.
        value_range: lowest and highest value; follows the likelihood by default.

    Raises:
        ImportError: when MONAI is not installed.
        ValueError: for shapes that do not agree.

    Example:
        >>> import torch
        >>> model = BetaVaeMonai(2, (1, 8, 12), 1, 4, (4, 8), (2, 2)).eval()
        >>> output = model(torch.zeros(1, 1, 8, 12))
        >>> output.recon_x.shape, output.mean.shape
        (torch.Size([1, 1, 8, 12]), torch.Size([1, 4]))
    """

    def __init__(
        self,
        spatial_dims: int,
        in_shape: Sequence[int],
        out_channels: int,
        latent_size: int,
        channels: Sequence[int],
        strides: Sequence[int],
        kernel_size: int | Sequence[int] = 3,
        up_kernel_size: int | Sequence[int] = 3,
        num_res_units: int = 0,
        use_sigmoid: bool = False,
        norm: str = "instance",
        *,
        inter_channels: Sequence[int] | None = None,
        inter_dilations: Sequence[int] | None = None,
        num_inter_units: int = 2,
        act: str = "PRELU",
        dropout: float | None = None,
        bias: bool = True,
        match_input: bool = False,
        likelihood: str | Likelihood = "gaussian_fixed",
        value_range: Sequence[float] | None = None,
    ) -> None:
        if len(in_shape) != 1 + spatial_dims or min(in_shape) < 1:
            raise ValueError(
                f"got in_shape={tuple(in_shape)}; expected channels and {spatial_dims} sizes, each at least 1"
            )
        if len(channels) != len(strides):
            raise ValueError(
                f"got {len(channels)} channels and {len(strides)} strides; expected one of each for a level"
            )
        head, value_range = likelihood_and_range(
            likelihood, (0.0, 1.0) if use_sigmoid and value_range is None else value_range
        )
        if use_sigmoid and head.num_parameters(1) == 1 and head.unit_range:
            raise ValueError(
                f"got use_sigmoid=True and a {type(head).__name__}, which takes logits: set use_sigmoid=False (equal weights)"
            )
        size = tuple(int(n) for n in in_shape[1:])
        model = var_autoencoder(
            spatial_dims=spatial_dims,
            in_shape=tuple(in_shape),
            out_channels=head.num_parameters(out_channels),
            latent_size=latent_size,
            channels=tuple(channels),
            strides=tuple(strides),
            kernel_size=kernel_size,
            up_kernel_size=up_kernel_size,
            num_res_units=num_res_units,
            use_sigmoid=use_sigmoid,
            norm=norm,
            inter_channels=None if inter_channels is None else list(inter_channels),
            inter_dilations=None if inter_dilations is None else list(inter_dilations),
            num_inter_units=num_inter_units,
            act=act,
            dropout=dropout,
            bias=bias,
        )
        decoder = VarDecoder(model, size if match_input else None)
        super().__init__(
            VarEncoder(model),
            SplitPosterior(latent_size),
            decoder,
            head,
            StandardNormal(),
            value_range=value_range,
            image_size=size,
            output_size=size if match_input else decoder.natural_size,
        )
        self.model = model
        self._resolved = {"likelihood": to_config(head), "value_range": list(value_range)}

    def config_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments, the likelihood spelt out."""
        return super().config_arguments() | self._resolved
