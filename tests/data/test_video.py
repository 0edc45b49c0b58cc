"""Clips of video files: the right frames in the right order, whole files in one split, and clear words for bad ones."""

import numpy as np
import pytest
import torch
from video_files import frames, write

from omnivae.data import DataConfig, load_data
from omnivae.data.video import clip_starts, read_frames, read_video_header

pytest.importorskip("av")


@pytest.fixture
def folder(tmp_path):
    for i, number in enumerate((9, 12, 8, 10, 17)):
        write(tmp_path / f"clip{i}.mkv", frames(number) + np.uint8(i))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mkv", "ffv1", None),
        ("a.avi", "ffv1", None),
        ("a.mp4", "libx264rgb", "rgb24"),
        ("a.mp4", "libx264", "yuv420p"),
    ],
)
def test_any_frame_is_the_one_with_that_number(tmp_path, name, codec, pixels):
    clip = frames(23)
    path = write(tmp_path / name, clip, codec=codec, pixels=pixels, gop=5)
    file = read_video_header(path)
    assert (len(file.times), file.height, file.width, file.channels, file.dtype) == (23, 16, 24, 3, "uint8")
    whole = read_frames(file, range(23)).astype(int)
    # Compressed, a grey level of a frame is within a few steps; neighbours are six apart.
    assert np.abs(whole[:, 12:, :, :].mean((1, 2, 3)) - clip[:, 12:].mean((1, 2, 3))).max() < 2.5
    if codec == "ffv1":
        assert np.array_equal(whole, clip)
    for numbers in (range(4), range(7, 11), range(2, 23, 5), range(22, 23)):
        assert np.array_equal(read_frames(file, numbers), whole[list(numbers)])


def test_a_gif_is_a_video_when_that_is_said(tmp_path):
    from PIL import Image

    clip = frames(6)
    images = [Image.fromarray(image) for image in clip]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    splits = load_data(DataConfig(str(tmp_path), format="video", num_frames=3))
    assert splits.image_size == (3, 16, 24)
    keys = sorted({*splits.train.keys, *splits.val.keys})
    assert keys == ["a.gif#0", "a.gif#3"]
    x = splits.train.source.read(1).astype(int)
    assert np.abs(x[:, 12:].mean((1, 2, 3)) - clip[3:, 12:].mean((1, 2, 3))).max() < 4


def test_a_folder_of_videos_is_training_data(folder):
    splits = load_data(DataConfig(str(folder), num_frames=4, channels=1, image_size=8), value_range=(-1, 1))
    assert (splits.channels, splits.image_size) == (1, (4, 8, 8))
    item = splits.train[0]
    assert item["x"].shape == (1, 4, 8, 8)
    assert splits.official_test is False
    for part in (splits.train, splits.val, splits.test):
        for i in range(len(part)):
            assert torch.isfinite(part[i]["x"]).all()


def test_pixels_are_on_the_documented_scale(tmp_path):
    clip = frames(4)
    write(tmp_path / "a.mkv", clip)
    splits = load_data(DataConfig(str(tmp_path), num_frames=4), value_range=(-1, 1))
    expected = torch.from_numpy(clip / 127.5 - 1).permute(3, 0, 1, 2).float()
    torch.testing.assert_close(splits.train[0]["x"], expected)


def test_clips_of_one_file_are_in_one_split(folder):
    splits = load_data(DataConfig(str(folder), num_frames=4))
    files = [{key.split("#")[0] for key in part.keys} for part in (splits.train, splits.val, splits.test)]
    assert not files[0] & files[1]
    assert not files[0] & files[2]
    assert not files[1] & files[2]
    assert set().union(*files) == {f"clip{i}.mkv" for i in range(5)}


def test_of_one_file_neighbours_in_time_stay_together(tmp_path):
    write(tmp_path / "long.mkv", frames(40))
    splits = load_data(DataConfig(str(tmp_path / "long.mkv"), num_frames=4))
    starts = [sorted(int(key.split("#")[1]) for key in part.keys) for part in (splits.val, splits.test, splits.train)]
    assert starts == [[0], [4], [8, 12, 16, 20, 24, 28, 32, 36]]


def test_split_folders_are_respected(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for i in range(2):
            write(tmp_path / part / f"{i}.mkv", frames(5))
    splits = load_data(DataConfig(str(tmp_path), num_frames=5))
    assert splits.official_test
    assert {key.split("/")[0] for key in splits.test.keys} == {"test"}
    assert {key.split("/")[0] for key in (*splits.train.keys, *splits.val.keys)} == {"train"}


def test_every_frame_is_in_a_clip():
    starts = clip_starts([5, 9, 16], 4, 1, one=False)
    for file, length in enumerate((5, 9, 16)):
        seen = {start + i for f, start in starts if f == file for i in range(4)}
        assert seen == set(range(length))
    assert clip_starts([9, 4], 2, 3, one=True).tolist() == [[0, 2], [1, 0]]


def test_a_stride_takes_every_so_many_frames(tmp_path):
    clip = frames(11)
    write(tmp_path / "a.mkv", clip)
    splits = load_data(DataConfig(str(tmp_path), num_frames=3, frame_stride=4, clips="one"))
    assert splits.train.keys == ["a.mkv#1"]
    assert np.array_equal(splits.train.source.read(0), clip[[1, 5, 9]])


def test_more_than_eight_bits_are_kept(tmp_path):
    import av

    ramp = (np.arange(16 * 16, dtype=np.uint16).reshape(16, 16) * 200)[None].repeat(3, 0)
    with av.open(str(tmp_path / "deep.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "gray16le"
        for image in ramp:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray16le")))
        container.mux(stream.encode())
    file = read_video_header(tmp_path / "deep.mkv")
    assert (file.dtype, file.channels) == ("uint16", 1)
    assert np.array_equal(read_frames(file, range(3))[..., 0], ramp)


def test_cached_clips_are_the_same(folder):
    config = DataConfig(str(folder), num_frames=4, channels=1)
    plain, cached = load_data(config), load_data(config)
    assert cached.train.keep_decoded(True)
    for i in (0, 1, 0):
        assert torch.equal(plain.train[i]["x"], cached.train[i]["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 20}, "clip0.mkv has 9 frames and a clip takes 20"),
        ({}, "different numbers of frames: 9 in clip0.mkv and 12 in clip1.mkv: set data.num_frames"),
        ({"num_frames": 2, "resolutions": (8, 16)}, "leave data.resolutions out"),
    ],
)
def test_what_does_not_fit_is_said(folder, change, message):
    with pytest.raises(ValueError, match=message):
        load_data(DataConfig(str(folder), **change))


def test_sizes_that_differ_ask_for_one(tmp_path):
    write(tmp_path / "a.mkv", frames(4))
    write(tmp_path / "b.mkv", frames(4, height=20))
    with pytest.raises(ValueError, match=r"different sizes .*: set data.image_size"):
        load_data(DataConfig(str(tmp_path), num_frames=4))
    write(tmp_path / "b.mkv", frames(4, channels=1))
    with pytest.raises(
        ValueError, match=r"different numbers of channels: 3 in a.mkv and 1 in b.mkv: set data.channels"
    ):
        load_data(DataConfig(str(tmp_path), num_frames=4))


def test_a_damaged_file_is_named_or_left_out(folder):
    (folder / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be read as a video"):
        load_data(DataConfig(str(folder), num_frames=4))
    splits = load_data(DataConfig(str(folder), num_frames=4, on_error="skip"))
    assert [name for name, _ in splits.skipped] == ["broken.mp4"]


def test_a_truncated_file_is_found(tmp_path):
    path = write(tmp_path / "a.mkv", frames(30, 64, 64))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    file = read_video_header(path)
    assert len(file.times) < 30
    with pytest.raises(ValueError, match=r"a\.mkv has \d+ frames and a clip takes 30"):
        load_data(DataConfig(str(tmp_path), num_frames=30))
