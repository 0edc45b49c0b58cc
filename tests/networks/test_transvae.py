import itertools
import math

import pytest
import torch

from omnivae.networks.transvae import Downsample, TransVAEDecoder, TransVAEEncoder, Upsample
from omnivae.recipes.baselines import CNN_VARIANTS, VIT_VARIANTS, cnn_vae, vit_vae
from omnivae.recipes.transvae import TransVAE

#: Parameters as published, in millions.
PUBLISHED = {
    ("tiny", 16): 44,
    ("base", 16): 140,
    ("large", 16): 545,
    ("huge", 16): 1300,
    ("giant", 16): 2300,
    ("large", 8): 719,
}


def small(**arguments):
    torch.manual_seed(0)
    defaults = {"depths": [1, 1, 1], "base_dims": [16, 16, 32], "compression_ratio": 4, "head_dim": 16, "latent_dim": 4}
    return TransVAE("tiny", **(defaults | arguments))


def million_parameters(build):
    with torch.device("meta"):
        return build().num_parameters() / 1e6


@pytest.mark.parametrize(("variant", "ratio"), PUBLISHED)
def test_published_sizes(variant, ratio):
    got = million_parameters(lambda: TransVAE(variant, ratio, latent_dim=32 if ratio == 16 else 16))
    assert got == pytest.approx(PUBLISHED[variant, ratio], rel=0.01)


@pytest.mark.parametrize("variant", CNN_VARIANTS)
@pytest.mark.parametrize("build", [cnn_vae, vit_vae])
def test_baselines_are_of_transvaes_size(build, variant):
    assert CNN_VARIANTS.keys() == VIT_VARIANTS.keys()
    want = million_parameters(lambda: TransVAE(variant))
    assert million_parameters(lambda: build(variant)) == pytest.approx(want, rel=0.04)


@pytest.mark.parametrize(("variant", "ratio"), PUBLISHED)
def test_shapes_of_every_variant(variant, ratio):
    with torch.device("meta"):
        model = TransVAE(variant, ratio)
        features = model.encoder(torch.empty(2, 3, 256, 256))
        latent = model.posterior.projection(features)
        assert latent.shape == (2, 64, 256 // ratio, 256 // ratio)
        assert model.decoder(latent[:, :32]).shape == (2, 3, 256, 256)


ABLATIONS = {
    "as published": {},
    "plain ffn": {"use_conv_ffn": False},
    **{f"ffn {kind}": {"ffn": kind} for kind in ("standard", "dwconv", "fullconv")},
    "sequential stem": {"stem": "sequential-conv"},
    "single stem of stride 4": {"depths": [1], "base_dims": [32]},
    "sequential stem of stride 4": {"depths": [1], "base_dims": [32], "stem": "sequential-conv"},
    "one convolutional stage": {"depths": [1], "base_dims": [32], "num_conv_stages": 1},
    "four stages, one block missing": {"depths": [1, 0, 1, 1], "base_dims": [16, 16, 16, 32], "compression_ratio": 8},
    "transformer from the start": {"num_conv_stages": 0},
    "layer norm": {"norm": "layer"},
    "no dc path": {"use_dc_path": False},
    "absolute positions": {"use_rope": False, "use_absolute_positions": True, "input_resolution": 16},
    "no positions": {"use_rope": False},
    "wide ffn": {"mlp_ratio": 2.0},
    "narrow ffn": {"mlp_ratio": 0.5},
    "one channel": {"in_channels": 1, "likelihood": "bernoulli"},
}


@pytest.mark.parametrize("arguments", ABLATIONS.values(), ids=ABLATIONS)
def test_every_ablation_runs_and_trains_every_parameter(arguments):
    model = small(**arguments)
    x = torch.rand(2, arguments.get("in_channels", 3), 16, 24)
    output = model(x)
    assert output.reconstruction.shape == x.shape
    assert output.mean.shape == (2, 4, 16 // model.encoder.stride, 24 // model.encoder.stride)
    target = torch.randn_like(output.reconstruction)
    (output.reconstruction - target).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_ablations_are_different_functions():
    x = torch.rand(1, 3, 16, 16)
    outputs = {}
    for name, arguments in ABLATIONS.items():
        if arguments.get("in_channels", 3) == 3:
            with torch.no_grad():
                outputs[name] = small(**arguments).eval()(x).reconstruction
    same = [(a, b) for (a, u), (b, v) in itertools.combinations(outputs.items(), 2) if torch.allclose(u, v, atol=1e-6)]
    # fullconv is the default, and standard is what use_conv_ffn=False means
    assert same == [("as published", "ffn fullconv"), ("plain ffn", "ffn standard")] or same == [
        ("as published", "ffn fullconv"),
        ("as published", "sequential stem"),
        ("plain ffn", "ffn standard"),
    ]


def test_without_positions_the_network_does_not_know_where_it_is():
    shared = {"compression_ratio": 4, "num_conv_stages": 0, "head_dim": 16, "ffn": "standard"}
    encoder = TransVAEEncoder(3, [32], [2], **shared, use_rope=False).eval()
    x = torch.randn(1, 3, 16, 16)
    rolled = x.roll((4, 8), (2, 3))  # by whole patches: tokens are permuted
    with torch.no_grad():
        torch.testing.assert_close(encoder(rolled), encoder(x).roll((1, 2), (2, 3)), rtol=1e-4, atol=1e-5)
        rotary = TransVAEEncoder(3, [32], [2], **shared, use_rope=True).eval()
        assert (rotary(rolled) - rotary(x).roll((1, 2), (2, 3))).abs().max() > 1e-3


@pytest.mark.parametrize("arguments", [{}, {"use_rope": False, "use_absolute_positions": True}, {"norm": "layer"}])
@pytest.mark.parametrize("size", [(128, 128), (256, 256), (512, 512), (96, 160), (33, 50), (1, 1)])
def test_a_model_for_256_runs_at_any_size(arguments, size):
    model = small(
        depths=[0, 1, 1], base_dims=[8, 8, 16], compression_ratio=16, head_dim=8, input_resolution=256, **arguments
    ).eval()
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        posterior = model.encode(x)
        assert posterior.mean.shape == (1, 4, *(math.ceil(n / 16) for n in size))
        assert model.decode(posterior).shape == x.shape


def saved_bytes(model, x):
    """Bytes kept for the backward pass, each storage once, weights left out.

    Tensors saved inside a checkpointed block go to checkpoint's own hooks, which drop them; what it keeps instead (the
    block's input) is saved outside and counted here.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # alive until backward, so addresses are not used twice

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    return output, sum(kept.values())


def gradients(model, x):
    torch.manual_seed(1)
    model.zero_grad()
    output, kept = saved_bytes(model, x)
    (output.reconstruction.square().sum() + output.mean.square().sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, kept


@pytest.mark.parametrize("build", [small, lambda: small(ffn="dwconv", norm="layer", stem="sequential-conv")])
def test_gradient_checkpointing_gives_the_same_gradients_from_less_memory(build):
    model = build().double().train()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    want, kept = gradients(model, x)
    got, kept_less = gradients(model.enable_gradient_checkpointing(), x)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-6, msg=name)
    assert kept_less < 0.4 * kept
    again, kept_again = gradients(model.enable_gradient_checkpointing(False), x)
    assert kept_again == kept
    assert all(torch.equal(again[name], want[name]) for name in want)


def dc_down_by_hand(x, out_channels):
    b, c, *size = x.shape
    dim = len(size)
    y = torch.empty(b, c * 2**dim, *(n // 2 for n in size), dtype=x.dtype)
    for channel in range(c):
        for i, offset in enumerate(itertools.product((0, 1), repeat=dim)):
            y[:, channel * 2**dim + i] = x[(slice(None), channel, *(slice(o, None, 2) for o in offset))]
    group = y.shape[1] // out_channels
    return torch.stack([y[:, i * group : (i + 1) * group].mean(1) for i in range(out_channels)], 1)


def dc_up_by_hand(x, out_channels):
    b, c, *size = x.shape
    dim = len(size)
    repeats = out_channels * 2**dim // c
    y = torch.empty(b, out_channels, *(2 * n for n in size), dtype=x.dtype)
    for channel in range(out_channels):
        for i, offset in enumerate(itertools.product((0, 1), repeat=dim)):
            y[(slice(None), channel, *(slice(o, None, 2) for o in offset))] = x[:, (channel * 2**dim + i) // repeats]
    return y


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("fine", "coarse"), [(8, 8), (8, 16), (16, 8)])
@pytest.mark.parametrize("last", [False, True])
def test_the_dc_path_averages_going_down_and_duplicates_going_up(dim, fine, coarse, last):
    down, up = Downsample(fine, coarse, dim, True), Upsample(coarse, fine, dim, True)
    size = (4, 6, 2)[:dim]
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    layout = formats.get(dim, torch.contiguous_format) if last else torch.contiguous_format
    x = torch.randn(2, fine, *size).to(memory_format=layout)
    z = torch.randn(2, coarse, *size).to(memory_format=layout)
    plain_down, plain_up = Downsample(fine, coarse, dim, False), Upsample(coarse, fine, dim, False)
    plain_down.load_state_dict(down.state_dict())
    plain_up.load_state_dict(up.state_dict())
    torch.testing.assert_close(down(x) - plain_down(x), dc_down_by_hand(x, coarse), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(up(z) - plain_up(z), dc_up_by_hand(z, fine), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("stem", ["single-conv", "sequential-conv"])
@pytest.mark.parametrize("depths", [[1, 1, 1], [1]])
def test_signals_and_volumes(dim, stem, depths):
    dims = [8, 8, 16][-len(depths) :]
    shared = {"compression_ratio": 4, "dim": dim, "head_dim": 8, "stem": stem}
    x = torch.randn(2, 1, *(8, 12, 4)[:dim])
    features = TransVAEEncoder(1, dims, depths, **shared)(x)
    assert features.shape == (2, 16, *(n // 4 for n in x.shape[2:]))
    assert TransVAEDecoder(16, 2, dims, depths, **shared)(features).shape == (2, 2, *x.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [torch.contiguous_format, torch.channels_last])
def test_one_layout_from_end_to_end(dtype, asked):
    # A layout lost on the way costs a copy of every activation behind it.
    model = small(depths=[1, 1, 1], base_dims=[16, 16, 32]).eval().to(dtype, memory_format=asked)
    wrong = []

    def look(name):
        def hook(module, inputs, output):
            for what, tensor in (("input", inputs[0]), ("output", output)):
                if tensor.ndim == 4 and not tensor.is_contiguous(memory_format=torch.channels_last):
                    wrong.append((name, what))

        return hook

    for part in ("encoder", "decoder"):
        for name, module in model.get_submodule(part).named_modules():
            if name:
                module.register_forward_hook(look(f"{part}.{name}"))
    x = torch.rand(2, 3, 32, 48, dtype=dtype).to(memory_format=asked)
    with torch.no_grad():
        model(x)
    assert wrong == []


def test_the_layout_can_be_left_alone():
    model = small(num_conv_stages=3, use_dc_path=False).eval()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        want = model(x)
        model.encoder.channels_last = model.decoder.channels_last = False
        got = model(x)
    assert not got.reconstruction.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.reconstruction, want.reconstruction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["autocast", "bf16"])
def test_bf16_stays_close_to_float32(mode):
    model = small(depths=[2, 2, 2]).eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        want = model(x)
        if mode == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                got = model(x)
        else:
            got = model.bfloat16()(x)

    def relative(a, b):
        return float((a.float() - b).norm() / b.norm())

    assert relative(got.mean, want.mean) < 0.03
    assert relative(got.reconstruction, want.reconstruction) < 0.03


def test_batches_do_not_mix():
    model = small().eval()
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        together = model(x).reconstruction
        for i in range(3):
            torch.testing.assert_close(model(x[i : i + 1]).reconstruction, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_names_of_saved_tensors():
    # Pinned: saved models hold these names.
    got = set(small(stem="single-conv").state_dict())
    block = {
        f"{name}.{kind}"
        for name in ("attention.qkv", "attention.projection", "ffn.expand", "ffn.spatial", "ffn.contract")
        for kind in ("weight", "bias")
    }
    block |= {"norm1.weight", "norm2.weight", "attention.q_norm.weight", "attention.k_norm.weight"}
    conv = {"norm1.weight", "norm2.weight", "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    want = {"posterior.projection.weight", "posterior.projection.bias"}
    want |= {f"encoder.stages.{i}.0.{key}" for i in (0, 1) for key in conv}
    want |= {f"encoder.stages.2.0.{key}" for key in block} | {f"decoder.stages.0.0.{key}" for key in block}
    want |= {f"decoder.stages.{i}.0.{key}" for i in (1, 2) for key in conv}
    want |= {f"encoder.downsamples.{i}.conv.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    want |= {f"decoder.upsamples.{i}.conv.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    want |= {
        f"{name}.{kind}" for name in ("encoder.stem", "decoder.conv_in", "decoder.head") for kind in ("weight", "bias")
    }
    want |= {"encoder.norm_out.weight", "decoder.norm_out.weight"}
    assert got == want


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"unknown variant 'tinny'.*expected one of tiny, base, large, huge, giant"):
        TransVAE("tinny")
    with pytest.raises(ValueError, match="variant 'tiny' has no compression ratio 8; it has 16"):
        TransVAE("tiny", 8)
    with pytest.raises(ValueError, match="expected one depth >= 0 and one width for each stage"):
        small(depths=[1, 1])
    with pytest.raises(ValueError, match="got compression_ratio=6"):
        small(compression_ratio=6)
    with pytest.raises(ValueError, match="got compression_ratio=2 with 3 stages; expected a power of two, at least 4"):
        small(compression_ratio=2)
    with pytest.raises(ValueError, match="got ffn='conv'; expected 'standard', 'dwconv' or 'fullconv'"):
        small(ffn="conv")
    with pytest.raises(ValueError, match="got norm='batch'; expected 'rms' or 'layer'"):
        small(norm="batch")
    with pytest.raises(ValueError, match="got stem='patch'; expected 'single-conv' or 'sequential-conv'"):
        small(stem="patch")
    with pytest.raises(ValueError, match="got num_conv_stages=4; expected 0 to 3"):
        small(num_conv_stages=4)
    with pytest.raises(ValueError, match="the shortcut of the DC path needs 24 to divide 64"):
        small(base_dims=[16, 24, 32])
    with pytest.raises(ValueError, match="TransVAEEncoder is built without one"):
        small().encoder(torch.zeros(1, 3, 16, 16), torch.zeros(1, 2))
