"""Model directories: written whole, read exactly, never executed."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vae_test_networks import VAETestOther, build, build_vector, images

from omnivae.likelihoods import CategoricalLikelihood, GaussianLikelihood
from omnivae.models import VAE, storage


@pytest.fixture
def model():
    return build().eval()


@pytest.mark.parametrize(
    "make",
    [
        build,
        build_vector,
        lambda: build(dim=3),
        lambda: build(likelihood=GaussianLikelihood("learned")),
        lambda: build(likelihood=CategoricalLikelihood(4, (0, 1)), value_range=(0, 1)),
    ],
    ids=["spatial", "vector", "volume", "learned", "categorical"],
)
def test_a_model_comes_back_bit_for_bit(make, tmp_path):
    model = make()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.statistics = {"image_size": [8, 8], "mean": [0.5], "note": "text"}
    model.save_pretrained(tmp_path / "m")
    again = VAE.from_pretrained(tmp_path / "m")
    assert type(again) is VAE
    assert not again.training
    assert again.value_range == model.value_range
    assert again.image_size == model.image_size
    assert again.statistics == model.statistics
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    x = (images(*[8] * model.dim) + 1) / 2
    model.eval()
    with torch.no_grad():
        for one, two in zip(model(x), again(x), strict=True):
            assert torch.equal(one, two)
        torch.manual_seed(1)
        one = model.sample(2, size=[8] * model.dim)
        torch.manual_seed(1)
        assert torch.equal(again.sample(2, size=[8] * model.dim), one)


def test_a_loaded_model_can_be_trained_and_saved_again(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    again = VAE.from_pretrained(str(tmp_path / "a"))
    assert all(p.requires_grad for p in again.parameters())
    again.train()(images(4, 4)).reconstruction.sum().backward()
    again.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors", "statistics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_weights_keep_their_precision(tmp_path):
    for dtype in (torch.float64, torch.bfloat16):
        model = build().to(dtype)
        model.save_pretrained(tmp_path / str(dtype))
        again = VAE.from_pretrained(tmp_path / str(dtype))
        assert {p.dtype for p in again.parameters()} == {dtype}


def test_the_directory_holds_data_only(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {"config.json", "model.safetensors", "statistics.json", "README.md"}
    for path in (tmp_path / "m").iterdir():
        content = path.read_bytes()
        assert content[:1] != b"\x80"  # a pickle's first byte
        assert content[:2] != b"PK"  # a torch archive's
        if path.suffix == ".json":
            json.loads(content)
    assert set(load_file(tmp_path / "m" / "model.safetensors")) == set(model.state_dict())


def test_the_encoder_is_saved_once(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert (
        sum(t.numel() for t in tensors.values()) == model.num_parameters() == sum(p.numel() for p in model.parameters())
    )


def test_saving_twice_replaces_the_first(tmp_path):
    first, second = build(), build(latent=7)
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path)
    assert VAE.from_pretrained(tmp_path).latent_dim == 7


def test_a_run_is_found_by_its_model_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    assert VAE.from_pretrained(tmp_path / "run").num_parameters() == model.num_parameters()


def test_loading_leaves_the_random_state_alone(model, tmp_path):
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    VAE.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_temporary_file_is_left(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert [p for p in tmp_path.rglob("*") if "tmp" in p.name or p.name.startswith(".")] == []


def test_a_failed_save_leaves_the_old_file_whole_and_nothing_else(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        build(latent=7).save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_write_atomic_replaces_in_one_step(tmp_path, monkeypatch):
    target, seen = tmp_path / "file", []
    target.write_bytes(b"old")
    replace = Path.replace

    def watched(self, other):
        seen.append((self.read_bytes(), Path(other).read_bytes()))
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", watched)
    storage.write_atomic(target, b"new")
    assert seen == [(b"new", b"old")]
    assert target.read_bytes() == b"new"


def edited(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_configuration_of_other_shapes_is_refused_with_the_first_of_them(model, tmp_path):
    model.save_pretrained(tmp_path)
    edited(tmp_path, lambda c: c["model"]["posterior"].update(latent_dim=7))
    with pytest.raises(ValueError) as error:
        VAE.from_pretrained(tmp_path)
    message = str(error.value)
    assert "posterior.projection.weight" in message
    assert "(10, 8, 1, 1) in the file" in message
    assert "(14, 8, 1, 1) in the model" in message
    assert str(tmp_path) in message


def test_missing_and_unexpected_weights_are_named_and_nothing_is_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.extra"] = torch.zeros(2)
    del tensors["decoder.patches.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        VAE.from_pretrained(tmp_path)
    assert "1 missing: decoder.patches.bias" in str(error.value)
    assert "1 unexpected: encoder.extra" in str(error.value)
    fresh = build()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit this VAE"):
        storage.load_exactly(fresh, tensors, "here")
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


def test_another_class_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a VAE, not a VAETestOther"):
        VAETestOther.from_pretrained(tmp_path)
    build(VAETestOther).save_pretrained(tmp_path)
    assert type(VAE.from_pretrained(tmp_path)) is VAETestOther
    assert type(VAETestOther.from_pretrained(tmp_path)) is VAETestOther


@pytest.mark.parametrize(
    "config",
    [{"component": "StandardNormal"}, {"component": "LinearSchedule"}, {"a": 1}, [1], "text", None],
    ids=["prior", "schedule", "dict", "list", "text", "null"],
)
def test_a_configuration_of_something_else_is_refused(model, tmp_path, config):
    model.save_pretrained(tmp_path)
    edited(tmp_path, lambda c: c.update(model=config))
    with pytest.raises(ValueError):
        VAE.from_pretrained(tmp_path)


def test_a_configuration_that_names_unknown_code_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    edited(tmp_path, lambda c: c["model"].update(prior={"component": "os.system", "command": "true"}))
    with pytest.raises(ValueError, match=r"unknown component 'os\.system'"):
        VAE.from_pretrained(tmp_path)


def test_an_unknown_argument_in_the_configuration_gets_a_suggestion(model, tmp_path):
    model.save_pretrained(tmp_path)
    edited(tmp_path, lambda c: c["model"]["posterior"].update(latent_dims=3))
    with pytest.raises(ValueError, match="GaussianPosterior has no argument 'latent_dims'; did you mean 'latent_dim'"):
        VAE.from_pretrained(tmp_path)


def test_missing_directories_and_files(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: the directory does not exist"):
        VAE.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected config\.json and model\.safetensors"):
        VAE.from_pretrained(tmp_path / "empty")
    model.save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        VAE.from_pretrained(tmp_path / "half")


def test_a_newer_format_asks_for_an_upgrade(model, tmp_path):
    model.save_pretrained(tmp_path)
    edited(tmp_path, lambda c: c.update(format=storage.FORMAT + 1))
    with pytest.raises(ValueError, match=f"newer omnivae.*format {storage.FORMAT + 1}.*upgrade"):
        VAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "statistics.json"])
def test_a_truncated_file_is_named(model, tmp_path, name):
    model.save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=name):
        VAE.from_pretrained(tmp_path)


def test_a_file_of_weights_is_told_from_a_model_directory(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"weights")
    with pytest.raises(FileNotFoundError, match=r"is a file.*inspect-checkpoint .*weights.pt -o DIR"):
        storage.find_model(tmp_path / "weights.pt")
