"""MaisiVAE against MONAI's AutoencoderKlMaisi with the same weights: time, memory and difference of encode and decode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import DEVICE, Row, counted, first_call, interleave, medians
from omnivae.networks.maisi import to_monai
from omnivae.recipes import MaisiVAE
from omnivae.training.device import for_inference

REFERENCE = "MONAI fp32"


def monai_twin(model: MaisiVAE) -> Any:
    """Return MONAI's model of the released configuration with the weights of ours."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    twin = AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        num_channels=(64, 128, 256),
        num_res_blocks=(2, 2, 2),
        attention_levels=(False, False, False),
        norm_float16=False,
        num_splits=1,
        dim_split=1,
        save_mem=False,
    )
    twin.load_state_dict(to_monai(model.state_dict()), strict=True)
    return twin.eval().to(DEVICE)


@torch.inference_mode()
def run(rounds: int, budget: float, size: Sequence[int] = (32, 128, 128)) -> tuple[list[Row], dict[str, float]]:
    """Measure on one thread.

    Args:
        rounds: repeats of each measurement, interleaved.
        budget: seconds for the repeats of encode and of decode.
        size: of the volume.

    Returns:
        Rows of the table, and relative root mean square errors against MONAI in float32.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MaisiVAE().eval().to(DEVICE)
    monai = monai_twin(model)
    last: Any = for_inference(copy.deepcopy(model), precision="32")
    bf16: Any = for_inference(copy.deepcopy(model), precision="bf16")
    x = torch.rand(1, 1, *size, device=DEVICE)
    z = monai.encode(x)[0]
    work: dict[str, dict[str, Callable[[], Tensor]]] = {
        "encode": {
            REFERENCE: lambda: monai.encode(x)[0],
            "ours fp32": lambda: model.encode(x).mean,
            "ours fp32, channels last": lambda: last.encode(x).mean,
            "ours bf16 autocast, channels last": lambda: _autocast(lambda: last.encode(x).mean),
            "ours bf16, channels last": lambda: bf16.encode(x).mean,
        },
        "decode": {
            REFERENCE: lambda: monai.decode(z),
            "ours fp32": lambda: model.decode(z),
            "ours fp32, channels last": lambda: last.decode(z),
            "ours bf16 autocast, channels last": lambda: _autocast(lambda: last.decode(z)),
            "ours bf16, channels last": lambda: bf16.decode(z),
        },
    }
    rows: list[Row] = []
    errors: dict[str, float] = {}
    for name, variants in work.items():
        gflop, want = 0.0, None
        memory: dict[str, float | None] = {}
        for setting, function in variants.items():
            if want is None:
                run_counted, counter = counted(function)
                want = run_counted()
                gflop = counter.get_total_flops() * 1e-9
            got, memory[setting] = first_call(function)
            errors[f"{name}, {setting}"] = _error(got, want)
        seconds = medians(interleave(variants, rounds=rounds, budget_s=budget))
        for setting, value in seconds.items():
            precision = "bf16" if "bf16" in setting else "fp32"
            row = Row(f"{name} {'x'.join(map(str, size))}", "maisi", setting, value, 1, gflop, precision)
            row.speedup, row.extra_mib = seconds[REFERENCE] / value, memory[setting]
            rows.append(row)
    torch.set_num_threads(threads)
    return rows, errors


def _autocast(function: Callable[[], Tensor]) -> Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return function()


def _error(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).square().mean().sqrt() / want.float().square().mean().sqrt())
