"""BetaVae25D is proven by VisCy's own class, of which the released package has no way to leave ImageNet's weights out."""

import sys
import types

import pytest
import timm
import torch
from torch import nn

from omnivae import BetaVae25D
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
    settings = {"backbone": "test_convnext", "input_spatial_size": [32, 64]}
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
