"""Files of foreign weights are data: whatever else is in them is named and refused, or read as plain data."""

import argparse
import os
import pathlib

import pytest
import torch
from safetensors.torch import save_file

from omnivae.hub import read_checkpoint

WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.ones(3)}


class Code:
    """What a malicious file does on being opened: leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("entry", ["", "state_dict", "model_state_dict", "unet_state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nested_dictionaries_are_looked_through(tmp_path, entry, zipped):
    file = tmp_path / "weights.pt"
    content = {entry: WEIGHTS, "epoch": 7, "optimizer": {"lr": [1, 2]}} if entry else WEIGHTS
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(file)
    assert found.entry == entry
    assert {k: v.tolist() for k, v in found.tensors.items()} == {k: v.tolist() for k, v in WEIGHTS.items()}
    assert found.description.get("epoch") == (7 if entry else None)
    assert found.num_parameters == 15


def test_safetensors_and_a_folder_with_its_configuration(tmp_path):
    save_file(WEIGHTS, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"norm_num_groups": 8, "scaling_factor": 0.18215}')
    found = read_checkpoint(tmp_path)
    assert found.hyper_parameters == {"norm_num_groups": 8, "scaling_factor": 0.18215}
    assert read_checkpoint(tmp_path / "diffusion_pytorch_model.safetensors").config == {}


def test_hyper_parameters_of_lightning_are_plain_data(tmp_path):
    file = tmp_path / "last.ckpt"
    stated = argparse.Namespace(lr=0.1, channels=(1, 2), where=pathlib.PurePosixPath("/x"))
    torch.save({"state_dict": WEIGHTS, "hyper_parameters": {"model": stated, "depth": 3}}, file)
    assert read_checkpoint(file).hyper_parameters.items() >= {"lr": 0.1, "channels": [1, 2], "depth": 3}.items()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_code_is_refused_and_nothing_runs(tmp_path, zipped):
    trace, file = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"state_dict": WEIGHTS, "more": Code(trace)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"calls code \(posix.mkdir\).*nothing of it was executed.*state_dict"):
        read_checkpoint(file)
    assert not trace.exists()


def test_a_pickled_module_is_refused_by_its_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_files_are_named_as_such(tmp_path, kind, share):
    whole, cut = tmp_path / "whole", tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pt")
    big = {"weight": torch.randn(5000)}
    if kind == "safetensors":
        save_file(big, whole)
    else:
        torch.save(big, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"truncated|damaged"):
        read_checkpoint(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>log in</html>", "web page"),
        (b"no checkpoint at all", "damaged, or no checkpoint|calls code"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path, content, message):
    file = tmp_path / "autoencoder.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(file)


def test_other_contents_are_explained(tmp_path):
    file = tmp_path / "x.pt"
    torch.save(torch.zeros(2), file)
    with pytest.raises(ValueError, match="one tensor"):
        read_checkpoint(file)
    torch.save({"a": {"w": torch.zeros(1)}, "b": {"w": torch.ones(1)}}, file)
    with pytest.raises(ValueError, match="choose one of a, b"):
        read_checkpoint(file)
    assert read_checkpoint(file, entry="b").tensors["w"] == 1
    with pytest.raises(ValueError, match="no entry 'c'"):
        read_checkpoint(file, entry="c")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pt")


def test_weights_that_lie_deeper_are_found_and_others_are_named(tmp_path):
    file = tmp_path / "run.pt"
    state = {"state": {0: {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}}
    torch.save({"model_ema": {"shadow": WEIGHTS, "decay": 0.99}, "optimizer": state}, file)
    found = read_checkpoint(file)
    assert found.entry == "model_ema.shadow"
    assert list(found.tensors) == list(WEIGHTS)
    assert found.alternatives == ()
    torch.save({"model": WEIGHTS, "ema": {"shadow": WEIGHTS}, "optimizer": state}, file)
    found = read_checkpoint(file)
    assert (found.entry, found.alternatives) == ("model", ("ema.shadow",))
    assert read_checkpoint(file, entry="ema.shadow").alternatives == ("model",)
    torch.save({"generator": WEIGHTS, "discriminator": WEIGHTS}, file)
    with pytest.raises(ValueError, match=r"choose one of generator, discriminator with --entry"):
        read_checkpoint(file)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_a_bare_pickle_would_call_is_named(tmp_path, protocol):
    import os
    import pickle

    class Code:
        def __reduce__(self):
            return os.system, ("exit 1",)

    file = tmp_path / "model.pt"
    file.write_bytes(pickle.dumps({"state_dict": Code()}, protocol=protocol))
    with pytest.raises(
        ValueError, match=r"is a pickle that calls code \((?:posix|nt)\.system\).*nothing of it was executed"
    ):
        read_checkpoint(file)


def test_weights_in_eight_bits_are_looked_at(tmp_path):
    from omnivae.jobs.checkpoint import examine_checkpoint

    from . import originals

    eight = torch.float8_e4m3fn
    tensors = {k: v.to(eight) if v.ndim > 1 else v for k, v in originals.monai_kl().state_dict().items()}
    torch.save(tensors, tmp_path / "eight.pt")
    found = examine_checkpoint(tmp_path / "eight.pt", trials=False)
    assert found.sound
    assert found.proof.equal
    name = "encoder.blocks.0.conv.weight"
    torch.save(tensors | {name: torch.full_like(tensors[name].float(), torch.nan).to(eight)}, tmp_path / "eight.pt")
    assert name in examine_checkpoint(tmp_path / "eight.pt", trials=False).problems[0]
