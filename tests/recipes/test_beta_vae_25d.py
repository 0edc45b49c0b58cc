"""BetaVae25D against its parts from MONAI and timm, put together here independently of ours."""

import hashlib
import inspect

import pytest
import torch
from torch import nn

from omnivae.losses import KL, MSE
from omnivae.models import VAE
from omnivae.networks.depth import PixelToVoxelHead
from omnivae.recipes import BetaVae25D
from omnivae.recipes.beta_vae_25d import VaeDecoder, VaeEncoder, VaeUpStage

#: VisCy's own test configurations: arguments, number of tensors, of parameters, and the names, shapes and types in one number.
VISCY = {
    "resnet50": (
        {
            "latent_dim": 256,
            "input_spatial_size": (128, 128),
            "decoder_stages": 3,
        },
        (436, 70_503_821, "ab9e9d131cdcb3e5"),
    ),
    "convnext_tiny": (
        {
            "backbone": "convnext_tiny",
            "in_channels": 1,
            "in_stack_depth": 15,
            "out_stack_depth": 15,
            "latent_dim": 256,
            "input_spatial_size": (128, 128),
            "stem_kernel_size": (5, 4, 4),
            "stem_stride": (5, 4, 4),
            "decoder_stages": 3,
        },
        (295, 37_645_553, "ae4b7294ff7774c7"),
    ),
    "compatibility": (
        {"in_channels": 1, "in_stack_depth": 5, "input_spatial_size": (64, 64), "compatible": True},
        (470, 75_563_741, "a86ab8afe8801e63"),
    ),
}
SENTINELS = [
    "encoder.stem.conv.weight",
    "encoder.encoder.layer2.1.bn1.running_mean",
    "encoder.fc_mu.weight",
    "decoder.decoder_stages.0.conv.0.conv.unit0.adn.N.bias",
    "decoder.decoder_stages.3.conv.0.residual.bias",
]
SMALL = {
    "backbone": "test_convnext",
    "in_channels": 2,
    "in_stack_depth": 4,
    "out_stack_depth": 3,
    "latent_dim": 8,
    "input_spatial_size": (32, 64),
    "decoder_stages": 3,
    "conv_blocks": 2,
}


def small(**arguments):
    torch.manual_seed(0)
    return BetaVae25D(**(SMALL | arguments)).eval()


def lively(module):
    """Weights and statistics that leave nothing zero or one."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.3 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
        if name.endswith("running_var"):
            tensor.abs_().add_(1)
    return module


@pytest.mark.parametrize(("arguments", "want"), VISCY.values(), ids=VISCY)
def test_weights_have_viscys_names_and_shapes(arguments, want):
    with torch.device("meta"):
        model = BetaVae25D(**arguments)
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"encoder", "decoder"}
    lines = [
        f"{k} {'x'.join(map(str, v.shape))} {str(v.dtype).removeprefix('torch.')}" for k, v in sorted(state.items())
    ]
    names = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(state), model.num_parameters(), names) == want
    if arguments.get("in_stack_depth") == 5:
        assert set(SENTINELS) <= set(state)


def test_deconvolution_has_viscys_tensors():
    with torch.device("meta"):
        model = BetaVae25D(**(VISCY["convnext_tiny"][0] | {"upsample_mode": "deconv"}))
    assert (len(model.state_dict()), model.num_parameters()) == (250, 36_610_875)


def test_arguments_are_viscys():
    parameters = inspect.signature(BetaVae25D).parameters
    ours = {name: p.default for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY}
    assert ours == {
        "backbone": "resnet50",
        "in_channels": 2,
        "in_stack_depth": 16,
        "out_stack_depth": 16,
        "latent_dim": 1024,
        "input_spatial_size": (256, 256),
        "stem_kernel_size": (2, 4, 4),
        "stem_stride": (2, 4, 4),
        "drop_path_rate": 0.0,
        "decoder_stages": 4,
        "head_expansion_ratio": 2,
        "head_pool": False,
        "upsample_mode": "pixelshuffle",
        "conv_blocks": 2,
        "norm_name": "batch",
        "upsample_pre_conv": None,
    }
    assert inspect.signature(VaeEncoder).parameters["pretrained"].default is False
    defaults = [
        p.default for cls in (VaeEncoder, VaeDecoder, VaeUpStage) for p in inspect.signature(cls).parameters.values()
    ]
    assert not any(isinstance(default, (list, dict)) for default in defaults)


@pytest.mark.parametrize("backbone", ["test_convnext", "test_resnet"])
def test_the_encoder_is_stem_backbone_and_linear_layers(backbone):
    timm = pytest.importorskip("timm")
    sizes = {"input_spatial_size": (64, 128), "in_stack_depth": 4}
    encoder = lively(VaeEncoder(backbone, 1, 4, 8, (64, 128))).eval()
    network = timm.create_model(backbone, features_only=True).eval()
    first = "stem_0" if "convnext" in backbone else "conv1"
    setattr(network, first, nn.Identity())
    network.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in encoder.state_dict().items() if k.startswith("encoder.")}
    )
    x = torch.randn(2, 1, 4, *sizes["input_spatial_size"])
    with torch.no_grad():
        stem = nn.functional.conv3d(x, encoder.stem.conv.weight, encoder.stem.conv.bias, stride=(2, 4, 4))
        image = stem.reshape(2, -1, *stem.shape[3:])
        h = encoder.fc(network(image)[-1].flatten(1))
        got = encoder(x)
        torch.testing.assert_close(got.mean, encoder.fc_mu(h))
        torch.testing.assert_close(got.log_covariance, encoder.fc_logvar(h))
        assert torch.equal(got.z, got.mean)
    assert not torch.equal(encoder.train()(x).z, encoder(x).mean)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("mode", "pre_conv"), [("pixelshuffle", None), ("pixelshuffle", "default"), ("deconv", None)])
def test_a_stage_is_monais_blocks(norm, mode, pre_conv):
    blocks = pytest.importorskip("monai.networks.blocks")
    dynunet = pytest.importorskip("monai.networks.blocks.dynunet_block")
    ours = lively(VaeUpStage(16, 6, 2, mode, 2, norm, pre_conv)).eval()
    theirs = nn.Module()
    if mode == "deconv":
        theirs.upsample = dynunet.get_conv_layer(2, 16, 6, kernel_size=2, stride=2, norm=norm, is_transposed=True)
        theirs.conv = nn.Sequential(blocks.ResidualUnit(2, 6, 6, norm=norm), nn.Conv2d(6, 6, 1))
    else:
        theirs.upsample = blocks.UpSample(2, 16, 4, 2, mode=mode, pre_conv=pre_conv, apply_pad_pool=False)
        theirs.conv = nn.Sequential(blocks.ResidualUnit(2, 4, 6, norm=norm), blocks.ResidualUnit(2, 6, 6, norm=norm))
    theirs.eval().load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 16, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.conv(theirs.upsample(x)))


@pytest.mark.parametrize("pool", [False, True])
def test_the_head_is_monais_blocks(pool):
    blocks = pytest.importorskip("monai.networks.blocks")
    ours = lively(PixelToVoxelHead(40, 2, 3, 2, pool)).eval()
    upsample = blocks.UpSample(2, 40, 10, 2, mode="pixelshuffle", pre_conv=None, apply_pad_pool=pool)
    theirs = nn.Sequential(blocks.Convolution(3, 2, 16, kernel_size=3, padding=(0, 1, 1)), nn.Conv3d(16, 8, 1)).eval()
    theirs.load_state_dict({k.removeprefix("conv."): v for k, v in ours.state_dict().items()}, strict=True)
    x = torch.randn(2, 40, 3, 4)
    with torch.no_grad():
        y = theirs(upsample(x).reshape(2, 2, 5, 6, 8))
        # Channel 4c + 2i + j of a slice is pixel (i, j) of its block.
        want = torch.empty(2, 2, 3, 12, 16)
        for i in range(2):
            for j in range(2):
                want[..., i::2, j::2] = y[:, 2 * i + j :: 4]
        torch.testing.assert_close(ours(x), want)


def test_pixels_of_a_block_start_equal():
    y = PixelToVoxelHead(40, 2, 3, 2, False).eval()(torch.randn(1, 40, 3, 4))
    bias = 0.2  # what the four biases may differ by: uniform in 1 / sqrt(16) around 0
    assert (y[..., ::2, ::2] - y[..., 1::2, 1::2]).abs().max() < 2 * bias + 0.2


def test_outputs_are_named_and_encoding_is_deterministic():
    model = small(out_stack_depth=4)
    x = torch.randn(2, 2, 4, 32, 64)
    output = model(x)
    assert output.recon_x.shape == x.shape
    assert output.mean.shape == output.logvar.shape == output.z.shape == (2, 8)
    assert torch.equal(output.z, output.mean)
    assert torch.equal(model.encode(x).mean, output.mean)
    assert torch.equal(model(x).recon_x, output.recon_x)
    assert not torch.equal(model.train()(x).z, model(x).z)


def test_inputs_that_are_not_square_come_back_not_square():
    assert small().decoder.spatial_size == (1, 2)
    assert small(input_spatial_size=(64, 32))(torch.randn(1, 2, 4, 64, 32)).recon_x.shape == (1, 2, 3, 64, 32)


def test_viscys_sizes_by_default_and_the_inputs_when_asked():
    x = torch.randn(2, 2, 4, 32, 64)
    plain, matched = small(decoder_stages=2), small(decoder_stages=2, match_input=True)
    assert plain.state_dict().keys() == matched.state_dict().keys()
    assert plain(x).recon_x.shape == (2, 2, 3, 16, 32)
    assert matched(x).recon_x.shape == x.shape
    matched.load_state_dict(plain.state_dict())
    with torch.no_grad():
        resampled = nn.functional.interpolate(plain(x).recon_x, size=(4, 32, 64), mode="trilinear", align_corners=False)
        torch.testing.assert_close(matched(x).recon_x, resampled)
    assert plain.sample(2).shape == (2, 2, 3, 16, 32)
    assert matched.sample(2).shape == x.shape


def test_smaller_stacks_are_padded_and_cropped_where_sizes_match():
    model = small(match_input=True)
    assert model(torch.randn(1, 2, 3, 30, 50)).recon_x.shape == (1, 2, 3, 30, 50)
    with pytest.raises(ValueError, match="takes at most 4x32x64"):
        model(torch.randn(1, 2, 5, 32, 64))
    with pytest.raises(ValueError, match="match_input=True"):
        small().decode(torch.randn(1, 8), size=(2, 30, 50))


def test_losses_refuse_reconstructions_of_another_size():
    x = torch.randn(2, 2, 4, 32, 64)
    with pytest.raises(ValueError, match=r"the reconstruction's is \(2, 2, 3, 32, 64\).*match_input=True"):
        MSE()(small()(x), {"x": x})
    model = small(match_input=True).train().enable_gradient_checkpointing()
    output = model(x)
    (MSE()(output, {"x": x}) + KL()(output, {"x": x})).backward()
    assert all(bool(p.grad.any()) for p in model.parameters())


def test_what_would_be_lost_is_refused_or_said():
    with pytest.raises(ValueError, match="latent_dim=9, which 1x2 positions do not divide; set it to 8 or 10"):
        small(latent_dim=9)
    assert small(latent_dim=9, compatible=True)(torch.randn(1, 2, 4, 32, 64)).mean.shape == (1, 9)
    with pytest.raises(ValueError, match="needs at least 2"):
        small(latent_dim=1, compatible=True)
    with pytest.raises(ValueError, match=r"got height 40.*crop to 32, or pad to 64; compatible=True"):
        small(input_spatial_size=(40, 64))
    assert small(input_spatial_size=(40, 64), compatible=True)(torch.randn(1, 2, 4, 40, 64)).mean.shape == (1, 8)
    with pytest.raises(ValueError, match="got height 80"):
        small(backbone="test_resnet", input_spatial_size=(80, 64), compatible=True)
    with pytest.raises(ValueError, match="got height 16; stem and backbone need at least 32"):
        small(input_spatial_size=(16, 64))
    with pytest.warns(UserWarning, match=r"never sees slices \[4\] of 5"):
        small(in_stack_depth=5)
    with pytest.raises(ValueError, match="3 slices, which do not divide the 32 channels"):
        small(backbone="test_resnet", in_stack_depth=6, input_spatial_size=(64, 64))


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "resnetv2_50", "resnet51", "efficientnet_b0"])
def test_other_backbones_are_refused_with_those_that_are_allowed(backbone):
    with pytest.raises(ValueError, match=f"backbone='{backbone}'; expected 'resnet50', 'convnext_tiny'"):
        small(backbone=backbone)


def test_saved_models_never_download(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    asked, create = [], timm.create_model

    def offline(name, *, pretrained, **arguments):
        asked.append(pretrained)
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    model = small(pretrained=True, match_input=True)
    model.save_pretrained(tmp_path)
    loaded = VAE.from_pretrained(tmp_path)
    assert asked == [True, False]
    x = torch.randn(1, 2, 4, 32, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x).recon_x, model(x).recon_x)
