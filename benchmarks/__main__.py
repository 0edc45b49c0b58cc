"""Measure everything in under five minutes: ``python -m benchmarks [--only inference|training|encode|disentanglement]``.

Prints Markdown tables and writes ``benchmarks/results/latest.json``. Meant for a machine that does nothing else.

``--only maisi`` compares with MONAI's AutoencoderKlMaisi (needs the extra ``medical``) and is no part of the five minutes.
Nor is ``--only tiled``, memory and time larger than memory (`python -m benchmarks.tiled --help` has its sizes and budgets).

``--only dsprites`` is an experiment instead, of an hour and a half or as many ``--steps`` as there is time for: it trains β-VAE,
β-TCVAE and FactorVAE, continues where it was stopped, and writes ``benchmarks/results/dsprites.json`` and ``dsprites.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import conditional, disentanglement, dsprites, encode, inference, maisi, tiled, training
from benchmarks.common import DEVICE, Row, interleave, machine, medians, table
from benchmarks.plain import plain
from omnivae.recipes.transvae import TransVAE
from omnivae.training.device import for_inference, keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "latest.json"


@dataclass
class Results:
    """What is written."""

    rows: list[Row] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


@torch.inference_mode()
def kept_memory(rounds: int) -> dict[str, Any]:
    """Time decoding before and after freed memory is kept in the process (it cannot be given back: this comes first)."""
    model = TransVAE("tiny").eval().to(DEVICE)
    z = torch.randn(1, 32, 16, 16, device=DEVICE)
    base, fast = plain(model), for_inference(model)
    variants = {"plain fp32": lambda: base.decode(z), "our settings": lambda: fast.decode(z)}
    for function in variants.values():
        function()
    before = medians(interleave(variants, rounds=rounds, budget_s=15))
    if not keep_freed_memory():
        return {}
    after = medians(interleave(variants, rounds=rounds, budget_s=15))
    return {
        name: {"default_s": before[name], "kept_s": after[name], "speedup": before[name] / after[name]}
        for name in variants
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        choices=["inference", "training", "encode", "disentanglement", "dsprites", "conditional", "maisi", "tiled"],
        help="measure one part",
    )
    parser.add_argument("--rounds", type=int, default=3, help="repeats of each measurement (the median counts)")
    parser.add_argument("--budget", type=float, default=90, help="seconds for the repeats of each part, roughly")
    parser.add_argument(
        "--references", action="store_true", help="disentanglement: also the references that take minutes"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file")
    parser.add_argument("--steps", type=int, default=dsprites.STEPS, help="dsprites: steps of each run, of 64 images")
    parser.add_argument("--seeds", type=int, default=dsprites.SEEDS, help="dsprites: runs of each method")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/dsprites-benchmark"), help="dsprites: where the runs are"
    )
    parser.add_argument(
        "--size", type=int, nargs=3, default=[32, 128, 128], help="maisi: depth, height and width of the volume"
    )
    parser.add_argument("--data", default="data/mnist", help="conditional: MNIST's folder")
    parser.add_argument(
        "--judge", nargs="+", default=["runs/c_vae_mnist"], help="conditional: runs of c_vae and m2_vae"
    )
    options = parser.parse_args()
    if options.only == "dsprites":
        dsprites.run(steps=options.steps, seeds=options.seeds, runs=options.runs)
        return
    if options.only == "conditional":
        conditional.run(options.data, [Path(place) for place in options.judge])
        return
    if options.only == "tiled":
        tiled.run(["16x64x64", "32x128x128", "64x128x128"], list(tiled.SETTINGS), "200MB")
        return
    if options.only == "maisi":
        rows, errors = maisi.run(options.rounds, options.budget, options.size)
        print(table(rows) + f"\n\nrelative RMSE against {maisi.REFERENCE}, one thread:")
        print("\n".join(f"- {name}: {value:.1e}" for name, value in errors.items()))
        return
    begun = time.perf_counter()
    print(json.dumps(machine(), indent=1), flush=True)
    results = Results()
    kept = kept_memory(options.rounds) if options.only not in ("encode", "disentanglement") else {}
    if kept:
        results.more["keeping freed memory in the process"] = kept
        print("\ndecode, freed memory kept in the process against glibc's defaults:")
        for name, value in kept.items():
            print(
                f"- {name}: {value['speedup']:.2f}x ({value['default_s']:.3f} s -> {value['kept_s']:.3f} s)", flush=True
            )

    def show(rows: list[Row]) -> None:
        results.rows += rows
        print("\n" + table(rows), flush=True)

    if options.only in (None, "inference"):
        measured, errors = inference.run(options.rounds, options.budget)
        show(measured)
        results.more["relative RMSE against plain fp32"] = errors
        print("\nrelative RMSE against plain fp32:")
        for name, value in errors.items():
            print(f"- {name}: {value:.1e}", flush=True)
    if options.only in (None, "training"):
        show(training.steps(options.rounds, options.budget))
        curves = training.loss_curves()
        results.more["loss curves"] = curves
        print(f"\nlargest relative difference of the loss in 10 steps: {curves['largest_relative_difference']:.1e}")
        overhead = training.lightning_overhead()
        results.more["lightning"] = overhead
        print("\none step of an MNIST-size model, batch 64:")
        for name, value in overhead["ms_per_step"].items():
            more = overhead["overhead"].get(name)
            print(f"- {name}: {value:.2f} ms" + ("" if more is None else f" ({more:+.0%})"), flush=True)

    if options.only in (None, "encode"):
        rows = encode.run()
        results.more["encode"] = rows
        print("\nomnivae encode, images of 64x64, shards of 8 MiB:\n" + encode.table(rows), flush=True)

    if options.only in (None, "disentanglement"):
        print("\ndisentanglement scores, 10 codes, 5 factors, 10,000 rows to fit on and 5,000 to judge by:")
        results.more["disentanglement"] = disentanglement.run(references=options.references, rounds=options.rounds)

    seconds = time.perf_counter() - begun
    written = {"machine": machine(), "seconds": seconds, **results.more}
    written["rows"] = [row.report() for row in results.rows]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(written, indent=1) + "\n")
    print(f"\n{seconds:.0f} s; written to {options.output}")


if __name__ == "__main__":
    main()
