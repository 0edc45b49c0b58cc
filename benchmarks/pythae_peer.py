"""Train one model of pythae and print its figures as JSON; runs in an environment of pythae's own (see ``family.py``)."""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time

import numpy as np
import torch


def peak_mib() -> float:
    """Return the largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def build(spec: dict) -> torch.nn.Module:
    """Return pythae's model with its own fully connected networks (512 hidden units)."""
    import pythae.models as m

    common = {"input_dim": tuple(spec["shape"]), "latent_dim": spec["latent_dim"]}
    bce = common | {"reconstruction_loss": "bce"}
    return {
        "vae": lambda: m.VAE(m.VAEConfig(**bce)),
        "beta_vae": lambda: m.BetaVAE(m.BetaVAEConfig(**bce, beta=4.0)),
        "beta_tc_vae": lambda: m.BetaTCVAE(m.BetaTCVAEConfig(**bce, alpha=1.0, beta=6.0, gamma=1.0)),
        "factor_vae": lambda: m.FactorVAE(m.FactorVAEConfig(**bce, gamma=10.0)),
        "iwae": lambda: m.IWAE(m.IWAEConfig(**bce, number_samples=10)),
        "vq_vae": lambda: m.VQVAE(m.VQVAEConfig(**common, num_embeddings=256, use_ema=True)),
        "vamp_vae": lambda: m.VAMP(m.VAMPConfig(**bce, number_components=50)),
        "iaf_vae": lambda: m.VAE_IAF(m.VAE_IAF_Config(**bce, n_made_blocks=2, n_hidden_in_made=2, hidden_size=128)),
    }[spec["member"]]()


@torch.no_grad()
def reached(model: torch.nn.Module, member: str, test: torch.Tensor) -> float:
    """Return the negative ELBO on test images in nats (VQ-VAE: the squared error), one posterior sample each."""
    model.eval()
    torch.manual_seed(0)
    if member in ("vae", "beta_vae", "beta_tc_vae", "factor_vae", "iwae"):
        q = model.encoder(test)
        mean, logvar = q.embedding, q.log_covariance
        x = model.decoder(mean + (logvar / 2).exp() * torch.randn_like(mean)).reconstruction
        nll = torch.nn.functional.binary_cross_entropy(x, test, reduction="none").flatten(1).sum(1)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        return float((nll + kl).mean())
    output = model({"data": test})
    if member == "vq_vae":
        return float((output.recon_x - test).square().flatten(1).sum(1).mean())
    return float(output.loss)


def main() -> None:
    """Train and print."""
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    logging.disable(logging.INFO)
    from pythae.trainers import AdversarialTrainer, AdversarialTrainerConfig, BaseTrainer, BaseTrainerConfig

    train, test = (torch.from_numpy(np.load(spec[name])) for name in ("train", "test"))
    torch.manual_seed(spec["seed"])
    model = build(spec)
    from pythae.data.datasets import BaseDataset

    data = BaseDataset(train, torch.zeros(len(train)))
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "num_epochs": spec["epochs"],
            "per_device_train_batch_size": spec["batch_size"],
            "seed": spec["seed"],
            "no_cuda": True,
        }
        if spec["member"] == "factor_vae":
            rates = {"autoencoder_learning_rate": spec["learning_rate"], "discriminator_learning_rate": 1e-4}
            kind, config = AdversarialTrainer, AdversarialTrainerConfig(**settings, **rates)
        else:
            kind, config = BaseTrainer, BaseTrainerConfig(**settings, learning_rate=spec["learning_rate"])
        trainer = kind(model=model, train_dataset=data, training_config=config)
        before, began = peak_mib(), time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    figures = {"seconds_per_epoch": seconds / spec["epochs"], "memory_before_mib": before, "peak_mib": peak_mib()}
    print(json.dumps(figures | {"reached": reached(model, spec["member"], test)}))


if __name__ == "__main__":
    main()
