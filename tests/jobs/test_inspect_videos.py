"""A folder of videos: shown as clips of frames, and trained as such where nothing is said."""

import json
import shutil

import numpy as np
import pytest

from omnivae import DataConfig
from omnivae.cli.main import main
from omnivae.data.video_writing import write_video
from omnivae.jobs.choose import choose_for
from omnivae.jobs.inspect import inspect_data

pytest.importorskip("av")


def write(folder, sizes, *, rate=12, suffix="mkv"):
    """Write one video for each (frames, height, width, channels), every one another."""
    for seed, size in enumerate(sizes):
        values = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
        write_video(folder / f"{seed}.{suffix}", values, rate=rate)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write(tmp_path_factory.mktemp("videos") / "clips", [(20, 16, 24, 3)] * 4, suffix="mp4")


def test_videos_are_shown_as_clips(clips, capsys):
    assert main(["inspect", str(clips)]) == 0
    said = capsys.readouterr().out
    rows = {
        cells[1].strip(): cells[2].strip()
        for cells in (line.split("│") for line in said.splitlines())
        if len(cells) == 4
    }
    assert rows["videos"] == "4"
    assert rows["frames"] == "20"
    assert rows["height x width"] == "16 x 24"
    assert rows["frames a second"] == "12"
    assert rows["clips of 16 frames"].startswith("4 train, 2 val")
    assert "not pictures" not in said
    assert "20 x 16" not in said
    assert "recipe: video_vae" in said
    assert "--data.num_frames 16" in said


def test_without_a_configuration_a_folder_of_videos_trains_a_model_of_videos(clips, tmp_path, capsys):
    small = ["--data.num_frames", "2", "--training.batch_size", "1"]
    command = ["train", "--data.path", str(clips), "--output", str(tmp_path / "run"), "--training.max_steps", "1"]
    assert main([*command, *small, "--report", "false"]) == 0
    assert "chosen from the clips: recipe video_vae" in capsys.readouterr().err
    import omnivae

    model = omnivae.VAE.from_pretrained(tmp_path / "run")
    assert isinstance(model, omnivae.VideoVAE)
    assert model.in_channels == 3


def test_the_proposed_configuration_can_be_run(clips, tmp_path):
    file = tmp_path / "c.yaml"
    assert main(["inspect", str(clips), "--config-out", str(file)]) == 0
    smaller = ["--data.num_frames", "2", "--model.base_channels", "8", "--training.batch_size", "1"]
    command = ["train", "--config", str(file), "--output", str(tmp_path / "run"), "--training.max_steps", "1"]
    assert main([*command, *smaller, "--report", "false"]) == 0


def test_videos_that_differ_get_one_form_of_clip(tmp_path):
    folder = write(tmp_path / "mixed", [(5, 16, 24, 3), (20, 40, 80, 3), (9, 16, 16, 1)])
    chosen = choose_for(DataConfig(str(folder)))
    assert chosen["model"]["recipe"] == "video_vae"
    assert chosen["data"] == {"num_frames": 5, "image_size": 16, "channels": 3}
    found = inspect_data(DataConfig(str(folder)))
    assert found.problems == []
    assert found.videos["frames"] == [5, 9, 20]
    assert (found.sizes["smallest"], found.sizes["largest"]) == ([16, 16], [40, 80])
    assert found.channels == {3: 2, 1: 1}
    assert found.configuration["data"]["num_frames"] == 5
    # What is given is left as it is.
    given = choose_for(DataConfig(str(folder), num_frames=2, image_size=24, channels=1))
    assert "data" not in given


def test_short_videos_alike_need_no_setting(tmp_path):
    folder = write(tmp_path / "alike", [(3, 16, 24, 3)] * 3)
    assert "data" not in choose_for(DataConfig(str(folder)))
    assert inspect_data(DataConfig(str(folder))).needs == []


def test_bad_and_equal_videos_are_named(tmp_path, capsys):
    folder = write(tmp_path / "bad", [(3, 16, 24, 3)] * 4)
    shutil.copy(folder / "1.mkv", folder / "copy.mkv")
    (folder / "text.mp4").write_text("this is no video")
    (folder / "notes.txt").write_text("notes")
    assert main(["inspect", str(folder), "--json", str(tmp_path / "f.json"), "--picture", str(tmp_path / "s.png")]) == 1
    assert "1 video cannot be used" in capsys.readouterr().out
    found = json.loads((tmp_path / "f.json").read_text())
    assert [name for name, _ in found["unreadable"]] == ["text.mp4"]
    assert [sorted(name for name, _ in group) for group in found["duplicates"]] == [["1.mkv", "copy.mkv"]]
    assert found["other_files"] == {".txt": 1}
    assert found["other_media"] == {}
    assert (tmp_path / "s.png").stat().st_size > 0
