"""The second stage: a prior over the codes of a trained quantised model, with which it can draw images."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from omnivae.component import from_config, to_config
from omnivae.data import collate
from omnivae.files import remove_leftovers, write_atomic
from omnivae.jobs.evaluate import images_for
from omnivae.jobs.progress import progress_bar
from omnivae.losses.codes import CodeNLL
from omnivae.metrics.codes import CodeCounts
from omnivae.models import VAE
from omnivae.models.codes import CodeModel
from omnivae.models.storage import load_exactly, model_hash
from omnivae.priors import AutoregressivePrior
from omnivae.training import CHECKPOINTS, FitResult, TrainingConfig, fit
from omnivae.training.world import num_processes

log = logging.getLogger(__name__)

SETTINGS, RESULT, MODEL = "prior.json", "likelihood.json", "model"
#: Images that are encoded at once.
AT_ONCE = 32


@dataclass
class PriorConfig:
    """The transformer over the codes.

    Args:
        width: channels.
        depth: blocks.
        num_heads: attention heads; divides the width.
        dropout: share of values that are dropped in training, in [0, 1).
    """

    width: int = 256
    depth: int = 6
    num_heads: int = 8
    dropout: float = 0.1


@dataclass(frozen=True)
class CodeLikelihood:
    """How well a prior tells the codes of held-out images.

    Attributes:
        bits_per_code: of the prior, mean over images.
        low: lower end of the 95 % bootstrap interval over images.
        high: upper end.
        unigram_bits: cross-entropy under the codes' frequencies in training, Laplace-smoothed: what is known without context.
        uniform_bits: log2 of the number of codes.
        bits_per_dim: of the prior, for each image value.
        codes: of an image.
        images: held out.
    """

    bits_per_code: float
    low: float
    high: float
    unigram_bits: float
    uniform_bits: float
    bits_per_dim: float
    codes: int
    images: int

    def lines(self) -> list[str]:
        """Return the figures as sentences."""
        return [
            f"bits per code   {self.bits_per_code:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})",
            f"codes an image  {self.codes}",
            f"without context {self.unigram_bits:.3f}, uniform {self.uniform_bits:.3f}",
            f"bits per dim    {self.bits_per_dim:.4f} (of the codes; what decoding loses is not in it)",
            f"held-out images {self.images:,}",
        ]


class CodeDataset:
    """Codes, one image an item.

    Args:
        codes: ``[N, *S]`` or ``[N, *S, Q]``.
        keys: name of each image.
    """

    def __init__(self, codes: Tensor, keys: list[str]) -> None:
        self.codes, self.keys = codes, keys

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.codes[index], "key": self.keys[index]}


def train_prior(
    model: str | Path,
    output: str | Path,
    *,
    prior: PriorConfig | None = None,
    training: TrainingConfig | None = None,
    path: str | None = None,
    progress: bool = True,
) -> tuple[FitResult, CodeLikelihood | None]:
    """Train a prior over the codes of a frozen quantised model, or continue the one in ``output``.

    The directory holds ``checkpoints/``, ``metrics.csv``, ``tensorboard/``, ``prior.json``, at the end ``likelihood.json``, and
    ``model/``: the quantised model with its prior, which samples.

    Args:
        model: a quantised model directory or a run.
        output: directory of the second stage.
        prior: the transformer.
        training: how to train it.
        path: the images; the run's own by default.
        progress: show progress on standard error.

    Returns:
        How far it came, and the figures of the held-out images where it came to the end.

    Raises:
        FileExistsError: when the directory holds something else.
        ValueError: for a model without codes, or data that cannot work.
    """
    config, training = prior or PriorConfig(), training or TrainingConfig()
    if num_processes(training) > 1:
        raise ValueError(
            f"got training.devices={training.devices}; a prior over codes is trained by one process: leave training.devices out"
        )
    vae, dataset, splits = images_for(model, path, "train", None, "32")
    if "indices" not in vae.posterior.provides:  # type: ignore[operator]
        raise ValueError(
            f"{model} has no codes ({type(vae.posterior).__name__}): train vq_vae, residual_vq_vae, fsq_vae or lfq_vae first, or "
            "choose a model with a prior of its own, such as conv_vae"
        )
    directory = Path(output)
    settings = {
        "model_sha256": model_hash(model),
        "images": len(dataset),
        "prior": asdict(config),
        "training": asdict(training),
    }
    _check_output(directory, settings)
    size = vae.latent_size(dataset[0]["x"].shape[1:])
    q = _encode(vae, dataset[0]["x"].unsqueeze(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = AutoregressivePrior(
            vae.posterior.num_codes,  # type: ignore[arg-type]
            size,
            q[0].numel() // max(1, math.prod(size)),
            **asdict(config),
        )
    train, val, test = (encode_codes(vae, part, progress=progress) for part in (dataset, splits.val, splits.test))
    directory.mkdir(parents=True, exist_ok=True)
    for folder in (directory, directory / CHECKPOINTS, directory / MODEL):
        remove_leftovers(folder)
    write_atomic(directory / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    log.info(
        "%s: %s parameters; %d codes of %d kinds an image; %d training, %d validation and %d test images",
        type(network).__name__,
        f"{sum(p.numel() for p in network.parameters()):,}",
        network.length,
        network.num_codes,
        len(train),
        len(val),
        len(test),
    )
    stage = CodeModel(network)

    def save(trained: nn.Module) -> None:
        with_prior(vae, trained.prior).save_pretrained(directory / MODEL)  # type: ignore[arg-type]

    result = fit(
        stage,
        {"code_nll": CodeNLL()},
        train,
        val,
        config=training,
        directory=directory,
        save_model=save,
        progress=progress,
    )
    if not result.complete:
        return result, None
    trained = VAE.from_pretrained(directory / MODEL).to(next(vae.parameters()).device)
    likelihood = code_likelihood(trained.prior, train.codes, test.codes, math.prod(dataset[0]["x"].shape))  # type: ignore[arg-type]
    write_atomic(directory / RESULT, (json.dumps(asdict(likelihood), indent=2) + "\n").encode())
    return result, likelihood


def with_prior(vae: VAE, prior: AutoregressivePrior) -> VAE:
    """Return a copy of a model with another prior.

    Args:
        vae: the model.
        prior: the prior.
    """
    with torch.random.fork_rng(devices=[]):
        joint = from_config({**to_config(vae), "prior": to_config(prior)})
    own = {name: t for name, t in vae.state_dict().items() if not name.startswith("prior.")}
    tensors = own | {f"prior.{name}": t for name, t in prior.state_dict().items()}
    load_exactly(joint, {name: t.detach().cpu().clone() for name, t in tensors.items()}, "the two stages")
    joint.statistics = dict(vae.statistics)
    return joint.eval()


def encode_codes(vae: VAE, dataset: Any, *, progress: bool = True) -> CodeDataset:
    """Return the codes of all images of a data set.

    Args:
        vae: a quantised model in evaluation mode.
        dataset: map-style, images of one size.
        progress: show progress on standard error.

    Raises:
        ValueError: for images of several sizes.
    """
    parts: list[Tensor] = []
    keys: list[str] = []
    with progress_bar("finding codes", len(dataset), progress) as advance:
        for batch in DataLoader(dataset, batch_size=AT_ONCE, collate_fn=collate):
            parts.append(_encode(vae, batch["x"]))
            keys += list(batch["key"])
            advance(len(batch["x"]))
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"the images have codes of shapes {sorted(shapes)[0]} and {sorted(shapes)[-1]}; a prior over codes knows one: set "
            "data.image_size in the run that the model is from"
        )
    return CodeDataset(torch.cat(parts), keys)


@torch.no_grad()
def code_likelihood(
    prior: AutoregressivePrior, train: Tensor, held_out: Tensor, num_values: int, *, resamples: int = 1000
) -> CodeLikelihood:
    """Return how well a prior tells held-out codes, beside what is known without it.

    Args:
        prior: the prior.
        train: codes of the training images, ``[N, *S]`` or ``[N, *S, Q]``.
        held_out: codes of other images.
        num_values: values of an image, for bits per dimension.
        resamples: of the bootstrap.

    Raises:
        ValueError: when no image is held out.
    """
    if not len(held_out):
        raise ValueError("there is no held-out image to measure the prior on; give the data a test split")
    training = prior.training
    prior.eval()
    where = prior.begin.device
    nats = torch.cat(
        [-prior.distribution(len(p)).log_prob(p.to(where)).double().cpu() for p in held_out.split(AT_ONCE)]
    )
    prior.train(training)
    bits = nats / (math.log(2) * prior.length)
    draws = torch.randint(len(bits), (resamples, len(bits)), generator=torch.Generator().manual_seed(0))
    low, high = bits[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=bits.dtype)).tolist()
    return CodeLikelihood(
        bits_per_code=float(bits.mean()),
        low=low,
        high=high,
        unigram_bits=unigram_bits(train, held_out, prior.num_codes, prior.num_books),
        uniform_bits=math.log2(prior.num_codes),
        bits_per_dim=float(bits.mean()) * prior.length / num_values,
        codes=prior.length,
        images=len(held_out),
    )


def unigram_bits(train: Tensor, held_out: Tensor, num_codes: int, num_books: int) -> float:
    """Return the cross-entropy of held-out codes under the frequencies of training codes, each counted once more, in bits.

    Args:
        train: codes.
        held_out: codes.
        num_codes: size of a codebook.
        num_books: codebooks, whose frequencies are their own.
    """
    known, asked = CodeCounts(num_codes, num_books), CodeCounts(num_codes, num_books)
    known.add(train)
    asked.add(held_out)
    bits = 0.0
    for counts, held in zip(known.counts(), asked.counts(), strict=True):
        total, each = sum(counts.values()) + num_codes, sum(held.values())
        bits -= sum(n / each * math.log2((counts.get(code, 0) + 1) / total) for code, n in held.items())
    return bits / num_books


@torch.no_grad()
def _encode(vae: VAE, x: Tensor) -> Tensor:
    indices: Tensor = vae.encode(x.to(next(vae.parameters()).device)).indices  # type: ignore[attr-defined]
    return indices.cpu()


def _check_output(directory: Path, settings: Mapping[str, Any]) -> None:
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; give --output a directory")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / SETTINGS).is_file():
        raise FileExistsError(f"{directory} is not empty and holds no prior; give --output a new or empty directory")
    there = json.loads((directory / SETTINGS).read_text())
    asked = json.loads(json.dumps(settings))
    # The length of a run may grow: it continues.
    for values in (there, asked):
        for name in ("max_steps", "num_epochs"):
            values["training"].pop(name, None)
    if there != asked and (directory / CHECKPOINTS).exists():
        different = [name for name in asked if there.get(name) != asked[name]]
        raise FileExistsError(
            f"{directory} holds another prior ({', '.join(different)} differ); give --output another directory, or repeat that "
            "run's command to continue it"
        )
