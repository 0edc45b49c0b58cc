"""Checkpoints: any nesting comes back, nothing is pickled, a failed write leaves the old file."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from omnivae.training.checkpoint_io import SafetensorsCheckpointIO, read_tree, write_tree

TREE = {
    "epoch": 3,
    "lr": 1e-4,
    "name": "run",
    "flag": True,
    "nothing": None,
    "empty": {},
    "none_in_list": [None, [], ()],
    "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.arange(6.0).reshape(2, 3)}, 1: {}},
    "betas": (0.9, 0.999),
    "nested": [1, [2, (3, {"a": torch.tensor([True, False])})]],
    "int64": torch.tensor([2**40]),
    "bf16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "no_elements": torch.zeros(0, 3),
    "mixed_keys": {1: "int", "1": "str", 2.5: "float", False: "bool", None: "none"},
    "looks_like_ours": {"$tensor": "t0", "$tuple": [1], "$dict": []},
    "unicode": "β — ✓",
}


def same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        assert [type(k) for k in left] == [type(k) for k in right]
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            same(a, b)
    else:
        assert left == right


def test_every_kind_of_value_comes_back(tmp_path):
    write_tree(tmp_path / "a.safetensors", TREE)
    same(read_tree(tmp_path / "a.safetensors"), TREE)


@pytest.mark.parametrize("tree", [{}, [], None, 3, {"x": torch.ones(2)}, torch.ones(2)])
def test_small_trees(tree, tmp_path):
    write_tree(tmp_path / "a.safetensors", tree)
    same(read_tree(tmp_path / "a.safetensors"), tree)


def test_infinities_and_nan_come_back(tmp_path):
    write_tree(tmp_path / "a.safetensors", {"best": float("inf"), "worst": float("-inf"), "t": torch.tensor(torch.inf)})
    again = read_tree(tmp_path / "a.safetensors")
    assert again["best"] == float("inf")
    assert again["worst"] == float("-inf")
    assert torch.isinf(again["t"])


def test_tensors_that_share_memory_and_views_come_back(tmp_path):
    base = torch.arange(12.0)
    tree = {
        "a": base,
        "b": base,
        "view": base.reshape(3, 4).t(),
        "row": base[3:5],
        "grad": base.clone().requires_grad_(),
    }
    write_tree(tmp_path / "a.safetensors", tree)
    again = read_tree(tmp_path / "a.safetensors")
    for name, tensor in tree.items():
        assert torch.equal(again[name], tensor)
    assert not again["grad"].requires_grad


def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    write_tree(path, {"step": 1, "w": torch.ones(3)})
    before = path.read_bytes()

    def broken(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match="no space"):
        write_tree(path, {"step": 2, "w": torch.zeros(3)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_a_failing_rename_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    write_tree(path, {"step": 1})
    before = path.read_bytes()

    def broken(self, target):
        raise OSError("rename failed")

    monkeypatch.setattr(type(path), "replace", broken)
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="rename"):
        write_tree(path, {"step": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_something_that_cannot_be_stored_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.safetensors"
    write_tree(path, {"step": 1})
    for value in (object(), {1, 2}, lambda: None, torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="in a checkpoint; expected tensors"):
            write_tree(path, {"x": value})
    assert read_tree(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "last.safetensors"
    write_tree(path, TREE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"last\.safetensors is not a complete checkpoint"):
        read_tree(path)


def test_foreign_tensors_are_no_checkpoint(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no training state"):
        read_tree(tmp_path / "model.safetensors")


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a checkpoint was pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr(torch, "save", refused)
    monkeypatch.setattr(torch, "load", refused)
    write_tree(tmp_path / "a.safetensors", TREE)
    same(read_tree(tmp_path / "a.safetensors"), TREE)
    # The container is the documented one: a length, a JSON header, raw tensors.
    content = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert "tree" in header["__metadata__"]


def test_the_plugin_reads_what_it_writes(tmp_path):
    io = SafetensorsCheckpointIO()
    io.save_checkpoint({"global_step": 4, "w": torch.ones(2)}, tmp_path / "deep" / "c.safetensors")
    assert io.load_checkpoint(tmp_path / "deep" / "c.safetensors")["global_step"] == 4
    io.remove_checkpoint(tmp_path / "deep" / "c.safetensors")
    io.remove_checkpoint(tmp_path / "deep" / "c.safetensors")
    assert not (tmp_path / "deep" / "c.safetensors").exists()
    with pytest.raises(ValueError, match="storage options"):
        io.save_checkpoint({}, tmp_path / "c.safetensors", storage_options={"a": 1})
