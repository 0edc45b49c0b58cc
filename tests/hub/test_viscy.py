"""BetaVae25D is proven by VisCy's own class, of which the released package has no way to leave ImageNet's weights out."""

import sys
import types

import numpy as np
import pytest
import timm
import torch
from torch import nn

from omnivae import BetaVae25D, BetaVaeMonai
from omnivae.data.volumes import contract_pipeline, field_phantom
from omnivae.hub import load_checkpoint
from omnivae.jobs.checkpoint import examine_checkpoint
from omnivae.recipes.beta_vae_25d import VaeEncoder

ARGUMENTS = ("backbone", "in_channels", "in_stack_depth", "latent_dim", "input_spatial_size")


class Released(nn.Module):
    """VisCy 0.4's class from the outside: its parts, its names, and a download for every new model."""

    shift = 0.0

    def __init__(self, **arguments):
        super().__init__()
        timm.create_model(arguments["backbone"], pretrained=True)
        stem = {name: arguments[name] for name in ("stem_kernel_size", "stem_stride")}
        self.encoder = VaeEncoder(**{name: arguments[name] for name in ARGUMENTS}, **stem)
        self.decoder = BetaVae25D(**arguments).decoder
        self.encoder.fc_mu.register_forward_hook(lambda module, x, mean: mean + self.shift)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_proof_is_by_the_released_class(tmp_path, monkeypatch, wrong):
    release = types.ModuleType("viscy.representation.vae")
    monkeypatch.setattr(Released, "__module__", release.__name__)
    release.BetaVae25D = Released
    monkeypatch.setitem(sys.modules, "viscy_models", None)  # not installed
    for name, module in (("viscy", types.ModuleType("viscy")), ("viscy.representation", types.ModuleType("viscy"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, release.__name__, release)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("weights are downloaded"))
    monkeypatch.setattr(Released, "shift", 0.1 if wrong else 0.0)

    model = BetaVae25D("test_convnext", 1, 4, 4, 8, (32, 64), decoder_stages=3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    settings = {"backbone": "test_convnext", "input_spatial_size": [32, 64], "match_input": True}
    found = examine_checkpoint(tmp_path / "weights.pt", settings=settings, trials=False)
    assert found.proof is not None, found.unproven
    assert found.proof.reference.startswith("viscy")
    assert found.proof.equal is not wrong


def test_without_viscy_the_reader_is_told_what_to_install(tmp_path, monkeypatch):
    for name in ("viscy_models", "viscy"):
        monkeypatch.setitem(sys.modules, name, None)
    torch.save(
        BetaVae25D("test_convnext", 1, 4, 4, 8, (32, 32), decoder_stages=3).state_dict(), tmp_path / "weights.pt"
    )
    found = examine_checkpoint(tmp_path / "weights.pt", settings={"backbone": "test_convnext"}, trials=False)
    assert found.proof is None
    assert found.unproven.endswith("pip install viscy")
    assert found.sound


@pytest.mark.parametrize("make", ["stacks", "monai"])
def test_match_input_is_a_setting(tmp_path, make):
    """Document 1's half-sized reconstructions: as VisCy's unless the user asks for the input's size."""
    if make == "stacks":
        model = BetaVae25D(
            "resnet18", 1, 4, 4, 8, (64, 64), stem_kernel_size=(4, 4, 4), stem_stride=(4, 4, 4), decoder_stages=3
        )
        settings, whole, half = {}, (4, 64, 64), (4, 32, 32)
    else:
        model = BetaVaeMonai(2, (1, 10, 10), 1, 4, (4, 8), (2, 2))
        settings, whole, half = {"in_shape": [1, 10, 10]}, (10, 10), (12, 12)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    x = torch.rand(1, 1, *whole)
    with torch.no_grad():
        same = load_checkpoint(tmp_path / "weights.pt", settings=settings)(x).recon_x
        mended = load_checkpoint(tmp_path / "weights.pt", settings=settings | {"match_input": True})(x).recon_x
        mode = "trilinear" if len(whole) == 3 else "bilinear"
        resampled = nn.functional.interpolate(same, size=whole, mode=mode, align_corners=False)
    assert same.shape[2:] == half
    assert mended.shape == x.shape
    assert torch.equal(mended, resampled)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"match_inputs": True}, "did you mean 'match_input'"),
        ({"latent_dim": 16}, "the weights have latent_dim=8: leave it out"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, setting, message):
    torch.save(
        BetaVae25D("test_convnext", 1, 4, 4, 8, (32, 32), decoder_stages=3).state_dict(), tmp_path / "weights.pt"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "weights.pt", settings={"backbone": "test_convnext"} | setting)
    assert load_checkpoint(tmp_path / "weights.pt", settings={"backbone": "test_convnext", "latent_dim": 8}).latent_dim


def test_weights_of_z_scores_see_z_scores(tmp_path):
    """VisCy trains on (x - mean) / std: a range of (-1, 1) would cut reconstructions off at one standard deviation."""
    original = BetaVae25D("test_convnext", 2, 4, 4, 8, (32, 32), decoder_stages=3)
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    model = load_checkpoint(tmp_path / "weights.pt", settings={"backbone": "test_convnext"})
    assert model.value_range == (-10, 10)
    field = field_phantom(3, size=(4, 32, 32), cells=2).volume
    seen = contract_pipeline(model.statistics["intensity"])(field).volume.array
    values = field.array.astype(np.float64)
    z = (values - values.mean((1, 2, 3), keepdims=True)) / values.std((1, 2, 3), keepdims=True)
    assert np.abs(z).max() < 10
    np.testing.assert_allclose(seen, z, atol=1e-5)
    stated = {"backbone": "test_convnext", "value_range": [0, 1]}
    other = load_checkpoint(tmp_path / "weights.pt", settings=stated)
    assert other.value_range == (0, 1)
    assert "intensity" not in other.statistics
