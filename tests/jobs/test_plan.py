"""Plans say what really happens: shapes of random cases, bytes of runs without tiles, and budgets that do not do."""

import random

import pytest
import torch

import omnivae
from omnivae.cli.main import main
from omnivae.jobs.plan import parse_shape, plan_model
from omnivae.models.tiled.memory import AllocationTracker


def tiny(dim, **more):
    arguments = {"in_channels": 1, "channels": (4, 4), "num_res_blocks": 1, "num_groups": 2, "mid_attention": False}
    return omnivae.kl_autoencoder(**(arguments | {"dim": dim} | more)).eval()


def spatial(dim, channels):
    return omnivae.conv_vae(
        in_channels=1, channels=channels, latent_dim=2, dim=dim, latent="spatial", norm="none"
    ).eval()


#: Model and number of cases, 1,000 together: most for networks of few layers, whose runs take little.
MODELS = {
    "1-D": (lambda: spatial(1, (2, 2, 2)), 260),
    "2-D": (lambda: spatial(2, (2, 2)), 260),
    "3-D": (lambda: spatial(3, (2,)), 260),
    "codes": (lambda: omnivae.vq_vae(in_channels=3, image_size=None, channels=(2, 2), latent_dim=3).eval(), 80),
    "kl 2-D": (lambda: tiny(2, in_channels=3, channels=(2, 2, 2)), 40),
    "kl 3-D": (lambda: tiny(3), 20),
    "video": (lambda: omnivae.VideoVAE(in_channels=1, base_channels=2, num_res_blocks=1, num_groups=2).eval(), 10),
    "vector": (lambda: omnivae.conv_vae(in_channels=1, image_size=12, channels=(2, 2), latent_dim=3).eval(), 70),
}


def test_a_thousand_cases():
    assert sum(cases for _, cases in MODELS.values()) == 1000


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_of_real_runs(name):
    make, cases = MODELS[name]
    model = make()
    generator = random.Random(0)
    for _ in range(cases):
        size = [generator.randint(1, 12 if name == "vector" else 24) for _ in range(model.dim)]
        batch = generator.randint(1, 2)
        plan = plan_model(model, (batch, model.in_channels, *size))
        with torch.no_grad():
            posterior = model.encode(torch.zeros(plan.input_shape))
            assert tuple(posterior.shape) == plan.latent_shape
            assert tuple(model.decode(posterior).shape) == plan.output_shape
            assert model._pad(torch.zeros(plan.input_shape)).shape[2:] == plan.padded_size
            assert all(n % m == 0 for n, m in zip(plan.padded_size, plan.valid_multiples, strict=True))


def test_bytes_are_those_of_real_runs():
    model = tiny(2, channels=(8, 16))
    plan = plan_model(model, (1, 64, 96))
    for network, shape, planned in (
        (model.encoder, plan.input_shape, plan.encode_bytes),
        (model.decoder, plan.latent_shape, plan.decode_bytes),
    ):
        with AllocationTracker() as tracker, torch.no_grad():
            network(torch.zeros(shape).contiguous(memory_format=torch.channels_last))
        assert tracker.peak == pytest.approx(planned, rel=0.2)


def test_a_budget_that_is_too_small_names_one_that_does(tmp_path, capsys):
    tiny(2).save_pretrained(tmp_path / "model")
    assert main(["plan", str(tmp_path / "model"), "--input", "1x256x256", "--memory", "20kB"]) == 2
    assert "or more" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "model"), "--input", "1x256x256", "--memory", "2MB"]) == 0
    shown = capsys.readouterr().out
    assert "encode, tiled" in shown
    assert "about" in shown
    assert main(["plan", str(tmp_path / "model"), "--input", "3x256x256"]) == 2
    assert "1xHxW" in capsys.readouterr().err


def test_shapes_as_text():
    assert parse_shape("1x512x512x300") == (1, 512, 512, 300)
    with pytest.raises(ValueError, match="expected numbers"):
        parse_shape("512 by 512")


def test_a_model_of_stacks_is_planned_stack_by_stack():
    model = omnivae.VideoVAE(1, 2, base_channels=4, num_res_blocks=1, num_groups=2, use_maisi=True).eval()
    plan = plan_model(model, (1, 16, 32, 32), memory="8MB", measure=False)
    assert plan.stacks == 4
    alone = plan_model(model, (1, 4, 32, 32), memory="8MB", measure=False)
    assert alone.stacks == 1
    assert plan.encode_bytes == alone.encode_bytes
    assert plan.decode_bytes == alone.decode_bytes
    assert "for each of 4 stacks of frames" in str(plan)
    assert "stack" not in str(alone)
