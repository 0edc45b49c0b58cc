"""A run that was stopped and continued is the run that was not."""

import os
import signal

import pytest
import torch
from training_toys import (
    Images,
    assert_equal_tensors,
    last_checkpoint,
    rows,
    run,
    tensors_of,
    toy_model,
    training_rows,
)

from omnivae.losses import KL, NLL, LinearSchedule
from omnivae.training import FitResult

# Timings and the cost of a step differ between two runs; every other number must not.
NOT_COMPARED = {"train/images_per_s", "train/data_wait_share"}


class Killed(Exception):
    """Stands for a kill: raised out of the training loop, so nothing is tidied up."""


def interrupt_at(step, number=signal.SIGINT):
    def draw(model, at):
        if at == step:
            os.kill(os.getpid(), number)

    return draw


def kill_at(step):
    def draw(model, at):
        if at == step:
            raise Killed

    return draw


def nothing(model, step):
    return None


def comparable(directory):
    table = [{k: v for k, v in row.items() if k not in NOT_COMPARED} for row in rows(directory)]
    # A run that is asked to stop may validate once more: a row at a step where none was planned is no fault.
    return [row for row in table if "train/total" in row or row["step"] % SETTINGS["checkpoint_every"] == 0]


SETTINGS = {
    "max_steps": 9,
    "ema": 0.9,
    "checkpoint_every": 3,
    "validate_every": 3,
    "draw_every": 1,
    "schedule": "cosine",
    "warmup_steps": 2,
}


def assert_same_run(left, right):
    a, b = last_checkpoint(left), last_checkpoint(right)
    assert a["global_step"] == b["global_step"]
    # Weights, moving average, optimiser moments, learning-rate schedule, random state: everything a checkpoint holds.
    assert_equal_tensors(tensors_of(a), tensors_of(b))
    assert a["lr_schedulers"] == b["lr_schedulers"]
    assert comparable(left) == comparable(right)
    kl = [rows(directory, "kl_per_dimension.csv") for directory in (left, right)]
    assert kl[0] == kl[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    run(directory, toy_model("batch"), draw=nothing, val=Images(8, seed=1), **SETTINGS)
    return directory


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_the_same_call_continues(number, whole, tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    result, _, saved = run(
        tmp_path, toy_model("batch"), draw=interrupt_at(4, number), val=Images(8, seed=1), **SETTINGS
    )
    assert result.stopped_by == number.name
    assert 4 <= result.step <= 5
    assert not result.complete
    assert last_checkpoint(tmp_path)["global_step"] == result.step
    assert saved
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    result, _, _ = run(tmp_path, toy_model("batch"), draw=nothing, val=Images(8, seed=1), **SETTINGS)
    assert result == FitResult(9, 9, None)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("step", [4, 5, 7])
def test_a_kill_loses_only_the_steps_after_the_last_checkpoint(step, whole, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, toy_model("batch"), draw=kill_at(step), val=Images(8, seed=1), **SETTINGS)
    assert last_checkpoint(tmp_path)["global_step"] == (step - 1) // 3 * 3
    run(tmp_path, toy_model("batch"), draw=nothing, val=Images(8, seed=1), **SETTINGS)
    assert_same_run(whole, tmp_path)


def test_a_kill_between_a_checkpoint_and_its_validation_loses_nothing(whole, tmp_path):
    class KilledByValidation(Images):
        def __getitem__(self, index):
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, toy_model("batch"), draw=nothing, val=KilledByValidation(8, seed=1), **SETTINGS)
    assert last_checkpoint(tmp_path)["global_step"] == 3
    run(tmp_path, toy_model("batch"), draw=nothing, val=Images(8, seed=1), **SETTINGS)
    a, b = last_checkpoint(whole), last_checkpoint(tmp_path)
    assert_equal_tensors(tensors_of(a["state_dict"]), tensors_of(b["state_dict"]))
    assert [row for row in comparable(tmp_path) if "train/total" in row] == [
        row for row in comparable(whole) if "train/total" in row
    ]


def test_a_kill_before_the_first_checkpoint_starts_again(whole, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, toy_model("batch"), draw=kill_at(2), val=Images(8, seed=1), **SETTINGS)
    run(tmp_path, toy_model("batch"), draw=nothing, val=Images(8, seed=1), **SETTINGS)
    assert_same_run(whole, tmp_path)


def test_looking_does_not_change_the_training(whole, tmp_path):
    # Neither pictures nor validation nor checkpoints may move the random stream or the weights.
    def noisy(model, step):
        torch.rand(100)
        model(Images().x[:3])

    settings = SETTINGS | {"draw_every": 2, "checkpoint_every": 4, "validate_every": 2}
    run(tmp_path / "pictures", toy_model("batch"), draw=noisy, val=Images(8, seed=1), **settings)
    run(tmp_path / "blind", toy_model("batch"), val=None, **settings)
    expected = [row for row in comparable(whole) if "train/total" in row]
    for name in ("pictures", "blind"):
        assert training_rows_without_time(tmp_path / name) == expected, name


def training_rows_without_time(directory):
    return [row for row in comparable(directory) if "train/total" in row]


def test_every_step_is_logged_once_and_in_order(whole):
    steps = [row["step"] for row in training_rows(whole)]
    assert steps == list(range(1, 10))
    validated = [row["step"] for row in rows(whole) if "val/total" in row]
    assert validated == [3, 6, 9]


def test_a_second_interruption_is_no_different(whole, tmp_path):
    for step in (2, 5, 8):
        run(tmp_path, toy_model("batch"), draw=interrupt_at(step), val=Images(8, seed=1), **SETTINGS)
    run(tmp_path, toy_model("batch"), draw=nothing, val=Images(8, seed=1), **SETTINGS)
    assert_same_run(whole, tmp_path)


def test_without_an_average_too(tmp_path):
    settings = SETTINGS | {"ema": 0.0}
    run(tmp_path / "whole", draw=nothing, **settings)
    run(tmp_path / "parts", draw=interrupt_at(4), **settings)
    run(tmp_path / "parts", draw=nothing, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_accumulated_batches_continue_at_a_step(tmp_path):
    settings = SETTINGS | {"accumulate": 2, "max_steps": 7}
    run(tmp_path / "whole", draw=nothing, val=Images(8, seed=1), **settings)
    result, _, _ = run(tmp_path / "parts", draw=interrupt_at(4), val=Images(8, seed=1), **settings)
    assert result.step in (4, 5)
    run(tmp_path / "parts", draw=nothing, val=Images(8, seed=1), **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_longer_run_continues_a_shorter_one(tmp_path):
    settings = {"ema": 0.9, "checkpoint_every": 100, "schedule": "constant", "warmup_steps": 2}
    losses = {"nll": NLL(), "kl": KL(weight=LinearSchedule(length=8))}
    run(tmp_path / "whole", losses=losses, max_steps=10, **settings)
    result, _, _ = run(tmp_path / "parts", losses=losses, max_steps=4, **settings)
    assert result == FitResult(4, 4, None)
    result, _, _ = run(tmp_path / "parts", losses=losses, max_steps=10, **settings)
    assert result == FitResult(10, 10, None)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    weights = [row["train/weight/kl"] for row in training_rows(tmp_path / "parts")]
    assert weights == pytest.approx([min(1.0, k / 8) for k in range(10)])


def test_a_complete_run_returns_at_once(tmp_path):
    run(tmp_path, max_steps=3)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result, model, saved = run(tmp_path, max_steps=3)
    assert result == FitResult(3, 3, None)
    assert saved == []
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert_equal_tensors(dict(model.state_dict()), dict(toy_model().state_dict()))


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path, max_steps=3)
    path = tmp_path / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last\.safetensors is not a complete checkpoint"):
        run(tmp_path, max_steps=6)


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_total(tmp_path):
    run(tmp_path, max_steps=12, checkpoint_every=12, validate_every=2, val=Images(8, seed=1))
    validated = {row["step"]: row["val/total"] for row in rows(tmp_path) if "val/total" in row}
    from omnivae.training.checkpoint_io import read_tree

    best = read_tree(tmp_path / "checkpoints" / "best.safetensors")["global_step"]
    assert best == min(validated, key=lambda step: validated[step])
