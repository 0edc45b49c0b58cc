"""Low precision never gives black or NaN images: weights are scaled so that the float32 function stays and float16 overflows."""

import copy
import logging
import math

import pytest
import torch
from torch import nn
from training_toys import run, toy_model, training_rows

from omnivae.recipes import conv_vae, kl_autoencoder
from omnivae.recipes.transvae import TransVAE
from omnivae.training import precision
from omnivae.training.autocast import AutocastGuard, HalfPrecision
from omnivae.training.device import for_inference
from omnivae.training.overflow import FLOAT16_MAX, MARGIN, find_unsafe, outermost, unit_of
from omnivae.training.precision import to_float16


def build_conv():
    return conv_vae(in_channels=3, image_size=16, latent_dim=8, channels=(8, 16), norm="none")


def build_conv_batch():
    model = conv_vae(in_channels=3, image_size=16, latent_dim=8, channels=(8, 16))
    for _ in range(3):
        model(torch.rand(8, 3, 16, 16) * 2 - 1)
    return model


def build_kl():
    return kl_autoencoder(channels=(8, 16), num_res_blocks=1, num_groups=4, input_resolution=16)


def build_transvae():
    return TransVAE(
        "tiny",
        depths=[1, 1, 1],
        base_dims=[16, 16, 32],
        compression_ratio=4,
        head_dim=16,
        latent_dim=4,
        input_resolution=16,
    )


@torch.no_grad()
def scale(layer, factor, rows=slice(None)):
    layer.weight[rows] *= factor
    if layer.bias is not None:
        layer.bias[rows] *= factor


@torch.no_grad()
def scale_conv(model, s):
    # ReLU lets a factor through; the next layer's weights take it back.
    scale(model.encoder.stages[0].conv, s)
    model.encoder.stages[1].conv.weight /= s
    return ["encoder.stages.0.act", "encoder.stages.0.conv", "encoder.stages.1.conv"]


@torch.no_grad()
def scale_conv_batch(model, s):
    stage = model.decoder.stages[0]
    scale(stage.conv, s)
    stage.norm.running_mean *= s
    stage.norm.running_var *= s * s
    return ["decoder.stages.0.conv", "decoder.stages.0.norm"]


def scale_kl(model, s):
    # Group normalisation takes any factor back.
    scale(model.decoder.stages[0].blocks[1].conv1, s)
    return ["decoder.stages.0.blocks.1"]


def scale_transvae_block(model, s):
    scale(model.encoder.stages[0][0].conv1, s)
    return ["encoder.stages.0.0"]


@torch.no_grad()
def scale_transvae_values(model, s):
    attention = model.decoder.stages[0][0].attention
    channels = attention.projection.in_features
    scale(attention.qkv, s, slice(2 * channels, None))
    attention.projection.weight /= s
    return ["decoder.stages.0.0.attention"]


CASES = {
    "conv": (build_conv, scale_conv),
    "conv_batch": (build_conv_batch, scale_conv_batch),
    "kl": (build_kl, scale_kl),
    "transvae_block": (build_transvae, scale_transvae_block),
    "transvae_values": (build_transvae, scale_transvae_values),
}
cases = pytest.mark.parametrize(("build", "change"), CASES.values(), ids=CASES)
MODELS = [build_conv, build_conv_batch, build_kl, build_transvae]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(3)


def images(n=2):
    return torch.rand(n, 3, 16, 16) * 2 - 1


def told(caplog):
    """What was said about precision, apart from that it is slow here."""
    return [record for record in caplog.records if record.name == "omnivae.training.precision"]


def error(got, want):
    return float((got.detach().float() - want).norm() / want.norm())


def plain(model, dtype):
    """The model in low precision as everybody writes it: weights and activations cast, nothing looked at."""
    for network in (model.encoder, model.decoder):
        for module in network.modules():
            if not isinstance(module, nn.BatchNorm2d):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
    return model.eval()


@torch.no_grad()
def decoded(model, x):
    return model.decode(model.encode(x))


@cases
@pytest.mark.parametrize("factor", [1e7, 1e8])
def test_a_scaled_layer_breaks_plain_float16_and_not_the_protected_model(build, change, factor):
    model, x = build().eval(), images()
    before = decoded(model, x)
    expected = change(model, factor)
    want = decoded(model, x)
    assert error(want, before) < 1e-3, "the float32 function must stay"
    assert not torch.isfinite(decoded(plain(copy.deepcopy(model), torch.float16), x)).all(), "or the test shows nothing"

    for_inference(model, precision="16")
    got = decoded(model, x)
    assert torch.isfinite(got).all()
    assert error(got, want) < 0.02
    assert sorted(model.float32_modules) == expected
    kept = {n: p.dtype for n, p in model.named_parameters() if any(n.startswith(f"{m}.") for m in expected)}
    assert set(kept.values()) == {torch.float32}
    others = [
        n
        for n, p in model.named_parameters()
        if p.dtype == torch.float32 and n not in kept and ".norm." not in n and not n.startswith("posterior")
    ]
    assert [n for n in others if "coder" in n] == []


@pytest.mark.parametrize("build", MODELS)
def test_nothing_is_kept_where_nothing_overflows(build, caplog):
    model, x = build().eval(), images()
    want = decoded(model, x)
    for_inference(model, precision="16")
    assert model.float32_modules == ()
    assert {p.dtype for p in model.encoder.parameters()} >= {torch.float16}
    assert error(decoded(model, x), want) < 0.02
    assert told(caplog) == []


@cases
@pytest.mark.parametrize("factor", [1e4, 1e6])
def test_bfloat16_has_the_range(build, change, factor):
    model, x = build().eval(), images()
    change(model, factor)
    want = decoded(model, x)
    for_inference(model, precision="bf16")
    got = decoded(model, x)
    assert model.float32_modules == ()
    assert torch.isfinite(got).all()
    assert error(got, want) < 0.03


def test_what_vanishes_is_kept_as_well():
    # Black images: activations below float16's smallest number, scaled up again by a normalisation.
    model, x = build_kl().eval(), images()
    block = model.decoder.stages[0].blocks[1]
    scale(block.conv1, 1e-7)
    block.norm2.eps = 1e-24
    want = decoded(model, x)
    assert error(decoded(plain(copy.deepcopy(model), torch.float16), x), want) > 0.02
    for_inference(model, precision="16")
    assert model.float32_modules == ("decoder.stages.0.blocks.1",)
    assert error(decoded(model, x), want) < 0.02


def test_large_logits_of_attention_are_found():
    model, x = build_kl().eval(), images()
    attention = model.encoder.mid[1]
    with torch.no_grad():
        scale(attention.query, 3e3)
        scale(attention.key, 3e3)
    found, _ = find_unsafe(model.encoder, [(x,)])
    assert list(found) == ["mid.1"]
    assert "logits" in str(found["mid.1"])


def test_a_large_residual_stream_keeps_every_block_it_runs_through():
    model, x = build_transvae().eval(), images()
    with torch.no_grad():
        model.encoder.stem.weight *= 1e7
    want = model.encode(x).mean.detach()
    for_inference(model, precision="16")
    got = model.encode(x).mean
    # The shortcuts hand the large values down to the last normalisation; all before it is in float32.
    assert "encoder.stem" in model.float32_modules
    assert "encoder.stages.0.0" in model.float32_modules
    assert error(got, want) < 0.02


def test_that_cpus_emulate_it_is_said(caplog):
    for_inference(build_conv(), precision="16")
    assert "float16 on a CPU is emulated and slow" in caplog.text


def test_messages_name_the_modules_and_the_numbers(caplog):
    model = build_kl().eval()
    scale_kl(model, 1e6)
    for_inference(model, precision="16")
    (record,) = told(caplog)
    assert record.levelno == logging.WARNING
    assert "decoder.stages.0.blocks.1 (convolution reaches " in record.getMessage()
    assert "float16 ends at 65504" in record.getMessage()


@torch.no_grad()
def test_an_image_beyond_the_sample_is_computed_again_and_the_part_stays_in_float32(caplog):
    model = build_conv().eval()
    expected = scale_conv(model, 1e3)
    reference = copy.deepcopy(model)
    for_inference(model, precision="16")
    assert model.float32_modules == ()
    wild = 1e3 * images()
    got = model.encode(wild).mean
    assert error(got, reference.encode(wild).mean) < 0.02
    assert sorted(model.float32_modules) == expected
    (record,) = told(caplog)
    assert "was not finite; it was computed again in float32" in record.getMessage()
    # From then on: without another word, and right for ordinary images too.
    x = images()
    assert error(model.encode(x).mean, reference.encode(x).mean) < 0.02
    model.encode(wild)
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("low", ["16", "bf16"])
@torch.no_grad()
def test_what_is_not_finite_in_float32_either_is_an_error(low):
    model = for_inference(build_kl(), precision=low)
    with pytest.raises(FloatingPointError, match="decoder's result is not finite in float32 either"):
        model.decode(torch.full((1, 4, 8, 8), float("nan")))


@torch.no_grad()
def test_where_the_cause_is_not_found_more_is_kept_until_the_numbers_are_right(monkeypatch, caplog):
    # A finder that finds nothing: the check at the end still has the last word.
    model, x = build_kl().eval(), images()
    scale_kl(model, 1e6)
    want = decoded(model, x)
    monkeypatch.setattr(precision, "find_unsafe", lambda network, calls: ({}, find_unsafe(network, calls)[1]))
    for_inference(model, precision="16")
    assert model.float32_modules == ("decoder",)
    assert error(decoded(model, x), want) < 0.02
    assert "decoder" in caplog.text


def test_own_images_can_be_the_sample():
    model = build_conv().eval()
    expected = scale_conv(model, 1e3)
    for_inference(twin := copy.deepcopy(model), precision="16")
    assert twin.float32_modules == ()
    for_inference(model, precision="16", sample=1e3 * images())
    assert sorted(n for n in model.float32_modules if n.startswith("encoder")) == expected


def test_a_copy_of_a_guarded_model_guards_itself():
    model, x = build_conv().eval(), images()
    expected = scale_conv(model, 1e6)
    for_inference(model, precision="16")
    twin = copy.deepcopy(model)
    assert twin.encoder.guard.network is twin.encoder
    assert sorted(twin.float32_modules) == expected
    torch.testing.assert_close(decoded(twin, x), decoded(model, x))


def test_the_unit_of_a_layer_is_the_block_that_may_read_its_weights():
    network = build_transvae().encoder
    assert unit_of(network, "stages.0.0.conv1") == "stages.0.0"
    assert unit_of(network, "stages.2.0.attention.qkv") == "stages.2.0.attention"
    assert unit_of(network, "stem") == "stem"
    assert unit_of(network, "stages.0") == ""
    assert unit_of(build_conv().encoder, "stages.0.conv") == "stages.0.conv"
    assert outermost(["a.b", "a", "ab"]) == ("a", "ab")


def test_the_margin_is_kept_below_the_end_of_the_range():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False))
    x = torch.ones(1, 1, 2, 2)
    for value, expected in ((0.9, []), (1.1, ["0", "1"])):
        with torch.no_grad():
            network[0].weight.fill_(value * FLOAT16_MAX / MARGIN)
            network[1].weight.fill_(1.0)
        assert sorted(find_unsafe(network, [(x,)])[0]) == expected


def test_weights_that_rounding_destroys_are_kept():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        network[1].weight *= 1e-7
    network[1].bias = None
    x = torch.randn(2, 4, 3, 3)
    want = network(x)
    guard = to_float16(network.eval(), "net", [(x,)])
    assert guard.kept == ("1",)
    assert error(network(x), want) < 0.02


# -- training under autocast


def half():
    return torch.autocast("cpu", torch.float16)


@pytest.mark.parametrize("build", MODELS)
def test_training_keeps_nothing_where_nothing_overflows(build):
    model = build()
    guards = [AutocastGuard(model.encoder, "encoder"), AutocastGuard(model.decoder, "decoder")]
    with half():
        model(images()).reconstruction.mean().backward()
    assert [guard.kept for guard in guards] == [(), ()]


@pytest.mark.parametrize("change", [scale_kl, scale_transvae_block], ids=["kl", "transvae"])
def test_training_takes_an_overflowing_block_out_of_autocast(change, caplog):
    model, x = (build_kl if change is scale_kl else build_transvae)(), images()
    (name,) = change(model, 1e6)
    part, _, inside = name.partition(".")
    network = model.get_submodule(part)
    z = model.encode(x).mean.detach()
    inputs = x if part == "encoder" else z
    want = network(inputs).detach()
    with half():
        assert not torch.isfinite(network(inputs)).all(), "or the test shows nothing"
    guard = AutocastGuard(network, part)
    with half():
        got = network(inputs)
        assert torch.is_autocast_enabled("cpu"), "the guard must leave autocast as it was"
    assert guard.kept == (inside,)
    assert error(got.detach(), want) < 0.02
    assert name in caplog.text
    got.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    guard.remove()
    with half():
        assert not torch.isfinite(network(inputs)).all(), "hooks are gone"


def test_a_step_that_overflows_later_is_repeated_and_batch_statistics_stay_clean(caplog):
    model = conv_vae(in_channels=3, image_size=16, latent_dim=8, channels=(8, 16))
    guard = AutocastGuard(model.encoder, "encoder")
    x = images(8)
    with half():
        model.encoder(x)
    assert guard.kept == ()
    twin = copy.deepcopy(model)
    scale(model.encoder.stages[0].conv, 1e7)
    scale(twin.encoder.stages[0].conv, 1e7)
    with half():
        got = model.encoder(x)
    with torch.no_grad():
        want = twin.encoder(x)
    assert error(got.detach(), want) < 0.02
    assert guard.kept == ("stages.0.conv", "stages.0.norm")
    assert "was not finite" in caplog.text
    for mine, other in zip(model.encoder.buffers(), twin.encoder.buffers(), strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine.float(), other.float(), rtol=0.02, atol=1e-3)
    assert int(model.encoder.stages[0].norm.num_batches_tracked) == 2


def test_what_is_lost_in_float32_too_is_left_to_the_training_loop():
    model = build_kl()
    guard = AutocastGuard(model.decoder, "decoder")
    with half():
        model.decoder(torch.randn(2, 4, 8, 8))
        assert not torch.isfinite(model.decoder(torch.full((2, 4, 8, 8), float("nan")))).any()
    assert guard.kept == ()


def test_a_run_in_float16_goes_through_where_its_encoder_overflows(tmp_path, caplog):
    model = toy_model(channels=[4, 4])
    expected = scale_conv(model, 1e7)
    result, model, _ = run(tmp_path, model, precision="16", max_steps=4, learning_rate=1e-12)
    assert result.complete
    assert all(name in caplog.text for name in expected)
    assert all(math.isfinite(row["train/total"]) for row in training_rows(tmp_path))
    assert not model.encoder._forward_hooks, "the guards are taken off at the end"


def test_a_network_kept_as_a_whole_leaves_autocast_as_it_was():
    network = toy_model().encoder
    scale(network.stages[0].conv, 1e7)
    x = torch.rand(2, 1, 8, 8)
    want = network(x).detach()
    guard = AutocastGuard(network, "encoder")
    guard.keep([""])
    for _ in range(2):
        with half():
            got = network(x)
            assert torch.is_autocast_enabled("cpu")
        assert guard.kept == ("",)
        assert error(got, want) < 0.02
    with half(), pytest.raises(ValueError):
        network(torch.rand(2, 1, 7, 7))
    assert not torch.is_autocast_enabled("cpu"), "an error inside leaves it as it was, too"


class FakeTrainer:
    def __init__(self, precision):
        self.precision = precision


class FakeModule:
    def __init__(self, vae):
        self.vae = vae


def test_the_callback_guards_float16_training_only():
    for precision_, count in (("16-mixed", 2), ("bf16-mixed", 0), ("32-true", 0)):
        callback, module = HalfPrecision(), FakeModule(build_conv())
        callback.on_fit_start(FakeTrainer(precision_), module)
        assert len(callback.guards) == count
        callback.on_fit_end(FakeTrainer(precision_), module)
        assert callback.guards == []
        assert not module.vae.encoder._forward_hooks
