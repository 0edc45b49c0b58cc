"""Files that appear whole or not at all."""

import errno
import os
import resource
import subprocess
import sys

import pytest
import torch

from omnivae.files import CannotWrite, replace_atomic, system_error, write_atomic

FULL = "/dev/full"
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason="needs /dev/full")


def beside(path):
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def test_a_file_appears_with_its_folders(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", b"new")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_file_has_the_permissions_of_any_other(tmp_path):
    from omnivae.training.checkpoint_io import write_tree

    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "a", b"new")
    write_tree(tmp_path / "b.safetensors", {"x": torch.zeros(3)})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def fail(to):
        to.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        CannotWrite, match=r"cannot write .*a\.txt: No space left on device; the one written before is untouched: free"
    ):
        replace_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@needs_full
def test_a_full_disk_says_so(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    beside(path).symlink_to(FULL)
    with pytest.raises(CannotWrite, match="No space left on device") as raised:
        write_atomic(path, b"new")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"


def test_other_errors_are_not_taken_for_it(tmp_path):
    def fail(to):
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        replace_atomic(tmp_path / "a.txt", fail)


def test_an_error_of_the_system_is_found_in_the_text_of_a_library():
    assert system_error(RuntimeError("I/O error: No space left on device (os error 28)")).errno == errno.ENOSPC
    assert system_error(RuntimeError("something else")).errno == errno.EIO


TRAINING = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training_toys import run, toy_model
directory = Path(sys.argv[2])
run(directory, toy_model(), max_steps=4, checkpoint_every=2)
size = (directory / "checkpoints" / "last.safetensors").stat().st_size
# Smaller than a checkpoint, larger than everything else: the kernel refuses to write on, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
try:
    run(directory, toy_model(), max_steps=8, checkpoint_every=2)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_run_that_can_write_no_more_stops_with_a_sentence_and_keeps_its_last_checkpoint(tmp_path):
    from omnivae.training.checkpoint_io import checkpoint_step, read_tree

    folder = os.path.join(os.path.dirname(__file__), "training")
    ended = subprocess.run(
        [sys.executable, "-c", TRAINING, folder, str(tmp_path / "run")],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    sentence = ended.stdout.strip().splitlines()[-1]
    assert sentence.startswith(f"cannot write {tmp_path}/run/checkpoints/last.safetensors: File too large")
    assert "the one written before is untouched" in sentence
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    assert checkpoint_step(last) == 4
    assert read_tree(last)["global_step"] == 4
    assert [p.name for p in last.parent.iterdir() if p.name.startswith(".")] == []
