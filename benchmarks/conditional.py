"""Do conditional models draw what they are told? Judged by a classifier that never saw one of their images.

``python -m benchmarks --only conditional --data MNIST --judge RUN [M2_RUN]`` trains a small convolutional classifier on real MNIST
(its own test accuracy is stated), lets it judge a conditional run's samples of each class, and, of a run of ``m2_vae``, measures
the test accuracy of its classifier beside that of the same network trained on the labelled images alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnivae import VAE, DataConfig, load_data
from omnivae.jobs.conditions import every_class, needed_condition
from omnivae.jobs.run_data import run_data
from omnivae.models import SemiSupervisedVAE
from omnivae.networks import MLPEncoder

RESULTS = Path(__file__).parent / "results" / "conditional.json"
#: Samples of each class.
SAMPLES = 100


def run(data: str, runs: list[Path], *, seed: int = 0) -> dict[str, Any]:
    """Judge runs, print tables, and write ``benchmarks/results/conditional.json``.

    Args:
        data: MNIST's folder.
        runs: of conditional models and of M2.
        seed: of the classifiers and the samples.

    Returns:
        What is written.
    """
    splits = load_data(DataConfig(data), value_range=(0.0, 1.0))
    test = _arrays(splits.test)
    judge = _fit(_judge(), _arrays(splits.train), epochs=3, seed=seed)
    found: dict[str, Any] = {"judge's accuracy on 10,000 real test images": _accuracy(judge, *test)}
    print(f"the judge is right on {next(iter(found.values())):.2%} of the real test images", flush=True)
    for place in runs:
        model = VAE.from_pretrained(place)
        found[place.name] = judged(model, judge, seed=seed)
        if isinstance(model, SemiSupervisedVAE):
            found[place.name] |= _few_labels(model, place, test, seed=seed)
        print(f"{place.name}: " + json.dumps(found[place.name]), flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return found


@torch.no_grad()
def judged(model: VAE, judge: nn.Module, *, seed: int) -> dict[str, Any]:
    """Return the share of samples that the judge takes for what they were meant to be, of each class and of all.

    Args:
        model: conditional on a class, in [0, 1].
        judge: from images to logits, of the same classes in the same order.
        seed: of the draws.
    """
    known = needed_condition(model)
    assert known is not None, "only conditional models can be told what to draw"
    names, conditions = every_class(known)
    shares = {}
    for number, (name, one) in enumerate(zip(names, conditions, strict=True)):
        generator = torch.Generator().manual_seed(seed + number)
        x = model.eval().sample(SAMPLES, cond=one.expand(SAMPLES, -1), generator=generator)
        shares[name] = float((judge(x).argmax(1) == number).float().mean())
    return {"samples drawn as told": shares, "all": sum(shares.values()) / len(shares)}


def _few_labels(model: SemiSupervisedVAE, place: Path, test: tuple[Tensor, Tensor], *, seed: int) -> dict[str, Any]:
    """Return M2's test accuracy, and that of its classifier's network trained on the labelled images alone."""
    config = run_data(place)
    assert config is not None, "a run knows its data"
    # Grey, and drawn anew at every step where the run's images were binarised so: both classifiers see the same.
    train = load_data(replace(config, binarize="none"), value_range=model.value_range).train
    binarised = config.binarize == "stochastic"
    assert train.known is not None, "M2 was trained on few labels"
    x, y = _arrays(torch.utils.data.Subset(train, train.known.nonzero()[0].tolist()))
    encoder = model.classifier
    assert isinstance(encoder, MLPEncoder)
    widths = [layer.out_features for layer in encoder.layers if isinstance(layer, nn.Linear)]
    scores = []
    for repeat in range(3):
        torch.manual_seed(seed + repeat)
        body = MLPEncoder(encoder.in_channels, encoder.image_size, widths, activation="softplus")
        alone = nn.Sequential(body, nn.Linear(widths[-1], model.num_classes))
        scores.append(_accuracy(_fit(alone, (x, y), epochs=400, seed=seed + repeat, binarised=binarised), *test))
    with torch.no_grad():
        own = float((model.classify(test[0]).argmax(1) == test[1]).float().mean())
    return {"labels": len(y), "test accuracy of M2": own, "test accuracy of its network on the labels alone": scores}


def _judge() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 48, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(48 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def _arrays(dataset: Any) -> tuple[Tensor, Tensor]:
    items = [dataset[i] for i in range(len(dataset))]
    return torch.stack([item["x"] for item in items]), torch.stack([item["label"] for item in items])


def _fit(
    network: nn.Module, data: tuple[Tensor, Tensor], *, epochs: int, seed: int, binarised: bool = False
) -> nn.Module:
    torch.manual_seed(seed)
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]
    x, y = data
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            shown = torch.bernoulli(x[part]) if binarised else x[part]
            F.cross_entropy(network(shown), y[part]).backward()
            optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(torch.cat([network(part).argmax(1) for part in x.split(500)]).eq(y).float().mean())
