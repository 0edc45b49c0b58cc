"""Parity with the originals at their published sizes: ``python -m benchmarks.parity [--viscy FOLDER]``.

Each original is built by its own library with random weights (norms and biases too), saved, put through ``omnivae
inspect-checkpoint`` and compared on noise and on a structured input. VisCy's classes are compared by outputs that VisCy itself
wrote, for weights filled by a stated rule (FOLDER holds ``viscy_*.json`` and ``viscy_*_reference.npz``). Prints a Markdown table
and writes ``benchmarks/results/parity.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from omnivae.hub import load_checkpoint
from omnivae.hub.parity import difference
from omnivae.jobs.checkpoint import examine_checkpoint

RESULTS = Path(__file__).parent / "results" / "parity.json"


def filled(module: nn.Module) -> nn.Module:
    """Return a module with random weights, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 1 + 0.1 * noise)
    return module.eval()


def maisi() -> nn.Module:
    """Build MAISI's autoencoder as released."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    shared = {"latent_channels": 4, "num_splits": 1}
    return AutoencoderKlMaisi(3, 1, 1, (2, 2, 2), (64, 128, 256), (False, False, False), **shared)


def monai_kl(dim: int) -> nn.Module:
    """Build MONAI's AutoencoderKL with its default arguments."""
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL(dim)


def monai_var() -> nn.Module:
    """Build MONAI's VarAutoEncoder with residual units."""
    from monai.networks.nets import VarAutoEncoder

    return VarAutoEncoder(2, (1, 64, 64), 1, 128, (16, 32, 64), (2, 2, 2), num_res_units=2)


def diffusers_kl(**changes: Any) -> nn.Module:
    """Build Stable Diffusion's autoencoder."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **({"latent_channels": 4} | changes),
    )


def cogvideox() -> nn.Module:
    """Build CogVideoX's autoencoder of video, as released."""
    import diffusers

    return diffusers.AutoencoderKLCogVideoX()


def deep_compression() -> nn.Module:
    """Build the deep compression autoencoder of SANA, f32 with 32 channels."""
    import diffusers

    kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    return diffusers.AutoencoderDC(encoder_block_types=kinds, decoder_block_types=kinds)


ORIGINALS: dict[str, Callable[[], nn.Module]] = {
    "MONAI AutoencoderKlMaisi, as released": maisi,
    "MONAI AutoencoderKL, 2-D, defaults": lambda: monai_kl(2),
    "MONAI AutoencoderKL, 3-D, defaults": lambda: monai_kl(3),
    "MONAI VarAutoEncoder, residual units": monai_var,
    "diffusers AutoencoderKL, Stable Diffusion": diffusers_kl,
    "diffusers AutoencoderKL, Flux's options": lambda: diffusers_kl(
        latent_channels=16, use_quant_conv=False, use_post_quant_conv=False
    ),
    "diffusers AutoencoderKLCogVideoX, as released": cogvideox,
    "diffusers AutoencoderDC, f32": deep_compression,
}


def proven(title: str, build: Callable[[], nn.Module], folder: Path) -> dict[str, Any]:
    """Return one row: an original saved, recognised, loaded and compared."""
    original = filled(build())
    file = folder / "weights.pt"
    torch.save(original.state_dict(), file)
    found = examine_checkpoint(file, trials=False)
    assert found.proof is not None
    worst = max(found.proof.outputs, key=lambda d: d.max_abs)
    return {
        "model": title,
        "reference": found.proof.reference,
        "tensors": f"{len(found.architecture.names)} of {len(original.state_dict())}",
        "parameters": found.coverage.parameters_loaded,
        "max_abs": worst.max_abs,
        "relative": found.proof.worst.relative,
        "layers": len(found.proof.layers),
        "equal": found.proof.equal,
    }


def by_rule(shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights by the rule of VisCy's reference outputs."""
    tensors = {}
    for key, (shape, dtype) in shapes.items():
        if "int" in dtype:
            tensors[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
        r = np.asarray(generator.standard_normal(shape), dtype=np.float32)
        if not shape:
            value = np.float32(0.1) * np.ones((), np.float32)
        elif key.endswith("running_var"):
            value = 1 + 0.1 * np.abs(r)
        elif len(shape) > 1:
            value = r / np.sqrt(r[0].size)
        else:
            value = 1 + 0.1 * r if key.endswith("weight") else 0.1 * r
        tensors[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return tensors


@torch.no_grad()
def viscy(manifest: Path, folder: Path) -> dict[str, Any]:
    """Return one row: what VisCy wrote for weights by the rule, and what we compute from them."""
    stated = json.loads(manifest.read_text())
    reference = np.load(manifest.with_name(f"{manifest.stem}_reference.npz"))
    file = folder / "last.ckpt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in by_rule(stated["shapes"]).items()}}, file)
    model = load_checkpoint(file)
    config = stated["config"]
    shape = config.get("in_shape") or [config["in_channels"], config["in_stack_depth"], *config["input_spatial_size"]]
    x = np.random.Generator(np.random.PCG64(0)).standard_normal((2, *shape)).astype(np.float32)
    posterior = model.encode(torch.from_numpy(x))
    image = model.decode(posterior.mean)
    assert list(image.shape) == list(reference["reconstruction_shape"]), (
        image.shape,
        reference["reconstruction_shape"],
    )
    want = torch.from_numpy(reference["reconstruction_of_mean"])
    image = image if image.shape == want.shape else image[..., ::4, ::4]
    rows = [
        difference("mean", torch.from_numpy(reference["mean"]), posterior.mean),
        difference("log-variance", torch.from_numpy(reference["logvar"]), posterior.logvar),
        difference("reconstruction", want, image),
    ]
    relative = max(d.relative for d in rows)
    return {
        "model": f"VisCy {manifest.stem.removeprefix('viscy_')}",
        "reference": "outputs written by VisCy",
        "tensors": f"{len(stated['shapes'])} of {stated['n_keys']}",
        "parameters": sum(t.numel() for t in model.parameters()),
        "max_abs": max(d.max_abs for d in rows),
        "relative": relative,
        "layers": 0,
        "equal": relative < 2e-5,
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--viscy", type=Path, help="folder of VisCy's manifests and reference outputs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs: list[Callable[[], dict[str, Any]]] = [
            lambda t=title, b=build: proven(t, b, folder)  # type: ignore[misc]
            for title, build in ORIGINALS.items()
        ]
        if given.viscy:
            for reference in sorted(given.viscy.glob("viscy_*_reference.npz")):
                manifest = reference.with_name(reference.name.replace("_reference.npz", ".json"))
                jobs.append(lambda m=manifest: viscy(m, folder))  # type: ignore[misc]
        print("| weights of | tensors | parameters | compared with | layers | max abs | relative | equal |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for job in jobs:
            row = job()
            rows.append(row)
            print(
                f"| {row['model']} | {row['tensors']} | {row['parameters']:,} | {row['reference']} | {row['layers'] or '-'} | "
                f"{row['max_abs']:.1e} | {row['relative']:.1e} | {'yes' if row['equal'] else 'NO'} |",
                flush=True,
            )
    given.output.parent.mkdir(exist_ok=True)
    given.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
