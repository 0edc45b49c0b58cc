"""Label-controlled generation: shapes drawn by formula, samples judged by the nearest template."""

import pytest
import torch

from omnivae.losses import KL, NLL
from omnivae.recipes import c_vae
from omnivae.training import TrainingConfig, VAEModule

SIDE, KINDS = 12, ("circle", "square", "triangle")


def draw(kind, row, column, radius):
    """Return one shape, ``[1, SIDE, SIDE]``; the kind is the label, place and size are what z is for."""
    y, x = torch.meshgrid(torch.arange(SIDE) - row, torch.arange(SIDE) - column, indexing="ij")
    inside = {
        "circle": x.square() + y.square() <= radius**2,
        "square": torch.maximum(x.abs(), y.abs()) <= radius,
        "triangle": (y <= radius) & (y >= -radius) & (2 * x.abs() <= y + radius),
    }[kind]
    return inside.float()[None]


def shapes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(len(KINDS), (n,), generator=generator)
    place = 5 + torch.randint(2, (n, 2), generator=generator)
    radius = 3 + torch.randint(2, (n,), generator=generator)
    x = torch.stack([draw(KINDS[k], *p, r) for k, p, r in zip(label.tolist(), place.tolist(), radius, strict=True)])
    return x, label


TEMPLATES = torch.stack(
    [draw(kind, row, column, r) for kind in KINDS for row in (5, 6) for column in (5, 6) for r in (3, 4)]
)


def nearest(x):
    """The kind of the nearest of all shapes that exist."""
    place = torch.cdist(x.flatten(1), TEMPLATES.flatten(1)).argmin(1)
    return place // (len(TEMPLATES) // len(KINDS))


def train(conditioning, *, tell=True, steps=120):
    torch.manual_seed(0)
    model = c_vae(image_size=SIDE, latent_dim=4, channels=(8, 16), cond_dim=3, conditioning=conditioning)
    config = TrainingConfig(learning_rate=5e-3, precision="32")
    module = VAEModule(model, {"nll": NLL(), "kl": KL()}, config, total_steps=steps, steps_per_epoch=steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, label = shapes(512, seed=1)
    cond = torch.eye(3)[label] if tell else torch.full((512, 3), 1 / 3)
    for step in range(steps):
        part = torch.randperm(512)[:64]
        total, _, _ = module._losses({"x": x[part], "cond": cond[part]}, step)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model.eval()


def obeyed(model):
    """The share of samples that are the kind that was asked for."""
    wanted = torch.arange(150) % 3
    generator = torch.Generator().manual_seed(2)
    x = model.sample(150, cond=torch.eye(3)[wanted], generator=generator)
    return float((nearest(x) == wanted).float().mean())


def test_the_rule_tells_the_shapes_apart():
    x, label = shapes(100, seed=3)
    assert torch.equal(nearest(x), label)


@pytest.mark.parametrize("conditioning", ["concat", "batch_norm", "film"])
def test_samples_are_what_was_asked_for(conditioning):
    model = train(conditioning)
    assert obeyed(model) > 0.8
    # The same latent under another label is another kind at the same place.
    x, label = shapes(60, seed=4)
    other = (label + 1) % 3
    with torch.no_grad():
        q = model.encode(x, torch.eye(3)[label])
        own, changed = model.decode(q), model.decode(q, torch.eye(3)[other])
    assert float((nearest(own) == label).float().mean()) > 0.8
    assert float((nearest(changed) == other).float().mean()) > 0.7


def test_a_model_that_was_told_nothing_does_not_obey():
    assert obeyed(train("concat", tell=False)) < 0.6
