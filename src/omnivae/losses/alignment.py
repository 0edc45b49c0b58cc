"""VF: alignment of the latents with the features of a vision foundation model.

Yao et al., Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models (VA-VAE), CVPR 2025
(https://arxiv.org/abs/2501.01423).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnivae.losses.adaptive import AdaptiveLoss, pixel_parameters
from omnivae.losses.base import Refusal, Weight
from omnivae.losses.frozen import FrozenFeatures, as_rgb, load_exactly, read_weights
from omnivae.types import Batch, VAEOutput


class VF(AdaptiveLoss):
    """Marginal cosine and marginal distance-matrix similarity between projected latents and frozen features.

    A bias-free linear map, trained with the model, takes each position of z to the feature space. The images are resized
    so that the feature network has one patch for each position of z (16 x 16 for TransVAE f16 at 256 pixels).

    Args:
        weight: factor in the total, multiplied by the balance where ``adaptive`` is set.
        weights_path: the feature network's state dict: timm's (``model.safetensors`` of
            ``timm/vit_base_patch14_dinov2.lvd142m``) or DINOv2's own (``dinov2_vitb14_pretrain.pth``). Nothing is downloaded.
        model: name of a timm vision transformer.
        margin_cosine: m1 in [0, 1]: a position costs nothing once its cosine similarity is above ``1 - m1``.
        margin_distance: m2 in [0, 2]: a pair costs nothing once its two similarities differ by less.
        adaptive: balance the gradients at z with those of the reconstruction terms; ``False`` is a fixed weight.
        value_range: lowest and highest pixel value; the trainer fills in the model's where it is ``None``.

    Raises:
        ValueError: without a path, for margins out of range, and for weights of another network.
        FileNotFoundError: when there is no such file.
    """

    name = "vf"
    needs = frozenset({"pixels", "pictures", "one latent"})
    through_decoder = True
    largest = 1e8

    def __init__(
        self,
        weight: Weight = 0.1,
        weights_path: str | None = None,
        *,
        model: str = "vit_base_patch14_dinov2",
        margin_cosine: float = 0.5,
        margin_distance: float = 0.25,
        adaptive: bool = True,
        value_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(weight, adaptive)
        if not 0 <= margin_cosine <= 1:
            raise ValueError(f"got margin_cosine={margin_cosine}; expected a number in [0, 1], such as 0.5")
        if not 0 <= margin_distance <= 2:
            raise ValueError(f"got margin_distance={margin_distance}; expected a number in [0, 2], such as 0.25")
        self.margin_cosine, self.margin_distance = margin_cosine, margin_distance
        self.value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        network, self.normalisation = feature_network(model, weights_path)
        self.features = FrozenFeatures(network)
        self.projection: nn.Conv2d | None = None

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Create the projection from z to the feature space.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z.

        Raises:
            ValueError: for anything but 2-D images with a 2-D latent.
        """
        if dim != 2 or latent_axes != 2 or in_channels not in (1, 3):
            raise Refusal(
                f"the loss 'vf' aligns a 2-D latent with features of images of 1 or 3 channels; this model has {in_channels} "
                f"channels, {dim} image axes and {latent_axes} latent axes",
                ("drop 'vf'", "use a model such as transvae"),
            )
        if self.projection is None or self.projection.in_channels != latent_dim:
            self.projection = nn.Conv2d(latent_dim, int(self.features.network.num_features), 1, bias=False)  # type: ignore[arg-type]

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        if self.projection is None or self.value_range is None:
            raise ValueError(
                "vf does not know the model yet: call build(...) and give value_range, as the trainer does by itself"
            )
        z = output.z
        low, high = self.value_range
        with torch.no_grad():
            features = self.extract((batch["x"] - low) / (high - low), tuple(z.shape[2:]))
        return marginal_losses(
            self.projection(z), features, margin_cosine=self.margin_cosine, margin_distance=self.margin_distance
        ).sum()

    @torch.no_grad()
    def extract(self, images: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Return the frozen features of images, one for each cell of a grid.

        Args:
            images: on [0, 1], ``[B, 1 or 3, H, W]``.
            grid: rows and columns.

        Returns:
            ``[B, F, rows, columns]``.
        """
        net = self.features.on(images.device)
        patch: tuple[int, int] = net.patch_embed.patch_size  # type: ignore[assignment, union-attr]
        size = [n * p for n, p in zip(grid, patch, strict=True)]
        x = as_rgb(self.name, images).float()
        if list(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in self.normalisation)
        tokens = net.forward_features((x - mean) / std)[:, net.num_prefix_tokens :]  # type: ignore[operator]
        return tokens.transpose(1, 2).unflatten(2, grid)

    def rebalance(self, value: Tensor, output: VAEOutput, gradient: Tensor) -> None:
        """Set the balance from gradient norms at z.

        With a frozen encoder z has no gradient; the loss then only trains its projection and the balance stays at 1.

        Args:
            value: this loss, with its graph.
            output: the model's output.
            gradient: of the reconstruction terms with respect to the pixel parameters.
        """
        z = output.latents[0].z
        if z.requires_grad:
            pixels = pixel_parameters(self.name, output)
            (reference,) = torch.autograd.grad(pixels, z, gradient, retain_graph=True)
            (own,) = torch.autograd.grad(value, z, retain_graph=True)
            self._set_balance(reference, own)


def marginal_losses(z: Tensor, features: Tensor, *, margin_cosine: float, margin_distance: float) -> Tensor:
    """Return the two terms of the VF loss, in float32.

    Cosine: ``mean_i relu(1 - m1 - cos(z_i, f_i))`` (eq. 4 of the paper). Distance matrix:
    ``mean_ij relu(|cos(z_i, z_j) - cos(f_i, f_j)| - m2)`` over all pairs of positions of an image (eq. 5).

    Args:
        z: projected latents, ``[B, F, *S]``.
        features: frozen features, ``[B, F, *S]``.
        margin_cosine: m1.
        margin_distance: m2.

    Returns:
        Cosine and distance term, ``[2]``.

    Example:
        >>> z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # two orthogonal positions
        >>> f = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])  # two equal ones
        >>> marginal_losses(z, f, margin_cosine=0.5, margin_distance=0.25)
        tensor([0.2500, 0.3750])
    """
    with torch.autocast(z.device.type, enabled=False):
        a, b = F.normalize(z.float().flatten(2), dim=1), F.normalize(features.float().flatten(2), dim=1)
        cosine = F.relu(1.0 - margin_cosine - (a * b).sum(1)).mean()
        pairs = (a.transpose(1, 2) @ a - b.transpose(1, 2) @ b).abs()
        return torch.stack([cosine, F.relu(pairs - margin_distance).mean()])


def feature_network(
    model: str, weights_path: str | Path | None
) -> tuple[nn.Module, tuple[Sequence[float], Sequence[float]]]:
    """Return a timm vision transformer with the user's weights; it takes any size that its patches divide.

    Args:
        model: timm's name.
        weights_path: its state dict; DINOv2's own names are understood.

    Returns:
        The network, and the mean and standard deviation of its training images on [0, 1].

    Raises:
        ValueError: for a model that timm does not have or that is no vision transformer, and for weights that do not fit.
        FileNotFoundError: when there is no such file.
    """
    source = f"timm's weights of {model}" + (
        ", model.safetensors of timm/vit_base_patch14_dinov2.lvd142m" if model == "vit_base_patch14_dinov2" else ""
    )
    state = read_weights(weights_path, loss=VF.name, source=source)

    import timm
    from timm.data import resolve_model_data_config
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(model):
        near = timm.list_models("*dinov2*")
        raise ValueError(f"timm has no model {model!r}; expected a vision transformer such as {', '.join(near[:4])}")
    # Building draws random weights that are replaced at once: leave the caller's random stream where it was.
    with torch.random.fork_rng(devices=[]):
        try:
            net = timm.create_model(model, pretrained=False, num_classes=0, dynamic_img_size=True)
        except TypeError:
            net = None
    if not isinstance(net, VisionTransformer):
        raise ValueError(f"{model!r} is no plain vision transformer; expected one such as vit_base_patch14_dinov2")
    unused = ("head.", "mask_token")
    state = {name: value for name, value in state.items() if not name.startswith(unused)}
    load_exactly(net, state, path=weights_path, source=source)
    data = resolve_model_data_config(net)
    return net, (data["mean"], data["std"])
