"""What is chosen for speed can be switched off, and its outputs are held to float32's."""

import os
import subprocess
import sys

import pytest
import torch

from omnivae.losses import KL, NLL
from omnivae.models import VAE
from omnivae.recipes.baselines import vit_vae
from omnivae.recipes.convolutional import conv_vae, kl_autoencoder
from omnivae.recipes.transvae import TransVAE
from omnivae.training import device
from omnivae.training.config import TrainingConfig
from omnivae.training.device import for_inference, keep_freed_memory, native_bf16
from omnivae.training.loop import resolve_precision
from omnivae.training.module import VAEModule

#: Relative RMSE of bfloat16 outputs, as promised in the documentation of for_inference.
BF16 = 0.03
MODELS = {
    "transvae": lambda: TransVAE(
        "tiny", depths=[2, 2, 2], base_dims=[16, 16, 32], compression_ratio=4, head_dim=16, latent_dim=4
    ),
    "vit": lambda: vit_vae(depth=2, width=32, head_dim=16, input_resolution=32),
    "kl": lambda: kl_autoencoder(channels=(8, 16), num_res_blocks=1, num_groups=4),
    "conv": lambda: conv_vae(in_channels=3, image_size=32, latent_dim=8, channels=(8, 16)),
}
models = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def images(n=4):
    return torch.rand(n, 3, 32, 32)


def trained(build):
    """Build a model whose batch statistics and norms have left their defaults."""
    model = build()
    for _ in range(3):
        model(images())
    return model.eval()


def error(got, want):
    return float((got.float() - want).norm() / want.norm())


@models
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_outputs_stay_within_the_stated_tolerance(build, precision, channels_last):
    model, x = trained(build), images()
    q = model.encode(x)
    want, z = model.decode(q), q.mean
    for_inference(model, precision=precision, channels_last=channels_last)
    tolerance = BF16 if precision == "bf16" else 1e-5
    got = model.encode(x)
    assert got.mean.dtype == got.logvar.dtype == torch.float32
    assert error(got.mean, z) < tolerance
    assert error(model.decode(z), want) < tolerance


@models
def test_everything_switched_off_changes_nothing(build):
    model = trained(build)
    before = {name: (p.clone(), p.stride()) for name, p in model.state_dict().items()}
    for_inference(model, precision="32", channels_last=False)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name][0].dtype
        assert value.stride() == before[name][1]
        assert torch.equal(value, before[name][0])


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_chosen_where_it_is_native(native, monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda device: native)
    model = for_inference(MODELS["conv"]())
    assert not model.training
    want = torch.bfloat16 if native else torch.float32
    for network in (model.encoder, model.decoder):
        for name, p in network.named_parameters():
            assert p.dtype == (torch.float32 if ".norm." in name else want), name
    statistics = {b.dtype for b in model.buffers() if b.is_floating_point()}
    assert statistics == {torch.float32}
    assert {p.dtype for p in model.posterior.parameters()} == {torch.float32}


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_layout_is_chosen_by_the_number_of_axes(dim):
    model = for_inference(kl_autoencoder(dim=dim, channels=(4, 8), num_res_blocks=1, num_groups=2), precision="32")
    formats = {2: torch.channels_last}  # of volumes on a CPU, normalisations lose digits in that layout
    for p in model.encoder.parameters():
        if p.ndim == dim + 2:
            assert p.is_contiguous(memory_format=formats.get(dim, torch.contiguous_format))
    model = for_inference(model, precision="32", channels_last=True)
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    for p in model.encoder.parameters():
        if p.ndim == dim + 2:
            assert p.is_contiguous(memory_format=formats.get(dim, torch.contiguous_format))


def test_volumes_in_bfloat16_take_the_fast_layout():
    model = for_inference(kl_autoencoder(dim=3, channels=(4, 8), num_res_blocks=1, num_groups=2), precision="bf16")
    kernels = [p for p in model.decoder.parameters() if p.ndim == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="got precision='fp8'; expected 'auto', 'bf16', '16' or '32'"):
        for_inference(MODELS["conv"](), precision="fp8")


def test_native_bf16_says_what_the_cpu_has(monkeypatch):
    for amx, avx in ((False, False), (True, False), (False, True)):
        names = {"amx_bf16": amx, "avx512_bf16": avx, "sse": True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda names=names: names, raising=False)
        assert native_bf16("cpu") == (amx or avx)
        assert resolve_precision("auto") == ("bf16-mixed" if native_bf16() else "32-true") or torch.cuda.is_available()


def losses_of(build, channels_last, low):
    torch.manual_seed(3)
    model = build()
    losses = {"nll": NLL(), "kl": KL()}
    config = TrainingConfig(channels_last=channels_last, max_steps=10)
    module = VAEModule(model, losses, config, total_steps=10, steps_per_epoch=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x = images()
    curve = []
    for step in range(6):
        torch.manual_seed(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            total, _, _ = module._losses({"x": x}, step)
        total.backward()
        optimizer.step()
        curve.append(total.detach())
    return torch.stack(curve)


@models
def test_the_fast_training_step_has_the_loss_curve_of_the_plain_one(build):
    want = losses_of(build, False, False)
    assert want[-1] < want[0]
    torch.testing.assert_close(losses_of(build, True, False), want, rtol=1e-3, atol=0)
    torch.testing.assert_close(losses_of(build, True, True), want, rtol=0.02, atol=0)


ALLOCATE = """
import resource, torch
import omnivae, omnivae.networks.transvae
from omnivae.training.device import keep_freed_memory

def faults():
    for _ in range(3): torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(8): torch.ones(2**24)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_minflt - before.ru_minflt

torch.set_num_threads(1)
before = faults()
print(before, keep_freed_memory(), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept_where_asked_and_only_there():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", ALLOCATE], capture_output=True, text=True, check=True, env=clean)
    before, made, after = done.stdout.split()
    if made == "False":
        pytest.skip("this C library is not glibc")
    assert int(before) >= 8 * 32  # 64 MiB each time, faulted in again: 32 pages if they are huge ones
    assert int(after) < 8


def test_a_threshold_that_the_user_has_set_is_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    assert keep_freed_memory() is False


def test_settings_made_for_speed_survive_saving(tmp_path):
    # The library may be asked for speed before a model is saved: what is loaded again is the same function.
    model = for_inference(MODELS["transvae"](), precision="32")
    model.save_pretrained(tmp_path / "model")
    x = images()
    with torch.no_grad():
        want = model(x).reconstruction
        got = VAE.from_pretrained(tmp_path / "model")(x).reconstruction
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_keep_freed_memory_is_for_linux_only(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
