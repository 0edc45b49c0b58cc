"""The program: its commands, their help, and how it ends."""

import io
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from omnivae.cli import main as program


@pytest.mark.parametrize("command", program.COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_help_has_an_example(omnivae, command, flag):
    outcome = omnivae(command, flag)
    assert outcome.code == 0
    assert f"example: omnivae {command}" in outcome.out
    assert outcome.err == ""


def test_help_of_a_recipe_lists_its_arguments(omnivae):
    outcome = omnivae("train", "--model.recipe", "swin_vae", "--help")
    assert outcome.code == 0
    assert "--model.window_size" in outcome.out


def test_the_programs_own_help_lists_the_commands(omnivae):
    for flag in ("--help", "-h"):
        outcome = omnivae(flag)
        assert outcome.code == 0
        for command in ("train", "evaluate", "reconstruct", "sample", "interpolate", "traverse", "report", "demo"):
            assert f"\n  {command} " in outcome.out


def test_without_a_command_the_help_is_shown_and_the_code_is_2(omnivae):
    outcome = omnivae()
    assert outcome.code == 2
    assert "usage" in outcome.out + outcome.err


def test_version(omnivae):
    import re

    outcome = omnivae("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"omnivae \d+\.\d+\.\d+\n", outcome.out)


def test_unknown_command(refused):
    assert "unknown command 'trian'; did you mean 'train'" in refused("trian")
    assert "train, evaluate" in refused("frobnicate")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        TypeError("bad"),
        OSError("bad"),
        FloatingPointError("bad"),
        ImportError("bad"),
        MemoryError("bad"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_become_one_line(refused, monkeypatch, error):
    from omnivae.cli import look

    def fail(argv):
        raise error

    monkeypatch.setattr(look, "sample", fail)
    assert refused("sample") == "bad"


def test_a_message_of_several_lines_becomes_one(refused, monkeypatch):
    from omnivae.cli import look

    def fail(argv):
        raise ValueError("first\n  second\n")

    monkeypatch.setattr(look, "sample", fail)
    assert refused("sample") == "first second"


def test_debugging_shows_the_traceback(omnivae, monkeypatch):
    def call():
        monkeypatch.setenv("OMNIVAE_DEBUG", "1")
        return program.main(["sample", "nowhere"])

    with pytest.raises(FileNotFoundError):
        call()


def test_an_interruption_ends_with_130(omnivae, monkeypatch):
    from omnivae.cli import look

    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "sample", stop)
    outcome = omnivae("sample")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_a_process_that_is_interrupted_stops_cleanly_and_continues(training, tmp_path):
    run = tmp_path / "run"
    arguments = [
        str(a) for a in training(run, "--training.checkpoint_every", "100000", "--report", "false", steps=100000)
    ]
    command = [sys.executable, "-m", "omnivae", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 120
        # Rows appear while it trains; then is the time to press Ctrl-C.
        while process.poll() is None and time.monotonic() < deadline:
            table = run / "metrics.csv"
            if table.is_file() and len(table.read_text().splitlines()) > 5:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "stopped by SIGINT at step" in out
    assert "the same command continues" in out
    assert "Traceback" not in err
    assert (run / "checkpoints" / "last.safetensors").is_file()
    assert (run / "model" / "model.safetensors").is_file()
    done = int(out.split("at step ")[1].split()[0])
    assert program.main([*arguments, "--training.max_steps", str(done + 2)]) == 0
    steps = [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert sorted(set(steps)) == list(range(1, done + 3))


@pytest.mark.parametrize("given", [["--memory", "1GB"], ["--memory=1GB"]])
def test_a_budget_of_memory_is_not_exceeded_for_speed(omnivae, monkeypatch, given):
    from omnivae.training import device

    asked = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: asked.append(True))
    shape = ["plan", "autoencoder", "--input", "1x28x28", "--measure", "false"]
    omnivae(*shape)
    assert asked == [True]
    omnivae(*shape, *given)
    assert asked == [True]


def test_a_note_on_the_data_is_said_once_and_all_else_as_often_as_it_happens(monkeypatch):
    root, said = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(logging.getLogger("omnivae"), "level", logging.INFO)
    program.set_up_process(saves_memory=True)
    for name in ("omnivae.data.volumes.dataset_dicom", "omnivae.jobs.train"):
        for count in (2, 2, 3):
            logging.getLogger(name).warning("%d series left out", count)
    assert said.getvalue().splitlines() == [f"{n} series left out" for n in (2, 3, 2, 2, 3)]
