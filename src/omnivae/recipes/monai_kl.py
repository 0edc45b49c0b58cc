"""MONAI's ``AutoencoderKL`` in 1-D, 2-D and 3-D, of which MONAI Generative's tutorials and many medical checkpoints are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.maisi import checked_levels
from omnivae.networks.monai_kl import MonaiKLDecoder, MonaiKLEncoder
from omnivae.posteriors import QuantConvPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import RECONSTRUCTION, member


@member(
    paper="Pinaya et al., Generative AI for Medical Imaging: extending the MONAI Framework (2023)",
    equation="|x - x̂| + β KL(q(z|x) ‖ N(0, I)), β = 1e-6",
    purpose="to go on with weights of MONAI's AutoencoderKL, in 1-D to 3-D",
    losses=RECONSTRUCTION,
)
def monai_kl(
    *,
    dim: int = 2,
    in_channels: int = 1,
    out_channels: int | None = None,
    latent_dim: int = 3,
    channels: Sequence[int] = (32, 64, 64, 64),
    num_res_blocks: Sequence[int] = (2, 2, 2, 2),
    attention_levels: Sequence[bool] | None = None,
    num_groups: int = 32,
    eps: float = 1e-6,
    with_encoder_nonlocal_attn: bool = True,
    with_decoder_nonlocal_attn: bool = True,
    include_fc: bool = True,
    use_combined_linear: bool = False,
    use_convtranspose: bool = False,
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] = (0.0, 1.0),
) -> VAE:
    """Return MONAI's AutoencoderKL (Pinaya et al., Generative AI for Medical Imaging, 2023).

    Args:
        dim: number of spatial axes, 1 to 3.
        in_channels: channels of the image.
        out_channels: channels of the reconstruction; ``in_channels`` by default.
        latent_dim: channels of z.
        channels: width of each stage, shallowest first; the decoder mirrors them.
        num_res_blocks: residual blocks of each stage.
        attention_levels: whether attention follows each residual block of a stage; nowhere by default.
        num_groups: groups of each group normalisation; divides every width.
        eps: added to each variance.
        with_encoder_nonlocal_attn: attention between all positions at the end of the encoder.
        with_decoder_nonlocal_attn: attention between all positions at the start of the decoder.
        include_fc: whether a linear layer follows each attention.
        use_combined_linear: whether one linear layer makes queries, keys and values.
        use_convtranspose: double sizes by transposed convolutions instead of repetition.
        likelihood: name or object; Laplace with scale 1 by default, whose NLL is the L1 loss up to a constant.
        value_range: lowest and highest pixel value.

    Returns:
        The model.

    Example:
        >>> monai_kl(channels=(8, 16), num_res_blocks=(1, 1), num_groups=4).encoder.stride
        2
    """
    head, value_range = likelihood_and_range(likelihood, value_range)
    levels = checked_levels(channels, num_res_blocks, attention_levels)
    shared: dict[str, Any] = {"dim": dim, "num_groups": num_groups, "eps": eps}
    shared |= {"include_fc": include_fc, "use_combined_linear": use_combined_linear}
    inward = shared | {"attention_levels": levels, "with_nonlocal_attn": with_encoder_nonlocal_attn}
    back = shared | {"attention_levels": levels[::-1], "with_nonlocal_attn": with_decoder_nonlocal_attn}
    encoder = MonaiKLEncoder(in_channels, latent_dim, channels, num_res_blocks, **inward)
    decoder = MonaiKLDecoder(
        latent_dim,
        head.num_parameters(in_channels if out_channels is None else out_channels),
        tuple(channels)[::-1],
        tuple(num_res_blocks)[::-1],
        upsample="transpose" if use_convtranspose else "nearest",
        **back,
    )
    posterior = QuantConvPosterior(latent_dim, latent_dim, dim)
    return VAE(encoder, posterior, decoder, head, StandardNormal(), value_range=value_range)
