"""Logs made for the doctor's rules: a healthy run, and one for each thing that can be wrong with it."""

import json
from pathlib import Path

import numpy as np

from omnivae.jobs.doctor import Curve, Look, Record

STEPS = 400
CONFIG = {
    "model": {"recipe": "conv_vae", "latent_dim": 16, "likelihood": "gaussian"},
    "data": {"path": "digits", "image_size": 32, "num_workers": 0, "flip": False},
    "losses": {"nll": {"weight": 1.0}, "kl": {"weight": 1.0}},
    "training": {
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "batch_size": 32,
        "gradient_clip": 10.0,
        "log_every": 1,
        "weight_decay": 0.0,
    },
}
T = np.linspace(0, 1, STEPS)
VALIDATIONS = np.arange(39, STEPS, 40)


def noise(scale=1.0, n=STEPS, seed=0):
    return scale * np.random.default_rng(seed).standard_normal(n)


def falling(start=100.0, end=30.0, rate=12.0):
    return end + (start - end) * np.exp(-rate * T)


def healthy(config=None, **columns):
    """A run that has converged, with noise; every column can be replaced."""
    nll, kl = falling(80, 25) + noise(0.5), 6.0 * (1 - np.exp(-8 * T)) + 0.1
    table = {
        "train/nll": nll,
        "train/kl": kl,
        "train/kl_nats": kl,
        "train/weight/nll": np.ones(STEPS),
        "train/weight/kl": np.ones(STEPS),
        "train/total": nll + kl,
        "train/elbo": -(nll + kl),
        "train/grad_norm": 2.0 + np.abs(noise(0.5, seed=1)),
        "train/lr": 1e-3 * 0.5 * (1 + np.cos(np.pi * T)),
        "train/images_per_s": 500 + noise(20, seed=2),
        "train/data_wait_share": 0.05 + np.abs(noise(0.01, seed=3)),
        "train/skipped_updates": np.zeros(STEPS),
        "epoch": T * 10,
        "train/perplexity": np.linspace(300, 400, STEPS),
        "train/code_usage": np.linspace(0.8, 0.98, STEPS),
    }
    table |= {
        "val/total": (nll + kl)[VALIDATIONS] + 0.5,
        "val/elbo": -(nll + kl)[VALIDATIONS] - 0.5,
        "val/psnr": np.linspace(20, 30, len(VALIDATIONS)),
    }
    record = {
        k: columns.pop(k)
        for k in ("dimensions", "look", "flights", "parameters", "checkpoint", "directory")
        if k in columns
    }
    table |= columns
    curves = {}
    for name, values in table.items():
        if values is None:
            continue
        values = np.asarray(values, dtype=float)
        steps = VALIDATIONS + 1 if name.startswith("val/") else np.arange(1, len(values) + 1)
        curves[name] = Curve(steps, values)
    merged = json.loads(json.dumps(CONFIG))
    for key, value in (config or {}).items():
        section = merged
        *path, last = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    settings = {
        "directory": Path("run"),
        "dimensions": np.full(16, 0.4),
        "parameters": 100_000,
        "look": Look(-1.0, 1.0, (-1.0, 1.0), saturated=0.1, saturated_data=0.1, variation=0.8, latent_size=16),
    } | record
    return Record(config=merged, curves=curves, **settings)


SPIKY = np.where(np.arange(STEPS) % 40 == 7, 60.0, 2.0)
OVERFIT = np.concatenate([np.linspace(60, 35, 5), np.linspace(36, 50, 5)])
GAN = {"losses.gan": {"weight": 0.1, "start_step": 50, "loss": "hinge"}}
UP = np.linspace(0, 1, STEPS)
VQ = {"model.recipe": "vq_vae", "model.latent_dim": 8, "losses.commitment": {"weight": 0.25}}

#: rule -> (record, severity, words in what is seen, words in the advice, words that an option must hold)
CASES = {
    "codebook collapse": (
        "codebook_collapse",
        healthy(
            VQ,
            **{"train/perplexity": 1.2 + 30 * np.exp(-30 * T), "train/code_usage": np.full(STEPS, 0.01)},
        ),
        "critical",
        "perplexity is 1.2 of 512, and 1.0% of them occur",
        "replace unused codes sooner",
        ["revive_below 0.2", "commitment.weight 0.0625", "num_codes 4"],
    ),
    "codes without use": (
        "codebook_collapse",
        healthy(VQ, **{"train/perplexity": np.full(STEPS, 30.0), "train/code_usage": np.full(STEPS, 0.1)}),
        "warning",
        "perplexity is 30 of 512, and 10.0% of them occur",
        "a lower commitment",
        ["num_codes 64"],
    ),
    "collapse, all dimensions dead": (
        "posterior_collapse",
        healthy(
            **{
                "train/kl_nats": 8 * np.exp(-30 * T) + 1e-3,
                "train/kl": 8 * np.exp(-30 * T) + 1e-3,
                "dimensions": np.full(16, 1e-4),
            }
        ),
        "critical",
        "the KL is 0.001 nats",
        "lower the KL weight",
        ["kl.weight 0.25", "LinearSchedule", "CyclicalSchedule", "free_bits"],
    ),
    "collapse, seen in the images": (
        "posterior_collapse",
        healthy(
            **{
                "train/kl_nats": np.full(STEPS, 1e-3),
                "train/kl": np.full(STEPS, 1e-3),
                "dimensions": np.full(16, 1e-4),
                "look": Look(-1, 1, (-1.0, 1.0), saturated=0.0, variation=0.01),
            }
        ),
        "critical",
        "differ by 1.0%",
        "lower the KL weight",
        ["kl.weight 0.25"],
    ),
    "collapse behind free bits": (
        "posterior_collapse",
        healthy(
            {"losses.kl.free_bits": 0.5},
            **{"train/kl_nats": np.full(STEPS, 8.0), "train/information": np.full(STEPS, 1e-4)},
        ),
        "critical",
        "tells images apart by less than 0.01 nats",
        "lower the KL weight",
        ["kl.weight 0.25", "LinearSchedule", "free_bits 1"],
    ),
    "collapse of most dimensions": (
        "posterior_collapse",
        healthy(dimensions=np.array([3.0, 3.0] + [1e-4] * 14)),
        "note",
        "2 of 16 latent dimensions",
        "lower the KL weight",
        ["kl.weight 0.25", "latent_dim 4"],
    ),
    "KL dominates": (
        "kl_balance",
        healthy({"losses.kl.weight": 40.0}, **{"train/weight/kl": np.full(STEPS, 40.0)}),
        "warning",
        "of the loss",
        "lower the KL weight",
        ["kl.weight 10"],
    ),
    "KL weight next to nothing": (
        "kl_balance",
        healthy(
            **{
                "train/weight/kl": np.full(STEPS, 1e-8),
                "train/kl": np.full(STEPS, 9000.0),
                "train/kl_nats": np.full(STEPS, 9000.0),
            }
        ),
        "note",
        "9,000 nats",
        "raise the KL weight",
        ["kl.weight"],
    ),
    "KL runs away": (
        "kl_growth",
        healthy(**{"train/kl_nats": np.exp(12 * T), "train/kl": np.exp(12 * T)}),
        "warning",
        "nats over the second half",
        "lower the learning rate",
        ["learning_rate 0.000333"],
    ),
    "gradients explode": (
        "gradient_norm",
        healthy(**{"train/grad_norm": np.exp(12 * T)}),
        "warning",
        "grew from",
        "lower the learning rate",
        ["learning_rate"],
    ),
    "large gradients of a summed loss": (
        "gradient_norm",
        healthy(**{"train/grad_norm": np.full(STEPS, 50.0)}),
        "note",
        "above 10",
        "nothing to do",
        [],
    ),
    "large gradients, and the loss stands": (
        "gradient_norm",
        healthy(**{"train/grad_norm": np.full(STEPS, 50.0), "train/total": np.full(STEPS, 90.0)}),
        "warning",
        "above 10",
        "lower the learning rate",
        ["learning_rate"],
    ),
    "gradients vanish": (
        "gradient_norm",
        healthy(**{"train/grad_norm": np.full(STEPS, 1e-3), "train/total": 90 + noise(0.01)}),
        "warning",
        "below 0.1",
        "raise the learning rate",
        ["learning_rate 0.003"],
    ),
    "every step clipped": (
        "gradient_norm",
        healthy({"training.gradient_clip": 0.5}),
        "note",
        "100% of the last steps",
        "above the usual norm",
        ["gradient_clip 4."],
    ),
    "gradient spikes": (
        "gradient_spikes",
        healthy(**{"train/grad_norm": SPIKY}, config={"training.gradient_clip": 0.0}),
        "warning",
        "the first at step 8",
        "clip gradients",
        ["gradient_clip 1"],
    ),
    "loss diverges": (
        "learning_rate_high",
        healthy(**{"train/total": falling() + 300 * np.clip(T - 0.6, 0, 1) + noise(0.5)}),
        "critical",
        "is 1",
        "lower the learning rate",
        ["learning_rate 0.000333"],
    ),
    "loss oscillates": (
        "learning_rate_high",
        healthy(**{"train/total": falling() + 25 * np.sin(2 * np.pi * 6 * T) + noise(0.5)}),
        "warning",
        "times",
        "lower the learning rate",
        ["learning_rate", "batch_size 64"],
    ),
    "loss not finite": (
        "learning_rate_high",
        healthy(**{"train/total": np.where(T > 0.5, np.nan, falling())}),
        "critical",
        "the loss is nan at step 201",
        "lower the learning rate",
        ["learning_rate"],
    ),
    "loss hardly moves": (
        "learning_rate_low",
        healthy(**{"train/total": 100 - 2 * T + noise(0.05)}),
        "warning",
        "in a straight line",
        "raise the learning rate",
        ["learning_rate 0.003"],
    ),
    "large model without warm-up": (
        "warmup",
        healthy({"training.warmup_steps": 0}, parameters=140_000_000),
        "note",
        "140 million",
        "warm",
        ["warmup_steps 20"],
    ),
    "schedule has ended": (
        "schedule_ended",
        healthy(**{"train/lr": np.where(T < 0.7, 1e-3, 0.0)}),
        "note",
        "from step 281",
        "constant",
        ["schedule constant"],
    ),
    "overfitting": (
        "overfitting",
        healthy(**{"val/total": OVERFIT, "train/total": falling(rate=4) + noise(0.3)}),
        "warning",
        "best at step 200",
        "checkpoints/best",
        ["data.flip true", "data.random_crop true", "weight_decay 0.01", "max_steps 200"],
    ),
    "overfitting under an annealed KL": (
        "overfitting",
        healthy(
            **{
                "val/elbo": -OVERFIT,
                "train/elbo": -(falling(rate=4) + noise(0.3)),
                "train/weight/kl": np.minimum(1, 4 * T),
            }
        ),
        "warning",
        "best at step 200",
        "checkpoints/best",
        ["data.flip true"],
    ),
    "still improving": (
        "underfitting",
        healthy(**{"val/total": np.linspace(90, 40, 10), "train/total": 90 - 50 * T + noise(0.5)}),
        "note",
        "of its whole improvement",
        "train longer",
        ["max_steps 800"],
    ),
    "discriminator has won": (
        "opponent",
        healthy(GAN, **{"train/gan_opponent": np.exp(-20 * T)}),
        "warning",
        "a coin toss is 1",
        "lower the weight",
        ["gan.weight 0.05", "start_step 200", "discriminator_learning_rate 0.00025"],
    ),
    "discriminator tells nothing": (
        "opponent",
        healthy(GAN, **{"train/gan_opponent": np.full(STEPS, 1.0)}),
        "note",
        "coin toss",
        "faster",
        ["discriminator_learning_rate 0.004"],
    ),
    "opponent outweighs the images": (
        "opponent",
        healthy(
            GAN,
            **{
                "train/gan_opponent": np.full(STEPS, 0.6),
                "train/gan": np.full(STEPS, 5.0),
                "train/weight/gan": np.full(STEPS, 30.0),
            },
        ),
        "warning",
        "of the loss",
        "second stage",
        ["gan.weight 0.05", "training.freeze"],
    ),
    "blur": (
        "blur",
        healthy({"data.image_size": 128}, **{"val/psnr": np.full(10, 19.0)}),
        "note",
        "19 dB",
        "perceptual",
        ["ms_ssim.weight", "latent_dim 32"],
    ),
    "absolute positions": (
        "extrapolation",
        healthy({"model.recipe": "transvae", "model.use_absolute_positions": True}),
        "note",
        "use_absolute_positions is true",
        "rotary",
        ["use_rope true", "use_absolute_positions false"],
    ),
    "no rotary positions": (
        "extrapolation",
        healthy({"model.recipe": "transvae", "model.use_rope": False}),
        "note",
        "use_rope is false",
        "rotary",
        ["use_rope true"],
    ),
    "images outside the range": (
        "data_range",
        healthy(look=Look(0.0, 255.0, (-1.0, 1.0))),
        "critical",
        "from 0 to 255",
        "black and white",
        ["input_range"],
    ),
    "Bernoulli outside its range": (
        "data_range",
        healthy({"model.likelihood": "bernoulli"}, look=Look(-1.0, 1.0, (0.0, 1.0))),
        "critical",
        "[0, 1]",
        "black and white",
        ["input_range"],
    ),
    "images in a corner of the range": (
        "data_range",
        healthy(look=Look(-1.0, -0.9, (-1.0, 1.0))),
        "warning",
        "from -1 to -0.9",
        "black and white",
        ["input_range"],
    ),
    "images without contrast": (
        "data_range",
        healthy(look=Look(-1.0, 1.0, (-1.0, 1.0), constant=("a.png", "b.png"))),
        "warning",
        "2 of 64",
        "leave them out",
        [],
    ),
    "a channel that holds nothing": (
        "data_range",
        healthy(look=Look(-1.0, 1.0, (-1.0, 1.0), constant_channels=(2,))),
        "warning",
        "channel 2",
        "without it",
        ["channels"],
    ),
    "saturated reconstructions": (
        "saturation",
        healthy(look=Look(-1.0, 1.0, (-1.0, 1.0), saturated=0.9, saturated_data=0.1)),
        "warning",
        "90%",
        "learning rate",
        [],
    ),
    "waiting for data": (
        "waiting_for_data",
        healthy(**{"train/data_wait_share": np.full(STEPS, 0.7)}),
        "warning",
        "70%",
        "processes",
        ["num_workers 2", "cache true"],
    ),
    "slows down": (
        "slowing_down",
        healthy(**{"train/images_per_s": np.linspace(500, 100, STEPS)}),
        "warning",
        "images/s",
        "memory",
        [],
    ),
    "skipped updates": (
        "bad_steps",
        healthy(**{"train/skipped_updates": np.floor(10 * T)}),
        "warning",
        "10 updates",
        "flight records",
        [],
    ),
    "stopped by a bad step": (
        "bad_steps",
        healthy(
            flights=(
                {
                    "step": 401,
                    "term": "train/nll",
                    "module": "encoder.stem",
                    "files": ["a.png"],
                    "policy": "stop",
                    "summary": "a.png holds NaN",
                    "advice": "repair it",
                    "replay": "omnivae replay r/flight/x",
                    "path": "p",
                },
            )
        ),
        "critical",
        "step 401 went bad (train/nll in encoder.stem), images a.png",
        "omnivae replay r/flight/x",
        [],
    ),
    "interrupted": (
        "interrupted",
        healthy({"training.max_steps": 1000}),
        "note",
        "step 400 of 1000",
        "--output run",
        [],
    ),
}
