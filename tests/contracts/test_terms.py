"""What every likelihood, loss and schedule promises, whatever is registered."""

import pytest
import torch
from test_components import build, images, train_two_steps

from omnivae.component import registered
from omnivae.likelihoods import Likelihood
from omnivae.losses import KL, NLL, Schedule, loss_classes
from omnivae.recipes.common import LIKELIHOODS
from omnivae.training import TrainingConfig, VAEModule

# -- likelihoods


def test_every_registered_likelihood_has_a_name():
    made = {type(make((0.0, 1.0))) for make in LIKELIHOODS.values()}
    assert made == set(registered(Likelihood).values())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_trains(likelihood, tmp_path):
    model = build("conv_vae", likelihood=likelihood)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = images(model, 8)
    if LIKELIHOODS[likelihood](model.value_range).discrete:
        low, high = model.value_range
        x = low + (high - low) * ((x - low) / (high - low) * 255).round() / 255
    train_two_steps(model, {"nll": NLL(), "kl": KL()}, tmp_path, x=x)
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    output = model.eval()(x)
    low, high = model.value_range
    assert bool(torch.isfinite(output.likelihood.log_prob(x)).all())
    assert output.likelihood.sample().shape == (1, *x.shape)
    if LIKELIHOODS[likelihood]((low, high)).discrete:
        # Probabilities of levels: no image can have more than probability 1.
        assert bool((output.likelihood.log_prob(x) <= 0).all())


# -- losses and schedules


@pytest.fixture(scope="session")
def loss_arguments(tmp_path_factory):
    """What a loss needs beside its defaults: files of random weights for the frozen networks, a small discriminator."""
    import timm
    from torchvision.models import alexnet

    folder = tmp_path_factory.mktemp("weights")
    torch.save({f"features.{k}": v for k, v in alexnet().features.state_dict().items()}, folder / "alexnet.pth")
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), folder / "resnet.pth")
    vit = "test_vit"
    torch.save(timm.create_model(vit, num_classes=0).state_dict(), folder / "vit.pth")
    return {
        "lpips": {"weights_path": str(folder / "alexnet.pth"), "network": "alex"},
        "vf": {"weights_path": str(folder / "vit.pth"), "model": vit},
        "dfc": {"weights_path": str(folder / "resnet.pth"), "model": "test_resnet", "stages": [0, 1]},
        "gan": {"channels": 4, "num_layers": 2},
        "vae_gan": {"channels": 4, "num_layers": 2, "layer": 2},
        "factor": {"width": 8, "depth": 2},
        "aae": {"width": 8, "depth": 1},
        "tc": {"dataset_size": 8},
    }


#: Losses of models that infer classes have their contract in test_conditional.py.
LOSSES = sorted(name for name, cls in loss_classes().items() if "classes" not in cls.needs)


def make_loss(name, loss_arguments, **arguments):
    return loss_classes()[name](**(loss_arguments.get(name, {}) | arguments))


#: Losses of a posterior's own terms, and the recipe whose posterior has them.
PENALISED = {"commitment": "vq_vae", "entropy": "lfq_vae", "norm": "autoencoder"}


def loss_model(name):
    if name in PENALISED:
        return build(PENALISED[name], image_size=32)
    # Large enough for LPIPS, with a latent that has positions for VF where the loss is not about a vector.
    return build("conv_vae" if name in ("aae", "dip", "factor", "tc") else "conv_vae/spatial", image_size=32)


def loss_images(model, n=4):
    low, high = model.value_range
    return low + (high - low) * torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(name, loss_arguments, tmp_path):
    model = loss_model(name)
    losses = {name: make_loss(name, loss_arguments)}
    # A bound and the decomposed KL stand in the place of the KL.
    others = ("l1",) if name in (*PENALISED, "iwae", "tc") else ("l1", "kl")
    losses |= {other: make_loss(other, {}) for other in others if other != name}
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_two_steps(model, losses, tmp_path, x=loss_images(model, 8))
    # A Gaussian's learned scale moves with the NLL only.
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert set(before) - moved <= {"likelihood_head.log_scale"}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_an_unweighted_scalar_with_a_gradient(name, loss_arguments):
    values = []
    for weight in (1.0, 7.0):
        torch.manual_seed(2)
        model = loss_model(name).train()
        loss = make_loss(name, loss_arguments, weight=weight)
        # The trainer does these: it tells a loss the value range and the model's shapes, and how to decode.
        VAEModule(model, {"l1": make_loss("l1", {}), "it": loss}, TrainingConfig(), total_steps=1, steps_per_epoch=1)
        loss.decode = model.likelihood
        x = loss_images(model)
        output = model(x, num_samples=loss.num_samples)
        # Near the reconstruction: MS-SSIM of images that have nothing in common is flat at 0.
        value = loss(output, {"x": output.reconstruction.detach() + 0.05 * x})
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert loss.current_weight() == pytest.approx(weight)
        values.append(value)
    assert torch.equal(*values)
    value.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert type(loss).__name__ in repr(loss)


@pytest.mark.parametrize("schedule", sorted(registered(Schedule)))
@pytest.mark.parametrize("loss", LOSSES)
def test_every_schedule_serves_as_a_weight_of_every_loss(schedule, loss, loss_arguments):
    made = registered(Schedule)[schedule]()
    weighted = make_loss(loss, loss_arguments, weight=made)
    for step in (0, 3, 17):
        weighted.step = step
        assert weighted.current_weight() == pytest.approx(made(step))
    by_config = make_loss(loss, loss_arguments, weight={"component": schedule})
    by_config.step = 17
    assert by_config.current_weight() == pytest.approx(made(17))


@pytest.mark.parametrize("schedule", sorted(registered(Schedule)))
def test_every_schedule_drives_a_training(schedule, tmp_path):
    cls = registered(Schedule)[schedule]
    model = build("conv_vae")
    weight = cls()
    train_two_steps(model, {"nll": NLL(), "kl": KL(weight=weight)}, tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/weight/kl")
    assert [float(row.split(",")[column]) for row in rows[1:]] == pytest.approx([weight(0), weight(1)], rel=1e-6)
