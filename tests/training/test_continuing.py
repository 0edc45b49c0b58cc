"""What a continued run takes from its checkpoint, and what from its options."""

import pytest
import torch
from training_toys import Images, assert_equal_tensors, last_checkpoint, rows, run, tensors_of, toy_model, training_rows

from omnivae.losses import KL, NLL, LinearSchedule
from omnivae.training.checkpoint_io import read_scalars, write_tree


class Killed(Exception):
    """Stands for a kill: raised out of the training loop, so nothing is tidied up."""


def wide():
    # Several channels in and out: only then do the two layouts of a convolution's weight differ in memory.
    return toy_model(channels=[4, 6])


def killed_at(directory, step, *, losses=None, val=None, **settings):
    def kill(model, at):
        if at == step:
            raise Killed

    with pytest.raises(Killed):
        run(directory, wide(), losses, val=val, draw=kill, draw_every=1, **settings)


@pytest.mark.parametrize("channels_last", [True, False])
def test_moments_of_a_continued_run_belong_to_the_same_weights(tmp_path, channels_last):
    settings = {"max_steps": 8, "checkpoint_every": 3, "channels_last": channels_last, "ema": 0.9}
    run(tmp_path / "whole", wide(), **settings)
    killed_at(tmp_path / "killed", 5, **settings)
    run(tmp_path / "killed", wide(), **settings)
    assert_equal_tensors(
        tensors_of(last_checkpoint(tmp_path / "whole")), tensors_of(last_checkpoint(tmp_path / "killed"))
    )


def test_a_continued_run_says_at_which_step(tmp_path, caplog):
    caplog.set_level("INFO", logger="omnivae")
    settings = {"max_steps": 5, "checkpoint_every": 3}
    killed_at(tmp_path, 4, **settings)
    assert "continuing" not in caplog.text
    run(tmp_path, wide(), **settings)
    assert "continuing at step 3 of 5" in caplog.text


def test_a_changed_learning_rate_decay_and_beta_hold_when_the_run_continues(tmp_path):
    settings = {"checkpoint_every": 3, "schedule": "constant"}
    run(tmp_path, wide(), max_steps=3, learning_rate=1e-2, weight_decay=0.1, **settings)
    run(tmp_path, wide(), max_steps=6, learning_rate=1e-4, weight_decay=0.0, betas=(0.5, 0.9), **settings)
    assert [row["train/lr"] for row in training_rows(tmp_path)] == [1e-2] * 3 + [1e-4] * 3
    (group,) = last_checkpoint(tmp_path)["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["betas"]) == (0.0, (0.5, 0.9))


def test_a_worse_model_does_not_replace_the_best_after_a_kill(tmp_path):
    # Step 3 is saved, then validated and found the best; the run is killed before it saves again.
    settings = {
        "max_steps": 6,
        "checkpoint_every": 3,
        "validate_every": 3,
        "learning_rate": 1e-6,
        "val": Images(8, seed=1),
    }

    def rising():
        return {"nll": NLL(), "kl": KL(weight=LinearSchedule(start=0.0, end=1e6, length=6))}

    killed_at(tmp_path, 5, losses=rising(), **settings)
    best = tmp_path / "checkpoints" / "best.safetensors"
    run(tmp_path, wide(), rising(), **settings)
    totals = {row["step"]: row["val/total"] for row in rows(tmp_path) if "val/total" in row}
    assert totals[6] > totals[3]
    assert read_scalars(best)["global_step"] == 3


def test_a_kill_between_model_and_checkpoint_does_not_leave_an_old_model_beside_a_finished_run(tmp_path):
    from omnivae.training import callbacks

    saved = []

    def save(trained):
        if len(saved) == 1:
            saved.append("cut off")
            raise Killed
        saved.append("written")

    original = callbacks.Checkpoints.__init__

    def patched(self, directory, every, save_model):
        original(self, directory, every, save)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "__init__", patched)
        with pytest.raises(Killed):
            run(tmp_path, wide(), max_steps=6, checkpoint_every=3)
        run(tmp_path, wide(), max_steps=6, checkpoint_every=3)
    assert saved == ["written", "cut off", "written"]


def test_the_steps_before_an_error_are_in_the_table(tmp_path):
    killed_at(tmp_path, 5, max_steps=8, checkpoint_every=8)
    assert [row["step"] for row in training_rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_scalars_of_a_checkpoint_are_read_without_its_tensors(tmp_path):
    write_tree(tmp_path / "a.safetensors", {"step": 3, "state": {"w": torch.ones(2)}, "betas": (0.5, 0.9)})
    assert read_scalars(tmp_path / "a.safetensors") == {"step": 3, "state": {"w": None}, "betas": (0.5, 0.9)}
