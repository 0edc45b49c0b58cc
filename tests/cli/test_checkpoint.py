"""``omnivae inspect-checkpoint`` from the command line: what it prints, writes and refuses."""

import hashlib
import json

import pytest
import torch
import yaml

from omnivae import VAE, MaisiVAE
from omnivae.cli.main import main
from omnivae.hub import known
from omnivae.networks.maisi import to_monai


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    model = MaisiVAE(num_channels=(32, 32), num_res_blocks=(1, 1))
    torch.save({"unet_state_dict": to_monai(model.state_dict()), "epoch": 3}, tmp_path / "autoencoder.pt")
    return tmp_path / "autoencoder.pt"


def test_everything_is_printed_and_written(file, tmp_path, capsys):
    out = tmp_path / "model"
    arguments = [str(file), "-o", str(out), "--json", str(tmp_path / "found.json"), "--trials", "false"]
    arguments += ["--config-out", str(tmp_path / "maisi.yaml"), "--key-map", str(tmp_path / "map.json"), "--depth", "1"]
    assert main(["inspect-checkpoint", *arguments]) == 0
    printed = capsys.readouterr().out
    tensors = len(to_monai(VAE.from_pretrained(out).state_dict()))
    assert f"autoencoder.pt: {tensors} tensors under unet_state_dict" in printed
    assert "MONAI AutoencoderKlMaisi" in printed
    assert f"Loaded {tensors}/{tensors} compatible weights" in printed
    assert "equal to monai" in printed
    assert "encoder.blocks" in printed
    assert {"config.json", "model.safetensors", "README.md", "key_map.json"} <= {p.name for p in out.iterdir()}
    assert isinstance(VAE.from_pretrained(out), MaisiVAE)
    names = json.loads((tmp_path / "map.json").read_text())["names"]
    assert names["quant_conv_mu.conv.bias"]["name"] == "posterior.quant_conv_mu.conv.bias"
    assert len(names) == tensors
    assert json.loads((tmp_path / "found.json").read_text())["proof"]["equal"] is True
    section = yaml.safe_load((tmp_path / "maisi.yaml").read_text())["model"]
    assert section["recipe"] == "maisi_vae"
    assert section["num_channels"] == [32, 32]


def test_a_long_heading_is_whole_and_other_weights_are_named(tmp_path, capsys):
    tensors = to_monai(MaisiVAE(num_channels=(32, 32), num_res_blocks=(1, 1)).state_dict())
    beside = {f"a_rather_long_name_{i}": i for i in range(6)}
    torch.save({"state_dict": tensors, "ema": {"shadow": tensors}, **beside}, tmp_path / "last.ckpt")
    assert main(["inspect-checkpoint", str(tmp_path / "last.ckpt"), "--trials", "false", "--depth", "1"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("a_rather_long_name_4, a_rather_long_name_5")
    assert "other weights in this file: ema.shadow (choose with --entry)" in rest


def test_what_both_assume_is_not_called_proven(tmp_path, capsys):
    # Sixteen channels allow 16 groups, 8, 4 ...: the weights do not say which, and MONAI's class is built from the same guess.
    torch.manual_seed(0)
    model = MaisiVAE(num_channels=(16, 16), num_res_blocks=(1, 1), norm_num_groups=8)
    torch.save(to_monai(model.state_dict()), tmp_path / "narrow.pt")
    assert main(["inspect-checkpoint", str(tmp_path / "narrow.pt"), "--trials", "false"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "norm_num_groups=16" in printed
    assert "which the file does not say" in printed
    settings = "{norm_num_groups: 8, norm_eps: 1.0e-6, modality: CT}"
    assert main(["inspect-checkpoint", str(tmp_path / "narrow.pt"), "--trials", "false", "--set", settings]) == 0
    assert "which the file does not say" not in " ".join(capsys.readouterr().out.split())


def test_a_load_into_a_guess_is_counted_and_only_partial_on_demand(file, tmp_path, capsys):
    guess, out = tmp_path / "guess", tmp_path / "out"
    MaisiVAE(num_channels=(32, 64), num_res_blocks=(1, 1)).save_pretrained(guess)
    assert main(["inspect-checkpoint", str(file), "--into", str(guess)]) == 1
    assert "keys initialized randomly" in capsys.readouterr().out
    assert main(["inspect-checkpoint", str(file), "--into", str(guess), "-o", str(out)]) == 2
    assert "nothing was loaded" in capsys.readouterr().err
    assert not out.exists()
    assert main(["inspect-checkpoint", str(file), "--into", str(guess), "-o", str(out), "--partial", "true"]) == 1
    assert "Loaded in part" in (out / "README.md").read_text()


def test_published_weights_are_fetched_and_checked(file, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "pretrained" / "maisi_vae"
    arguments = ["inspect-checkpoint", "--download", "maisi", "-o", str(folder), "--url", file.as_uri()]
    arguments += ["--trials", "false", "--depth", "1"]
    assert main(arguments) == 2  # not NVIDIA's file
    assert "917cfb1e49631c8a713e3bb7c758fbca" in capsys.readouterr().err
    assert not (folder / "autoencoder.pt").exists()
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    ours = {"maisi": known.Published("a stand-in", "autoencoder.pt", (), md5, known.RESEARCH_ONLY)}
    monkeypatch.setattr("omnivae.jobs.checkpoint.PUBLISHED", ours)
    assert main(arguments) == 0
    assert "research and evaluation only" in capsys.readouterr().out
    assert isinstance(VAE.from_pretrained(folder), MaisiVAE)
    file.unlink()  # it is not fetched again
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no file given"),
        (["nothing.pt"], "no checkpoint at"),
        (["--download", "maisy"], "did you mean 'maisi'"),
        (["x.pt", "--download", "maisi"], "expected one of them"),
        (["x.pt", "--partial", "true"], "name it with --into"),
        (["x.pt", "--layout", "AutoencoderXL"], "no checkpoint at"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect-checkpoint", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_an_unknown_layout_lists_the_known_ones(file, capsys):
    assert main(["inspect-checkpoint", str(file), "--layout", "AutoencoderXL"]) == 2
    assert "MONAI AutoencoderKlMaisi" in capsys.readouterr().err
