"""Volumes: MAISI's autoencoder, with the configuration, the intensities and the licences of what NVIDIA released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from omnivae.component import to_config
from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.maisi import MaisiDecoder, MaisiEncoder, checked_levels
from omnivae.posteriors import QuantConvPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import Arguments, member

#: What MAISI's training did with intensities, by modality; stored with a model as ``statistics["intensity"]``.
INTENSITY: Mapping[str, Mapping[str, Any]] = {
    "CT": {"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS", "clip": True},
    "MR": {"unit": "arbitrary", "percentiles": [0, 99.5], "range": [0, 1], "orientation": "RAS", "clip": False},
}

#: Arguments of the mask autoencoder: eight binary channels in, logits of 125 structures and background out. Its weights
#: fit trilinear interpolation as well; only ``use_convtranspose`` tells which it was trained with.
MAISI_MASK: Arguments = {
    "in_channels": 8,
    "out_channels": 125,
    "num_channels": (32, 64, 128),
    "num_res_blocks": (1, 2, 2),
    "use_convtranspose": True,
    "modality": None,
}

#: Licences of the released weights by the names of their files; the code is Apache-2.0.
MAISI_LICENCES: Mapping[str, str] = {
    "autoencoder_epoch273.pt": "NSCLv1: research and evaluation only",
    "autoencoder.pt": "NSCLv1: research and evaluation only",
    "autoencoder_v1.pt": "NVIDIA Open Model License (NV-Generate-CT)",
    "autoencoder_v2.pt": "NVIDIA non-commercial license (NV-Generate-MR)",
}

#: Mean absolute error and a trace of KL, both as MAISI weighs them for one volume.
MAISI_LOSSES: Mapping[str, Arguments] = {"l1": {"per_element": True}, "kl": {"weight": 1e-7}}


@member(
    name="maisi_vae",
    paper="Guo et al., MAISI: Medical AI for Synthetic Imaging (2024)",
    equation="|x - x̂| + β KL(q(z|x) ‖ N(0, I)), β = 1e-7",
    purpose="CT and MR volumes of any size at a quarter of each edge; NVIDIA's weights fit",
    losses=MAISI_LOSSES,
)
class MaisiVAE(VAE):
    """MAISI's autoencoder, by default as released: 20,944,897 parameters, 4x4x4 (Guo et al., MAISI, 2024).

    The function is that of MONAI's ``AutoencoderKlMaisi``, whose arguments have the same names here;
    :func:`~omnivae.networks.maisi.from_monai` renames its weights. Volumes of any size and any depth from one slice on go
    through: they are padded to multiples of four by repeating the last slice, and cropped back.

    Args:
        in_channels: channels of the volume.
        out_channels: channels of the reconstruction; ``in_channels`` by default.
        latent_dim: channels of z (MONAI's ``latent_channels``).
        num_channels: width of each stage, shallowest first; the stride is ``2 ** (len(num_channels) - 1)``.
        num_res_blocks: residual blocks of each stage.
        norm_num_groups: groups of each group normalisation; divides every width.
        norm_eps: added to each variance.
        attention_levels: whether attention follows each residual block of a stage; nowhere by default.
        with_encoder_nonlocal_attn: attention between all positions at the end of the encoder.
        with_decoder_nonlocal_attn: attention between all positions at the start of the decoder.
        include_fc: whether a linear layer follows each attention.
        use_combined_linear: whether one linear layer makes queries, keys and values.
        use_convtranspose: double sizes by transposed convolutions instead of trilinear interpolation.
        num_splits: slabs that each convolution runs in: the same numbers with less workspace on a GPU. Where the size does
            not allow it, the error says which numbers it allows.
        dim_split: axis that is cut, 0 to 2.
        norm_float16: round normalised features to half precision, as the released model was trained; under autocast on CUDA.
        modality: "CT" for Hounsfield units from -1000 to 1000, "MR" for percentiles 0 to 99.5, each on [0, 1]; ``None`` for
            no statement. Kept in ``statistics["intensity"]``.
        likelihood: p(x|z), a name (see ``recipes.common.LIKELIHOODS``) or an object; Laplace with scale 1 by default, whose
            NLL is the L1 loss up to a constant.
        value_range: lowest and highest voxel value.

    Raises:
        ValueError: for stages that do not agree, or an unknown modality.

    Example:
        >>> import torch
        >>> model = MaisiVAE(num_channels=(8, 16), num_res_blocks=(1, 1), norm_num_groups=4).eval()
        >>> reconstruction, mean, logvar = model(torch.zeros(1, 1, 5, 8, 7))
        >>> reconstruction.shape, mean.shape
        (torch.Size([1, 1, 5, 8, 7]), torch.Size([1, 4, 3, 4, 4]))
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        latent_dim: int = 4,
        *,
        num_channels: Sequence[int] = (64, 128, 256),
        num_res_blocks: Sequence[int] = (2, 2, 2),
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        attention_levels: Sequence[bool] | None = None,
        with_encoder_nonlocal_attn: bool = False,
        with_decoder_nonlocal_attn: bool = False,
        include_fc: bool = False,
        use_combined_linear: bool = False,
        use_convtranspose: bool = False,
        num_splits: int = 1,
        dim_split: int = 0,
        norm_float16: bool = False,
        modality: Literal["CT", "MR"] | None = "CT",
        likelihood: str | Likelihood = "laplace_fixed",
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        if modality is not None and modality not in INTENSITY:
            raise ValueError(f"got modality={modality!r}; expected 'CT', 'MR' or None")
        head, value_range = likelihood_and_range(likelihood, value_range)
        levels = checked_levels(num_channels, num_res_blocks, attention_levels)
        shared: dict[str, Any] = {
            "norm_num_groups": norm_num_groups,
            "norm_eps": norm_eps,
            "include_fc": include_fc,
            "use_combined_linear": use_combined_linear,
            "num_splits": num_splits,
            "dim_split": dim_split,
            "norm_float16": norm_float16,
        }
        super().__init__(
            MaisiEncoder(
                in_channels,
                latent_dim,
                num_channels,
                num_res_blocks,
                attention_levels=levels,
                with_nonlocal_attn=with_encoder_nonlocal_attn,
                **shared,
            ),
            QuantConvPosterior(latent_dim, latent_dim),
            MaisiDecoder(
                latent_dim,
                head.num_parameters(in_channels if out_channels is None else out_channels),
                tuple(num_channels)[::-1],
                tuple(num_res_blocks)[::-1],
                attention_levels=levels[::-1],
                with_nonlocal_attn=with_decoder_nonlocal_attn,
                use_convtranspose=use_convtranspose,
                **shared,
            ),
            head,
            StandardNormal(),
            value_range=value_range,
        )
        self._resolved = {"likelihood": to_config(head), "value_range": list(value_range)}
        if modality is not None:
            self.statistics = {"intensity": dict(INTENSITY[modality])}

    def config_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments, the likelihood spelt out."""
        return super().config_arguments() | self._resolved
