"""LPIPS: distance between images in the features of a classification network.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018
(https://arxiv.org/abs/1801.03924). The linear heads ship with torchmetrics; the backbone's weights are the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from omnivae.losses.base import Loss, Weight
from omnivae.losses.frozen import FrozenFeatures, as_rgb, compared_images, load_exactly, read_weights
from omnivae.types import Batch, VAEOutput

Backbone = Literal["vgg", "alex"]

#: Backbone -> (torchvision's file, least height and width that its five stages take).
BACKBONES: dict[str, tuple[str, int]] = {
    "vgg": ("torchvision's vgg16-397923af.pth", 16),
    "alex": ("torchvision's alexnet-owt-7be5be79.pth", 31),
}


class LPIPS(Loss):
    """Learned perceptual image patch similarity: one number an image, mean over the batch.

    ``sum_l mean_hw w_l · (f_l(x) - f_l(y))^2`` with channel-normalised features ``f_l`` (eq. 1 of the paper). Grey images are
    repeated to three channels. Where channels are no colours (two, four and more), each is taken for a grey image of its own and
    the distance is the mean over channels: a batch costs C times as much.

    Of volumes it sees slices, because there is no network of volumes that people agree on: a share of the slices along each axis,
    drawn anew at each training step and evenly spaced otherwise; the loss is the sum over axes of the mean over slices, as in
    MONAI's ``PerceptualLoss(is_fake_3d=True)``, whose share of 0.2 and weight of 0.3 MAISI was trained with.

    Args:
        weight: factor in the total.
        weights_path: torchvision's weights of the backbone (``vgg16-397923af.pth``, ``alexnet-owt-7be5be79.pth``), or the
            same with the classifier left out. Nothing is downloaded.
        network: "vgg", the usual choice for training, or "alex".
        value_range: lowest and highest pixel value; the trainer fills in the model's where it is ``None``.
        slices: of volumes, the share of the slices along an axis that is looked at, in (0, 1].
        axes: of volumes, the axes along which slices are taken, of 0 to 2. ``[0]`` looks at the frames of a video.

    Raises:
        ValueError: without a path, for weights of another network, and for an option out of range.
        FileNotFoundError: when there is no such file.
    """

    name = "lpips"
    needs = frozenset({"pixels", "planes"})

    def __init__(
        self,
        weight: Weight = 1.0,
        weights_path: str | None = None,
        *,
        network: Backbone = "vgg",
        value_range: Sequence[float] | None = None,
        slices: float = 0.2,
        axes: Sequence[int] = (0, 1, 2),
    ) -> None:
        super().__init__(weight)
        if not 0 < slices <= 1:
            raise ValueError(f"got slices={slices}; expected a share of the slices of a volume in (0, 1]")
        if not axes or not set(axes) <= {0, 1, 2}:
            raise ValueError(f"got axes={tuple(axes)}; expected some of 0, 1 and 2")
        self.slices, self.axes = slices, tuple(dict.fromkeys(axes))
        if network not in BACKBONES:
            raise ValueError(f"got network={network!r}; expected one of {', '.join(BACKBONES)}")
        self.network = network
        self.value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        self.features = FrozenFeatures(lpips_network(network, weights_path))
        self.least_size = BACKBONES[network][1]

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        self.smaller = "leave axes out of losses.lpips.axes" if dim == 3 else ""

    def seen_size(self, size: Sequence[int]) -> Sequence[int]:
        if len(size) != 3:
            return size
        return [n for axis, n in enumerate(size) if any(axis != along for along in self.axes)]

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        reconstruction, target = compared_images(self.name, output, batch)
        if self.value_range is None:
            raise ValueError("lpips needs to know the value range: build it with value_range=(-1, 1) or (0, 1)")
        if reconstruction.ndim != 5:
            return self._distance(reconstruction, target)
        return torch.stack([self._of_slices(reconstruction, target, axis) for axis in self.axes]).sum()

    def _of_slices(self, reconstruction: Tensor, target: Tensor, axis: int) -> Tensor:
        """Return the mean over some slices of a volume along one axis."""
        length = reconstruction.shape[2 + axis]
        count = max(1, round(self.slices * length))
        spread = ((torch.arange(count) + 0.5) * length / count).long()
        chosen = torch.randperm(length)[:count] if self.training else spread
        ours, theirs = (
            x.index_select(2 + axis, chosen.to(x.device)).movedim(2 + axis, 1).flatten(0, 1)
            for x in (reconstruction, target)
        )
        return self._distance(ours, theirs, axis)

    def _distance(self, reconstruction: Tensor, target: Tensor, axis: int | None = None) -> Tensor:
        """Return the mean distance of images ``[B, C, H, W]``, slices along an axis of volumes."""
        assert self.value_range is not None
        least = BACKBONES[self.network][1]
        if min(reconstruction.shape[2:]) < least:
            what, mend = "images", "resize them (data.image_size)"
            if axis is not None:
                what = f"slices along axis {axis}"
                mend = f"leave axis {axis} out of losses.lpips.axes {list(self.axes)}, take larger patches"
            raise ValueError(
                f"got {what} of {'x'.join(map(str, reconstruction.shape[2:]))}; lpips with {self.network!r} needs at least "
                f"{least}x{least}: {mend}, or add --losses.lpips.weight 0 to train without it"
            )
        low, high = self.value_range
        net = self.features.on(reconstruction.device)
        with torch.no_grad():
            theirs = _stages(net, (as_rgb(self.name, _apart(target)) - low) * (2 / (high - low)) - 1)
        ours = _stages(net, (as_rgb(self.name, _apart(reconstruction)) - low) * (2 / (high - low)) - 1)
        # Differences of nearly equal features: in float32 whatever the backbone ran in.
        with torch.autocast(reconstruction.device.type, enabled=False):
            distances = [
                head((_unit(a) - _unit(b)).square()).mean((1, 2, 3))
                for head, a, b in zip(net.lins, ours, theirs, strict=True)  # type: ignore[arg-type]
            ]
        return torch.stack(distances).sum(0).mean()


def lpips_network(network: Backbone, weights_path: str | Path | None) -> nn.Module:
    """Return torchmetrics' LPIPS network with the user's backbone weights and the published linear heads.

    Args:
        network: "vgg" or "alex".
        weights_path: torchvision's state dict of the backbone.

    Returns:
        The network, on the CPU; it takes two batches of images on [-1, 1].

    Raises:
        ValueError: without a path, and for weights of another network.
        FileNotFoundError: when there is no such file.
    """
    source = BACKBONES[network][0]
    state = read_weights(weights_path, loss=LPIPS.name, source=source)

    from torchmetrics.functional.image import lpips as reference

    # On the meta device: torchvision would otherwise fill a classifier of 120 million numbers that nobody asked for.
    with torch.device("meta"):
        net = reference._LPIPS(pretrained=False, net=network, pnet_rand=True)
    # The published layers keep torchvision's numbering: "slice3.10.weight" is "features.10.weight".
    backbone = {f"features.{name.split('.', 1)[1]}": name for name in net.net.state_dict()}
    features = {backbone.get(name, name): value for name, value in state.items() if not name.startswith("classifier.")}
    load_exactly(net.net, features, path=weights_path, source=source)
    file = Path(reference.__file__).parent / "lpips_models" / f"{network}.pth"
    heads = torch.load(file, map_location="cpu", weights_only=True)
    # Each head is registered twice, as lin0 and as lins.0.
    twins = {name.replace("lin", "lins.", 1): value for name, value in heads.items()}
    backbone_state = {f"net.{name}": value for name, value in net.net.state_dict().items()}
    net.load_state_dict(heads | twins | backbone_state, assign=True)
    net.scaling_layer = reference.ScalingLayer()
    return net


def _apart(x: Tensor) -> Tensor:
    """Return each channel as an image of its own, ``[B C, 1, H, W]``, unless the channels are grey or RGB."""
    return x if x.ndim != 4 or x.shape[1] in (1, 3) else x.flatten(0, 1)[:, None]


def _stages(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return net.net(net.scaling_layer(x))  # type: ignore[operator]


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x / torch.sqrt(1e-8 + x.square().sum(1, keepdim=True))
