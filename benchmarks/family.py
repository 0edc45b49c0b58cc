"""The family against pythae: the same fully connected networks, the same images, epochs, batches and learning rates.

``python -m benchmarks.family --data mnist-folder`` makes an environment for pythae (``runs/pythae-env``, with the same torch), runs
the two libraries in turn, each run in a process of its own, and prints medians: seconds for an epoch, memory that training adds,
and what is reached on test images. Both compute in float32; ours is shown in its default precision too (bf16 where the processor
has it).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

MEMBERS = ("vae", "beta_vae", "beta_tc_vae", "factor_vae", "iwae", "vq_vae", "vamp_vae", "iaf_vae")
#: Width of pythae's default fully connected networks.
WIDTH = 512
RESULTS = Path(__file__).parent / "results" / "family.json"
PYTHAE = "pythae==0.1.2"


def build(member: str, latent_dim: int) -> tuple[Any, dict[str, Any]]:
    """Return our model and losses with pythae's networks and settings."""
    from benchmarks.tokens import TokenDecoder, TokenEncoder
    from omnivae.losses import IWAE, KL, MSE, NLL, TC, Commitment, Factor
    from omnivae.models import VAE
    from omnivae.networks import MLPDecoder, MLPEncoder
    from omnivae.posteriors import FlowPosterior, GaussianPosterior, VQPosterior
    from omnivae.priors import StandardNormal, VampPrior
    from omnivae.recipes.common import make_likelihood

    shape = (28, 28)
    encoder: Any = MLPEncoder(1, shape, (WIDTH,), activation="relu")
    decoder: Any = MLPDecoder(latent_dim, 1, shape, (WIDTH,), activation="relu")
    prior: Any = StandardNormal()
    posterior: Any = GaussianPosterior(WIDTH, latent_dim, 0)
    losses: dict[str, Any] = {"nll": NLL(), "kl": KL()}
    likelihood = make_likelihood("bernoulli")
    if member == "beta_vae":
        losses["kl"] = KL(weight=4.0)
    elif member == "beta_tc_vae":
        losses = {"nll": NLL(), "tc": TC(beta=6.0)}
    elif member == "factor_vae":
        losses["factor"] = Factor(weight=10.0, width=1000, depth=5, discriminator_learning_rate=1e-4)
    elif member == "iwae":
        losses = {"iwae": IWAE(num_samples=10)}
    elif member == "vamp_vae":
        prior = VampPrior(1, shape, 50, value_range=(0.0, 1.0))
    elif member == "iaf_vae":
        posterior = FlowPosterior(WIDTH, latent_dim, 0, flow="iaf", num_flows=2, context_dim=0, hidden=(128, 128))
    elif member == "vq_vae":
        # pythae quantises each of the numbers of its dense latent by itself: a grid of tokens of one channel.
        grid = math.isqrt(latent_dim)
        encoder, decoder = TokenEncoder(encoder, grid, 28 // grid), TokenDecoder(decoder, 28 // grid)
        posterior, prior = VQPosterior(1, 1, 2, num_codes=256), None
        likelihood, losses = (
            make_likelihood("gaussian_fixed"),
            {"mse": MSE(), "commitment": Commitment(weight=0.25 / latent_dim)},
        )
    size = None if member == "vq_vae" else shape
    return VAE(encoder, posterior, decoder, likelihood, prior, value_range=(0, 1), image_size=size), losses


def ours(spec: dict[str, Any]) -> dict[str, float]:
    """Train one model of ours; return its figures."""
    import numpy as np
    import torch

    from benchmarks.pythae_peer import peak_mib
    from omnivae.training import TrainingConfig, fit

    torch.set_num_threads(spec["threads"])
    train, test = (torch.from_numpy(np.load(spec[name])) for name in ("train", "test"))
    torch.manual_seed(spec["seed"])
    model, losses = build(spec["member"], spec["latent_dim"])
    config = TrainingConfig(
        batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        num_epochs=spec["epochs"],
        schedule="constant",
        warmup_steps=0,
        optimizer="adam",
        gradient_clip=0.0,
        ema=0.0,
        precision=spec["precision"],
        checkpoint_every=10**9,
        log_every=100,
        seed=spec["seed"],
    )

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(train)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"x": train[index]}

        def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
            return [{"x": x} for x in train[indices]]

    with tempfile.TemporaryDirectory() as folder:
        before, began = peak_mib(), time.perf_counter()
        fit(
            model,
            losses,
            Images(),
            None,
            config=config,
            directory=Path(folder),
            save_model=lambda trained: trained.save_pretrained(Path(folder) / "model"),
            progress=False,
        )
        seconds = time.perf_counter() - began
    figures = {"seconds_per_epoch": seconds / spec["epochs"], "memory_before_mib": before, "peak_mib": peak_mib()}
    return figures | {"reached": reached(model, spec["member"], test)}


def reached(model: Any, member: str, test: Any) -> float:
    """Return the negative ELBO on test images in nats (VQ-VAE: the squared error), one posterior sample each."""
    import torch

    from omnivae.losses import KL, NLL

    torch.manual_seed(0)
    with torch.no_grad():
        output = model.eval()(test, sample=True)
        if member == "vq_vae":
            return float((output.reconstruction - test).square().flatten(1).sum(1).mean())
        return float(NLL()(output, {"x": test}) + KL()(output, {"x": test}))


def peer_python(directory: Path) -> Path:
    """Return the Python of pythae's environment, made where it is missing."""
    import torch

    python = directory / "bin" / "python"
    if not python.exists():
        version = torch.__version__.partition("+")[0]
        uv = os.environ.get("UV", "uv")
        subprocess.run([uv, "venv", "--quiet", str(directory)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), PYTHAE, f"torch=={version}", "torchvision"]
        subprocess.run(install, check=True)
    return python


def write_images(path: str, folder: Path, train: int, test: int) -> dict[str, str]:
    """Write binary images as arrays for both libraries; return their files."""
    import numpy as np

    from omnivae import DataConfig, load_data

    splits = load_data(DataConfig(path=path, binarize="threshold", image_size=28, channels=1, value_range=(0, 1)))
    files = {}
    for name, dataset, count in (("train", splits.train, train), ("test", splits.test, test)):
        if len(dataset) < count:
            raise ValueError(f"{path} has {len(dataset)} {name} images and {count} are asked for; ask for fewer")
        files[name] = str(folder / f"{name}.npy")
        np.save(files[name], np.stack([dataset[i]["x"].numpy() for i in range(count)]).astype(np.float32))
    return files


def figures_of(command: Sequence[str], spec: dict[str, Any]) -> dict[str, float]:
    """Run one training in a process and return what it prints last."""
    done = subprocess.run([*command, json.dumps(spec)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__)
    parser.add_argument(
        "--data", default="digits", help="images, as --data.path of omnivae train; MNIST for the published table"
    )
    parser.add_argument("--members", nargs="+", choices=MEMBERS, default=list(MEMBERS))
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=2_000, help="test images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="repeats of each, in turn; medians count")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--environment", type=Path, default=Path("runs/pythae-env"), help="where pythae is installed")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(ours(json.loads(options.one))))
        return
    peer = [str(peer_python(options.environment)), str(Path(__file__).parent / "pythae_peer.py")]
    mine = [sys.executable, "-m", "benchmarks.family", "--one"]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        common = write_images(options.data, Path(folder), options.train, options.test) | {
            "shape": [1, 28, 28], "latent_dim": 16, "epochs": options.epochs, "batch_size": 100, "learning_rate": 1e-3,
            "threads": options.threads,
        }  # fmt: skip
        for member in options.members:
            runs: dict[str, list[dict[str, float]]] = {"pythae": [], "omnivae": [], "omnivae, auto": []}
            for seed in range(options.rounds):
                spec = common | {"member": member, "seed": seed}
                runs["pythae"].append(figures_of(peer, spec))
                runs["omnivae"].append(figures_of(mine, spec | {"precision": "32"}))
                runs["omnivae, auto"].append(figures_of(mine, spec | {"precision": "auto"}))
            rows[member] = {
                name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
            }
            print(line(member, rows[member]), flush=True)
    options.output.parent.mkdir(exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("one", "output")}
    options.output.write_text(
        json.dumps({"settings": settings | {"data": Path(options.data).name}, "rows": rows}, indent=1)
    )


def line(member: str, row: dict[str, dict[str, float]]) -> str:
    """Return one row of the table."""
    cells = []
    for name, found in row.items():
        added = found["peak_mib"] - found["memory_before_mib"]
        cells.append(f"{name}: {found['seconds_per_epoch']:.2f} s/epoch, +{added:.0f} MiB, {found['reached']:.1f}")
    ratio = row["pythae"]["seconds_per_epoch"] / row["omnivae"]["seconds_per_epoch"]
    return f"{member:<12} {' | '.join(cells)} | {ratio:.2f}x"


if __name__ == "__main__":
    main()
