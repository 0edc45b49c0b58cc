"""A tiny model, pictures of chosen sizes, and what a store holds, for the tests of this folder."""

import numpy as np
import torch
from PIL import Image

import omnivae
from omnivae import PosteriorStore


def save_model(directory, *, latent="spatial", in_channels=3, seed=0, image_size=16, latent_dim=4):
    torch.manual_seed(seed)
    model = omnivae.conv_vae(
        in_channels=in_channels,
        image_size=image_size,
        latent=latent,
        latent_dim=latent_dim,
        channels=[4, 8],
        norm="group",
    )
    for parameter in model.posterior.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(directory)
    return directory


def write_pictures(folder, sizes, *, seed=0, start=0, channels=3):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i, (height, width) in enumerate(sizes, start):
        pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"{i:03d}.png")
    return folder


def contents(path):
    """Return everything in a store, by key."""
    store = PosteriorStore(path)
    return {
        key: (store[key]["mean"].numpy().tobytes(), store[key]["logvar"].numpy().tobytes(), store[key]["input_size"],
              store.content_hash(i), store.stored_label(i))
        for i, key in enumerate(store.keys)
    }  # fmt: skip


def keys_on_disk(path):
    """Return the keys of all shards, with repetitions."""
    from omnivae.data.latents import read_shard

    return sorted(key for file in (path / "shards").glob("*.safetensors") for key in read_shard(file).key)
