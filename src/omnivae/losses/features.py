"""Deep feature consistency: images compared in the features of any frozen network of timm.

Hou et al., Deep Feature Consistent Variational Autoencoder, 2017 (https://arxiv.org/abs/1610.00291).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from omnivae.losses.base import Loss, Weight
from omnivae.losses.frozen import FrozenFeatures, as_rgb, compared_images, load_exactly, read_weights
from omnivae.types import Batch, VAEOutput


class DFC(Loss):
    """``sum_l 1/2 mean (f_l(x) - f_l(x̂))^2`` over feature maps of a frozen network (section 3.2), mean over the batch.

    Args:
        weight: factor in the total. The paper's β is 0.5 for a network that takes pixels on [0, 255]; one that takes
            images of variance 1, as timm's, has features about 57 times smaller, and 0.5 · 57² is about 1600.
        weights_path: timm's weights of the network; nothing is downloaded.
        model: name of a timm network with feature maps; the paper's is VGG-19.
        stages: feature maps that are compared, shallowest first; the paper's best are the first three.
        value_range: lowest and highest pixel value; the trainer fills in the model's where it is ``None``.

    Raises:
        ValueError: without a path, for a network that timm does not have, stages that it does not have, and weights of another.
        FileNotFoundError: when there is no such file.
    """

    name = "dfc"
    needs = frozenset({"pixels", "pictures"})

    def __init__(
        self,
        weight: Weight = 1600.0,
        weights_path: str | None = None,
        *,
        model: str = "vgg19",
        stages: Sequence[int] = (0, 1, 2),
        value_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(weight)
        self.value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        network, (mean, std) = staged_network(model, weights_path, stages)
        self.features = FrozenFeatures(network)
        self.normalisation = (tuple(mean), tuple(std))

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        reconstruction, target = compared_images(self.name, output, batch)
        if self.value_range is None:
            raise ValueError("dfc needs to know the value range: build it with value_range=(-1, 1) or (0, 1)")
        with torch.no_grad():
            theirs = self._maps(target)
        ours = self._maps(reconstruction)
        return torch.stack(
            [0.5 * (a.float() - b.float()).square().mean() for a, b in zip(ours, theirs, strict=True)]
        ).sum()

    def _maps(self, x: Tensor) -> list[Tensor]:
        assert self.value_range is not None
        low, high = self.value_range
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in self.normalisation)
        unit = (as_rgb(self.name, x) - low) / (high - low)
        return self.features((unit - mean) / std)


def staged_network(
    model: str, weights_path: str | Path | None, stages: Sequence[int]
) -> tuple[nn.Module, tuple[Sequence[float], Sequence[float]]]:
    """Return a timm network that returns feature maps, with the user's weights.

    Args:
        model: timm's name.
        weights_path: its state dict.
        stages: which feature maps.

    Returns:
        The network, and the mean and standard deviation of its training images on [0, 1].

    Raises:
        ValueError: for a model without such feature maps, and for weights that do not fit.
        FileNotFoundError: when there is no such file.
    """
    source = f"timm's weights of {model}"
    state = read_weights(weights_path, loss=DFC.name, source=source)

    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}; expected one with feature maps, such as vgg19 or resnet18")
    # Building draws random weights that are replaced at once: leave the caller's random stream where it was.
    with torch.random.fork_rng(devices=[]):
        try:
            net = timm.create_model(model, pretrained=False, features_only=True, out_indices=tuple(stages))
        except (RuntimeError, AssertionError, IndexError, ValueError) as error:
            raise ValueError(
                f"{model!r} has no feature maps {list(stages)} ({error}); lower losses.dfc.stages"
            ) from error
    # Layers above the deepest stage, and the classifier, are not part of the network.
    own = {name.replace("_", ".", 1) if name.startswith("features_") else name: name for name in net.state_dict()}
    picked = {own.get(name, name): value for name, value in state.items() if own.get(name, name) in set(own.values())}
    load_exactly(net, picked, path=weights_path, source=source)
    data = resolve_model_data_config(net)
    return net, (data["mean"], data["std"])
