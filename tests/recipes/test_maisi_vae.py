"""MaisiVAE against MONAI's AutoencoderKlMaisi: names, numbers, sizes, options."""

import copy
import hashlib

import pytest
import torch
from torch import nn

from omnivae.losses import KL, L1
from omnivae.models import VAE
from omnivae.networks.maisi import from_monai, to_monai
from omnivae.recipes import MaisiVAE
from omnivae.recipes.volumes import INTENSITY, MAISI_LICENCES, MAISI_MASK

SMALL = {"num_channels": (8, 8, 16), "num_res_blocks": (1, 1, 1), "norm_num_groups": 4}
#: Every option that changes the function.
OPTIONS = {
    "released": {},
    "widths": {"num_res_blocks": (2, 1, 2), "in_channels": 2, "out_channels": 3, "latent_dim": 2},
    "convtranspose": {"use_convtranspose": True},
    "attention": {
        "attention_levels": (False, True, True),
        "with_encoder_nonlocal_attn": True,
        "with_decoder_nonlocal_attn": True,
    },
    "projected attention": {
        "attention_levels": (False, False, True),
        "with_decoder_nonlocal_attn": True,
        "include_fc": True,
        "use_combined_linear": True,
    },
}


@pytest.fixture
def maisi():
    return pytest.importorskip("monai.apps.generation.maisi.networks.autoencoderkl_maisi")


def small(**options):
    torch.manual_seed(0)
    return MaisiVAE(**(SMALL | options)).eval()


def monai_of(maisi, **options):
    """MONAI's model with the same options and weights that leave nothing near zero."""
    options = SMALL | options
    options["latent_channels"] = options.pop("latent_dim", 4)
    defaults = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "attention_levels": (False, False, False)}
    defaults |= {"num_splits": 1, "dim_split": 1, "save_mem": False}
    torch.manual_seed(1)
    model = maisi.AutoencoderKlMaisi(**(defaults | options)).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim == 1 else p[0].numel() ** -0.5)
    return model


def relative(got, want):
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


def fingerprint(state_dict):
    """Names, shapes and types in one number."""
    lines = [
        f"{k} {'x'.join(map(str, v.shape))} {str(v.dtype).removeprefix('torch.')}"
        for k, v in sorted(state_dict.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# The fingerprints are those of the published file's key dump and of the mask autoencoder as MONAI builds it.
@pytest.mark.parametrize(
    ("options", "tensors", "parameters", "names"),
    [({}, 130, 20_944_897, "51421166d2ce8931"), (MAISI_MASK, 114, 5_256_509, "39897b31b620b0b9")],
)
def test_released_configurations_have_the_released_tensors(options, tensors, parameters, names):
    with torch.device("meta"):
        model = MaisiVAE(**options)
    theirs = to_monai(model.state_dict())
    assert (len(theirs), model.num_parameters(), fingerprint(theirs)) == (tensors, parameters, names)
    assert model.encoder.stride == 4


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_numbers_are_monais(maisi, monkeypatch, options, dtype, tolerance):
    if dtype == torch.float64:
        # MONAI's own normalisation computes in float32 whatever it is given.
        monkeypatch.setattr(maisi.MaisiGroupNorm3D, "forward", nn.GroupNorm.forward)
    theirs, ours = monai_of(maisi, **options).to(dtype), small(**options).to(dtype)
    ours.load_state_dict(from_monai(theirs.state_dict()), strict=True)
    x = torch.rand(2, options.get("in_channels", 1), 8, 12, 16, dtype=dtype)
    with torch.no_grad():
        mean, sigma = theirs.encode(x)
        posterior = ours.encode(x)
        assert relative(posterior.mean, mean) < tolerance
        assert relative(posterior.stddev, sigma) < tolerance
        assert relative(ours.decode(mean), theirs.decode(mean)) < tolerance


def test_sigma_is_clamped_as_monais(maisi):
    theirs, ours = monai_of(maisi), small()
    for value in (100.0, -100.0):
        nn.init.constant_(theirs.quant_conv_log_sigma.conv.bias, value)
        ours.load_state_dict(from_monai(theirs.state_dict()))
        x = torch.rand(1, 1, 4, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(ours.encode(x).stddev, theirs.encode(x)[1])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_names_go_there_and_back_without_loss(maisi, options):
    theirs = monai_of(maisi, **options)
    state = theirs.state_dict()
    back = to_monai(from_monai(state))
    assert list(back) == list(state)
    assert all(back[name] is tensor for name, tensor in state.items())
    theirs.load_state_dict(to_monai(small(**options).state_dict()), strict=True)


@pytest.mark.parametrize("depth", range(1, 10))
def test_any_depth_and_size_comes_back_and_every_slice_is_seen(depth):
    model = small()
    x = torch.rand(1, 1, depth, 5, 7)
    with torch.no_grad():
        output = model(x)
        assert output.reconstruction.shape == x.shape
        assert output.mean.shape == (1, 4, -(-depth // 4), 2, 2)
        for place in (0, depth - 1):
            changed = x.clone()
            changed[:, :, place] += 1
            assert not torch.equal(model.encode(changed).mean, output.mean)


@pytest.mark.parametrize("convtranspose", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_change_nothing(axis, convtranspose):
    whole = small(use_convtranspose=convtranspose).double()
    slabs = small(use_convtranspose=convtranspose, num_splits=2, dim_split=axis).double()
    slabs.load_state_dict(whole.state_dict())
    size = [4, 4, 4]
    size[axis] = 24
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        posterior = whole.encode(x)
        torch.testing.assert_close(slabs.encode(x).mean, posterior.mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(slabs.decode(posterior), whole.decode(posterior), atol=1e-12, rtol=0)


def test_slabs_that_monai_would_compute_wrongly_are_refused():
    model = small(num_splits=2)
    with pytest.raises(ValueError, match=r"num_splits=2 along axis 0 of 16 voxels.*at least 12: set num_splits to 1"):
        model.encode(torch.rand(1, 1, 16, 8, 8))
    with pytest.raises(ValueError, match="num_splits=2 along axis 0 of 28 voxels"):
        model.decode(torch.rand(1, 4, 7, 2, 2))
    with pytest.raises(ValueError, match="dim_split=3"):
        small(num_splits=2, dim_split=3)


def test_rounding_to_half_needs_autocast_on_a_gpu():
    model = small(norm_float16=True)
    assert set(model.state_dict()) == set(small().state_dict())
    x = torch.rand(1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"norm_float16=True on cpu without autocast.*norm_float16=False"):
        model.encode(x)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="norm_float16=True on cpu;"):
        model.encode(x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rounding_to_half_is_monais_on_a_gpu(maisi):
    theirs = monai_of(maisi, norm_float16=True).cuda()
    ours = small(norm_float16=True).cuda()
    ours.load_state_dict(from_monai(theirs.state_dict()))
    x = torch.rand(1, 1, 8, 8, 8, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.float16):
        mean = theirs.encode(x)[0]
        assert relative(ours.encode(x).mean, mean.float()) < 3e-3
        assert relative(ours.decode(mean).float(), theirs.decode(mean).float()) < 3e-3


def test_checkpointing_keeps_gradients_and_recomputes_each_block():
    model = small().train()
    x = torch.rand(1, 1, 4, 8, 8)
    gradients, calls = [], []
    handles = [
        block.register_forward_pre_hook(lambda block, *_: calls.append(block))
        for network in (model.encoder, model.decoder)
        for block in network.blocks
    ]
    for checkpointed in (False, True):
        model.enable_gradient_checkpointing(checkpointed)
        model.zero_grad()
        calls.clear()
        torch.manual_seed(0)
        output = model(x)
        (L1()(output, {"x": x}) + KL()(output, {"x": x})).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert len(calls) == (1 + checkpointed) * len(handles)
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_bfloat16_autocast_stays_near_float32():
    model = small()
    x = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        want = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(x)
    assert got.mean.dtype == got.logvar.dtype == torch.float32
    assert relative(got.mean, want.mean) < 0.05
    assert relative(got.reconstruction, want.reconstruction) < 0.05


@pytest.mark.parametrize("modality", ["CT", "MR", None])
def test_the_intensity_contract_is_saved_with_the_model(tmp_path, modality):
    model = small(modality=modality, num_splits=2, dim_split=2)
    model.save_pretrained(tmp_path)
    loaded = VAE.from_pretrained(tmp_path)
    assert isinstance(loaded, MaisiVAE)
    assert loaded.value_range == (0.0, 1.0)
    assert loaded.statistics.get("intensity") == (None if modality is None else INTENSITY[modality])
    x = torch.rand(1, 1, 4, 5, 24)
    with torch.no_grad():
        assert torch.equal(loaded(x).reconstruction, model(x).reconstruction)


def test_intensities_and_licences_are_those_of_the_publishers():
    assert INTENSITY["CT"]["window"] == [-1000, 1000]
    assert INTENSITY["CT"]["range"] == [0, 1]
    assert "research" in MAISI_LICENCES["autoencoder_epoch273.pt"]
    assert "Open Model" in MAISI_LICENCES["autoencoder_v1.pt"]


def test_the_mask_autoencoder_has_its_own_channels():
    model = MaisiVAE(**(MAISI_MASK | SMALL)).eval()
    x = torch.rand(1, 8, 4, 5, 6)
    output = model(x)
    assert output.reconstruction.shape == (1, 125, 4, 5, 6)
    with pytest.raises(ValueError, match=r"the reconstruction's is \(1, 125, 4, 5, 6\)"):
        L1()(output, {"x": x})


def test_stages_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="3 widths, 2 numbers of residual blocks"):
        MaisiVAE(num_res_blocks=(1, 1))
    with pytest.raises(ValueError, match="groups that divide every width"):
        MaisiVAE(num_channels=(8, 12), num_res_blocks=(1, 1), norm_num_groups=8)
    with pytest.raises(ValueError, match="modality='PET'"):
        MaisiVAE(modality="PET")


def test_copies_are_independent():
    model = small()
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.encoder.blocks[0].conv.conv.weight)
    assert model.encoder.blocks[0].conv.conv.weight.any()
