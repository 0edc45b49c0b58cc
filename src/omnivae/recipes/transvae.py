"""TransVAE and the baselines of equal size that it is compared with: the published tables, and nothing else.

"A Hybrid Paradigm for Vision Autoencoders: Unifying CNNs and Transformers for Learning Efficiency and Scalability" (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from omnivae.component import suggestion, to_config
from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.transvae import BlockNorm, FFNKind, StemKind, TransVAEDecoder, TransVAEEncoder
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import RECONSTRUCTION, member

#: (variant, compression ratio) -> (depths, base_dims).
TRANSVAE_VARIANTS: dict[tuple[str, int], tuple[tuple[int, ...], tuple[int, ...]]] = {
    ("tiny", 16): ((3, 3, 3, 3, 3), (128, 128, 256, 256, 512)),
    ("base", 16): ((3, 3, 3, 3, 3), (128, 128, 256, 512, 1024)),
    ("large", 16): ((3, 3, 3, 4, 6), (192, 192, 384, 768, 1536)),
    ("huge", 16): ((3, 3, 4, 6, 8), (256, 256, 512, 1024, 2048)),
    ("giant", 16): ((3, 3, 4, 8, 9), (320, 320, 640, 1280, 2560)),
    ("large", 8): ((3, 3, 6, 8), (192, 384, 768, 1536)),
}


@member(
    name="transvae",
    paper="A Hybrid Paradigm for Vision Autoencoders: Unifying CNNs and Transformers (2025)",
    equation="|x - x̂| + β KL(q(z|x) ‖ N(0, I)), β = 1e-6; convolution below, attention with rotary positions above",
    purpose="tokenizers for latent diffusion; photographs of any size",
    losses=RECONSTRUCTION,
)
class TransVAE(VAE):
    """TransVAE: convolutional stages, then transformer stages with rotary positions and convolutional feed-forward networks.

    Args:
        variant: "tiny" (44M parameters), "base" (140M), "large" (545M), "huge" (1.3B) or "giant" (2.3B).
        compression_ratio: 16, or 8 for "large" (719M).
        latent_dim: channels of z.
        input_resolution: image size that it is trained for; it runs at any size.
        depths: blocks of each stage, instead of the variant's.
        base_dims: width of each stage, instead of the variant's.
        mlp_ratio: hidden channels of the feed-forward network over channels.
        head_dim: channels of an attention head.
        use_rope: rotary positions in attention.
        use_conv_ffn: a full 3x3 convolution in each feed-forward network.
        use_dc_path: parameter-free shortcut around each resampling.
        use_absolute_positions: learned position tables (what the paper's rotary positions are compared with).
        ffn: "standard", "dwconv" or "fullconv", instead of what ``use_conv_ffn`` says.
        stem: "single-conv" or "sequential-conv".
        norm: "rms" or "layer".
        num_conv_stages: leading convolutional stages; two by default. A single stage (``depths=[12]``) has none.
        in_channels: image channels.
        likelihood: p(x|z), a name (see ``recipes.common.LIKELIHOODS``) or an object; Laplace with scale 1 by default, whose
            NLL is the L1 loss up to a constant.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Raises:
        ValueError: for an unknown variant, or a compression ratio that the variant lacks.

    Example:
        >>> import torch
        >>> model = TransVAE("tiny", depths=[1, 1, 1], base_dims=[16, 16, 32], compression_ratio=4, head_dim=16)
        >>> reconstruction, mean, logvar = model(torch.zeros(1, 3, 20, 20))
        >>> reconstruction.shape, mean.shape
        (torch.Size([1, 3, 20, 20]), torch.Size([1, 32, 5, 5]))
    """

    def __init__(
        self,
        variant: str = "large",
        compression_ratio: int = 16,
        latent_dim: int = 32,
        input_resolution: int = 256,
        *,
        depths: Sequence[int] | None = None,
        base_dims: Sequence[int] | None = None,
        mlp_ratio: float = 1.0,
        head_dim: int = 64,
        use_rope: bool = True,
        use_conv_ffn: bool = True,
        use_dc_path: bool = True,
        use_absolute_positions: bool = False,
        ffn: FFNKind | None = None,
        stem: StemKind = "single-conv",
        norm: BlockNorm = "rms",
        num_conv_stages: int | None = None,
        in_channels: int = 3,
        likelihood: str | Likelihood = "laplace_fixed",
        value_range: Sequence[float] | None = None,
    ) -> None:
        depths, base_dims = resolve_variant(variant, compression_ratio, depths, base_dims)
        if ffn is not None and not use_conv_ffn and ffn != "standard":
            raise ValueError(f"got use_conv_ffn=False and ffn={ffn!r}; leave one of them out")
        head, value_range = likelihood_and_range(likelihood, value_range)
        shared: dict[str, Any] = {
            "compression_ratio": compression_ratio,
            "num_conv_stages": num_conv_stages,
            "mlp_ratio": mlp_ratio,
            "head_dim": head_dim,
            "use_rope": use_rope,
            "use_absolute_positions": use_absolute_positions,
            "ffn": ffn or ("fullconv" if use_conv_ffn else "standard"),
            "stem": stem,
            "norm": norm,
            "use_dc_path": use_dc_path,
            "input_resolution": input_resolution,
        }
        super().__init__(
            TransVAEEncoder(in_channels, base_dims, depths, **shared),
            GaussianPosterior(base_dims[-1], latent_dim, dim=2, kernel_size=3),
            TransVAEDecoder(latent_dim, head.num_parameters(in_channels), base_dims, depths, **shared),
            head,
            StandardNormal(),
            value_range=value_range,
        )
        self._resolved = {
            "depths": list(depths),
            "base_dims": list(base_dims),
            "likelihood": to_config(head),
            "value_range": list(value_range),
        }
        self.statistics = {"image_size": [input_resolution, input_resolution]}

    def config_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments, the variant's depths and widths spelt out."""
        return super().config_arguments() | self._resolved

    @classmethod
    def from_pretrained(cls, directory: Any) -> Self:
        """Load a model directory; see :meth:`VAE.from_pretrained`.

        Args:
            directory: a model directory or a run. Weights by name (``transvae-large-f16d32``) were never published.

        Returns:
            The model, in evaluation mode.
        """
        name = str(directory)
        try:
            return super().from_pretrained(directory)
        except FileNotFoundError as error:
            if name.startswith("transvae-"):
                raise FileNotFoundError(
                    f"no directory {name!r}, and no weights are published under that name; train one with "
                    "`omnivae train --config configs/transvae_large_f16d32.yaml`, or build it untrained with TransVAE(...)"
                ) from error
            raise


def resolve_variant(
    variant: str, compression_ratio: int, depths: Sequence[int] | None, base_dims: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return depths and widths: the variant's, unless given.

    Args:
        variant: name in the table.
        compression_ratio: total stride.
        depths: blocks of each stage, or ``None``.
        base_dims: width of each stage, or ``None``.

    Returns:
        depths, base_dims.

    Raises:
        ValueError: for an unknown variant, or a compression ratio that it lacks.
    """
    variants = sorted({name for name, _ in TRANSVAE_VARIANTS}, key=["tiny", "base", "large", "huge", "giant"].index)
    if variant not in variants:
        raise ValueError(
            f"unknown variant {variant!r}{suggestion(variant, variants)}; expected one of {', '.join(variants)}"
        )
    if depths is not None and base_dims is not None:
        return tuple(depths), tuple(base_dims)
    if (variant, compression_ratio) not in TRANSVAE_VARIANTS:
        have = sorted(ratio for name, ratio in TRANSVAE_VARIANTS if name == variant)
        raise ValueError(
            f"variant {variant!r} has no compression ratio {compression_ratio}; it has {', '.join(map(str, have))}: "
            "choose one of them, or give depths and base_dims"
        )
    own_depths, own_dims = TRANSVAE_VARIANTS[variant, compression_ratio]
    return tuple(depths or own_depths), tuple(base_dims or own_dims)
