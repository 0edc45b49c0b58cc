"""Videos in, videos out: as many frames, of the same size and rate, in order."""

import numpy as np
import pytest
import torch

import omnivae
from omnivae.cli.main import main
from omnivae.data.video import read_frames, read_video_header, video_rate
from omnivae.data.video_writing import write_video
from omnivae.jobs.videos import reconstruct_videos

pytest.importorskip("av")


class Identity(omnivae.VideoVAE):
    """Gives back what it is given."""

    def encode(self, x, cond=None):
        self.seen = x
        return super().encode(x, cond)

    def decode(self, z, cond=None, *, size=None):
        return self.seen


def model(**arguments):
    torch.manual_seed(0)
    return Identity(**({"in_channels": 3, "base_channels": 4, "num_res_blocks": 1, "num_groups": 2} | arguments)).eval()


def clip(number, height=16, width=24, channels=3):
    frames = np.zeros((number, height, width, channels), np.uint8)
    for t in range(number):
        frames[t] = 10 + 7 * t
        frames[t, :4, :4] = 255 - 9 * t
    return frames


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4", "mov", "webm", "gif"])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_every_frame_comes_back(tmp_path, suffix, number):
    for height, width in ((16, 24), (17, 19)):
        path = tmp_path / f"{height}.{suffix}"
        write_video(path, clip(number, height, width), rate=12)
        file = read_video_header(path)
        assert (len(file.times), file.height, file.width) == (number, height, width)
        got = read_frames(file, range(number)).astype(int)
        assert np.abs(got[:, 8:].mean((1, 2, 3)) - clip(number, height, width)[:, 8:].mean((1, 2, 3))).max() < 4
        if suffix in ("mkv", "avi"):
            assert np.array_equal(got, clip(number, height, width))
        if number > 2:
            assert float(video_rate(path)) == pytest.approx(12, rel=0.05)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_identity_model_gives_the_same_video(tmp_path, value_range, channels):
    write_video(tmp_path / "in" / "a.mkv", clip(5, 17, 20, channels), rate=25)
    [path] = reconstruct_videos(
        model(in_channels=channels, value_range=value_range), [tmp_path / "in"], tmp_path / "out", progress=False
    )
    file = read_video_header(path)
    assert np.array_equal(read_frames(file, range(5)), clip(5, 17, 20, channels))
    assert video_rate(path) == 25
    assert (tmp_path / "out" / "a.mkv.png").stat().st_size > 0


def test_the_command_reconstructs_a_folder(tmp_path, capsys):
    torch.manual_seed(0)
    small = omnivae.VideoVAE(1, 2, base_channels=4, num_res_blocks=1, num_groups=2, use_maisi=True)
    small.save_pretrained(tmp_path / "model")
    for name, number in (("a.mkv", 6), ("b.mp4", 3)):
        write_video(tmp_path / "in" / name, clip(number), rate=10)
    assert main(["reconstruct", str(tmp_path / "model"), str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / name) for name in ("a.mkv", "b.mp4")]
    assert [len(read_video_header(tmp_path / "out" / name).times) for name in ("a.mkv", "b.mp4")] == [6, 3]


def test_originals_are_not_overwritten(tmp_path):
    write_video(tmp_path / "a.mkv", clip(2))
    with pytest.raises(ValueError, match="overwrite"):
        reconstruct_videos(model(), [tmp_path / "a.mkv"], tmp_path)
    (tmp_path / "b.mkv").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.mkv cannot be read"):
        reconstruct_videos(model(), [tmp_path / "b.mkv"], tmp_path / "out")
    assert reconstruct_videos(model(), [tmp_path / "b.mkv"], tmp_path / "out", on_error="skip") == []


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("a.wmv", clip(2), "expected a name that ends in"),
        ("a.mkv", clip(2).astype(np.float32), "uint8"),
        ("a.mkv", clip(2)[..., :2], "expected"),
        ("a.mkv", clip(2)[:0], "expected"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames)


def test_under_a_memory_budget_the_video_is_the_same(tmp_path, capsys):
    torch.manual_seed(0)
    small = omnivae.VideoVAE(1, 2, base_channels=4, num_res_blocks=1, num_groups=2, use_maisi=True).eval()
    small.save_pretrained(tmp_path / "model")
    write_video(tmp_path / "a.mkv", clip(6, 40, 48), rate=10)
    command = ["reconstruct", str(tmp_path / "model"), str(tmp_path / "a.mkv"), "--precision", "32", "-o"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert main([*command, str(tmp_path / "tiled"), "--memory", "1 MB"]) == 0
    whole, tiled = (
        read_frames(read_video_header(tmp_path / name / "a.mkv"), range(6)).astype(int) for name in ("whole", "tiled")
    )
    assert whole.std() > 1
    assert np.abs(whole - tiled).max() <= 1  # one grey level, where rounding falls to the other side
    assert main([*command, str(tmp_path / "none"), "--memory", "9 kB"]) == 2
    assert "memory" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "none"), "--format", "nifti"]) == 2
    assert "--format" in capsys.readouterr().err
