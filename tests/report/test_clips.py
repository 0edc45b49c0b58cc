"""Pictures of clips: the right frames, in order, with the right numbers."""

import numpy as np
import pytest
import torch

import omnivae
from omnivae.data import DataConfig
from omnivae.data.video_writing import write_video
from omnivae.jobs.config import RunConfig
from omnivae.jobs.train import prepare
from omnivae.report import clips, write_report
from omnivae.report.clips import clip_grid, clip_rows, middle_frame
from omnivae.report.pictures import run_picture


def ramp(frames=9):
    return torch.linspace(0, 1, frames).reshape(1, 1, frames, 1, 1).expand(1, 1, frames, 8, 8)


def centres(picture, columns, tile=128, gap=4):
    """Grey at the middle of each tile of each row: tiles end where the scale's or nothing's white begins."""
    left = next(i for i in range(picture.shape[1]) if (picture[:tile, i] < 255).all(1).all())
    return left, [picture[:, left + i * (tile + gap) + tile // 2, 0] for i in range(columns)]


def test_frames_stand_beside_each_other_from_first_to_last():
    x = ramp() * 0.8
    picture = clip_grid(x, x * 0.5, (0, 1))
    _, columns = centres(picture, 5)
    assert [int(c[64]) for c in columns] == [0, 51, 102, 153, 204]  # frames 1, 3, 5, 7 and 9 of the original
    assert [int(c[128 + 4 + 64]) for c in columns] == [0, 26, 51, 76, 102]  # and of the reconstruction


def test_below_each_frame_stands_its_quality(monkeypatch):
    seen = []
    monkeypatch.setattr(
        clips.figures, "comparison_grid", lambda *a, labels, **k: seen.append(labels) or np.zeros((2, 2, 3), np.uint8)
    )
    x = torch.zeros(2, 1, 3, 4, 4)
    off = x.clone()
    off[0, 0, 1] = 0.2
    off[1, 0] = 0.02
    clip_grid(x, off, (-1, 1))
    assert seen == [
        ["frame 1, inf dB", "frame 2, 20.0 dB", "frame 3, inf dB"],
        ["frame 1, 40.0 dB", "frame 2, 40.0 dB", "frame 3, 40.0 dB"],
    ]


def test_clips_stand_under_each_other_with_their_samples():
    x = torch.rand(2, 3, 4, 16, 16)
    one, two = clip_grid(x[:1], x[:1], (0, 1)), clip_grid(x, x, (0, 1))
    assert two.shape[0] == 2 * one.shape[0] + clips.GAP
    assert clip_grid(x, x, (0, 1), samples=x).shape[0] > two.shape[0] + 2 * 128
    with pytest.raises(ValueError, match="equal shapes"):
        clip_grid(x, x[:, :, :2])


def test_rows_of_clips_and_their_middle():
    x = torch.cat([ramp(), 1 - ramp()])
    _, columns = centres(clip_rows(x, (0, 1), names=["up", "down"])[19:], 5)
    assert [int(c[64]) for c in columns] == [0, 64, 128, 191, 255]
    assert [int(c[128 + 4 + 64]) for c in columns] == [255, 191, 128, 64, 0]
    assert middle_frame(x)[0, 0, 0, 0] == 0.5


@pytest.fixture
def trained(tmp_path):
    pytest.importorskip("av")
    rng = np.random.default_rng(0)
    for name in range(12):
        write_video(tmp_path / "clips" / f"{name}.mkv", rng.integers(0, 255, (6, 16, 24, 3), dtype=np.uint8))
    config = RunConfig(
        model={
            "recipe": "video_vae", "use_maisi": True, "in_channels": 1, "base_channels": 4, "num_res_blocks": 1,
            "num_groups": 2,
        },
        data=DataConfig(str(tmp_path / "clips"), channels=1, image_size=16, val_fraction=0.3, test_fraction=0.3),
        losses={"l1": {"per_element": True}, "kl": {"weight": 1e-6}},
    )  # fmt: skip
    return prepare(config)


def test_a_model_of_video_is_drawn_in_frames_and_claims_no_hounsfield_units(trained, tmp_path):
    model, _, splits = trained
    assert (
        "intensity" in omnivae.MaisiVAE(num_channels=(4, 4, 4), num_res_blocks=(1, 1, 1), norm_num_groups=2).statistics
    )
    assert "intensity" not in model.statistics
    x = torch.stack([splits.test[i]["x"] for i in range(2)])
    assert x.shape[1:] == (1, 6, 16, 16)
    assert run_picture(model, x).size[0] > 5 * 128
    page = write_report(model, splits.test, tmp_path / "report.html", num_latents=4).read_text()
    assert "6 frames of 16 × 16 pixels" in page
    assert "Frames of each clip from first to last" in page
    assert "middle planes" not in page
    assert "4 clips sampled from the prior" in page
    assert "Of each clip its middle frame" in page
