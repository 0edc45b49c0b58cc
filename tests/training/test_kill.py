"""Ten runs killed with SIGKILL at random moments, and continued, end bit-equal to the run that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnivae.files import remove_leftovers

DRIVER = Path(__file__).with_name("kill_driver.py")
KILLED_RUNS = 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_ten_killed_runs_end_bit_equal_to_the_one_left_alone(tmp_path, capsys):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), str(KILLED_RUNS), "7"],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n  {result['steps']} steps, a checkpoint every 4; left alone: {result['expected'][:12]}")
        for row in result["runs"]:
            kills = ", ".join(f"{k['after_s']} s (checkpoint {k['checkpoint']})" for k in row["kills"])
            print(
                f"  run {row['run']}: killed after {kills}; ended {row['digest'][:12]} {'equal' if row['equal'] else 'DIFFERENT'}"
            )
    assert len(result["runs"]) == KILLED_RUNS
    assert all(row["kills"] for row in result["runs"])
    # Some kills must have met a run that had something to lose.
    assert any(kill["checkpoint"] > 0 for row in result["runs"] for kill in row["kills"])
    for row in result["runs"]:
        assert row["steps"] == result["steps"]
        assert row["equal"], row
        for kill in row["kills"]:
            # Rows are written through at each checkpoint: no more steps are lost than since then.
            assert kill["rows"] >= kill["checkpoint"]


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    mine, its = tmp_path / f".last.{os.getpid()}.tmp", tmp_path / f".last.{dead.stdout.strip()}.tmp"
    other = tmp_path / "last.safetensors"
    for path in (mine, its, other):
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, other.name])
