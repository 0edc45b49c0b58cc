import io
import json
import os
import shutil

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from omnivae.cli.inspect import inspect
from omnivae.cli.train import read_run
from omnivae.data import DataConfig
from omnivae.jobs.inspect import inspect_data
from omnivae.jobs.train import prepare


def noise(shape, seed=0, dtype=np.uint8, high=256):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def write_pngs(folder, count, size=(32, 32), channels=3, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        pixels = noise((*size, channels), seed=i)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def bad_folder(tmp_path, monkeypatch):
    """A folder with ten good pictures and every kind of bad file."""
    folder = write_pngs(tmp_path / "bad", 10)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    jpeg = io.BytesIO()
    Image.fromarray(noise((32, 32, 3))).save(jpeg, "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    png16 = imagecodecs.png_encode(noise((32, 32, 3), dtype=np.uint16, high=65536))
    (folder / "cut16.png").write_bytes(png16[: len(png16) // 2])
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    np.save(folder / "object.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    values = np.zeros((32, 32), dtype=np.float32)
    values[3, 4] = np.nan
    tifffile.imwrite(folder / "nan.tif", values)
    tifffile.imwrite(folder / "five.tif", noise((5, 32, 32)), planarconfig="separate", photometric="minisblack")
    shutil.copy(folder / "000.png", folder / "copy.png")
    (folder / ".hidden.png").write_bytes(b"hidden")
    (folder / "link.png").symlink_to(folder / "gone.png")
    shutil.copy(folder / "001.png", folder / "secret.png")
    (folder / "secret.png").chmod(0)
    if os.geteuid() == 0:  # who may read everything
        real = io.open

        def guarded(file, *arguments, **options):
            if str(file).endswith("secret.png"):
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *arguments, **options)

        monkeypatch.setattr(io, "open", guarded)  # as pathlib calls it
    for name in ("notes.txt", "scan.nii.gz", "slice.dcm", "clip.mp4"):
        (folder / name).write_bytes(b"x")
    (folder / "volume.zarr").mkdir()
    (folder / "volume.zarr" / "0.0").write_bytes(b"x")
    return folder


def test_every_kind_of_bad_file_is_named_with_its_reason(bad_folder):
    found = inspect_data(DataConfig(str(bad_folder)))
    reasons = dict(found.unreadable)
    assert {name: next((part for part in (
        "is empty", "is damaged or not an image", "its end is missing", "holds 3 frames", "values of type object",
        "NaN or infinite", "leads nowhere", "Permission denied",
    ) if part in reason), reason) for name, reason in reasons.items()} == {
        "empty.png": "is empty",
        "text.png": "is damaged or not an image",
        "cut.jpg": "its end is missing",
        "cut16.png": "its end is missing",
        "animated.gif": "holds 3 frames",
        "object.npy": "values of type object",
        "nan.tif": "NaN or infinite",
        "link.png": "leads nowhere",
        "secret.png": "Permission denied",
    }  # fmt: skip
    assert not any(str(bad_folder) in reason for reason in reasons.values() if "Permission" not in reason)
    channels = next(need for need in found.needs if need.option == "channels")
    assert channels.required
    assert channels.value is None
    assert "five.tif" in channels.reason
    assert [sorted(name for name, _ in group) for group in found.duplicates] == [["000.png", "copy.png"]]
    assert found.hidden_files == 1
    assert found.other_files == {".txt": 1}
    assert found.other_media == {".nii.gz": 1, ".dcm": 1, ".mp4": 1, ".zarr": 1}
    assert sum(found.counts.values()) == 12
    assert len(found.problems) == 2
    assert found.configuration is None


def test_the_bad_folder_on_the_screen(bad_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert inspect([str(bad_folder), "--json", str(tmp_path / "found.json")]) == 1
    shown = capsys.readouterr().out
    names = "empty.png text.png cut.jpg cut16.png animated.gif object.npy nan.tif link.png secret.png"
    assert all(name in shown for name in names.split())
    assert "stops the run: 9 images cannot be used" in shown
    written = json.loads((tmp_path / "found.json").read_text())
    assert len(written["unreadable"]) == 9
    assert written["other_media"][".zarr"] == 1


def test_the_proposal_leaves_bad_files_out_and_runs(bad_folder, tmp_path, capsys):
    (bad_folder / "five.tif").unlink()
    proposed = tmp_path / "proposed.yaml"
    assert inspect([str(bad_folder), "--config-out", str(proposed)]) == 1  # the run as it was asked for would stop
    assert f"omnivae train --config {proposed}" in capsys.readouterr().out
    config, *_ = read_run(["--config", str(proposed), "--output", str(tmp_path / "run")])
    assert config.data.on_error == "skip"
    model, losses, splits = prepare(config)
    assert len(splits.train) + len(splits.val) + len(splits.test) == 11
    assert model(splits.train[0]["x"][None]).reconstruction.shape == (1, 3, 32, 32)
    assert set(losses) == {"nll", "kl"}
    assert inspect([str(bad_folder), "--data.on_error", "skip"]) == 0


def test_what_a_good_folder_holds(tmp_path):
    for split, counts in (("train", (5, 4)), ("val", (2, 1)), ("test", (1, 3))):
        for name, count in zip("ab", counts, strict=True):
            write_pngs(
                tmp_path / "d" / split / name,
                count,
                start={"train": 0, "val": 20, "test": 40}[split] + 10 * (name == "b"),
            )
    found = inspect_data(DataConfig(str(tmp_path / "d")))
    assert found.counts == {"train": 9, "val": 3, "test": 4}
    assert found.carved == []
    assert found.classes == {"a": {"train": 5, "val": 2, "test": 1}, "b": {"train": 4, "val": 1, "test": 3}}
    assert found.sizes == {"smallest": [32, 32], "median": [32, 32], "largest": [32, 32], "distinct": 1}
    assert (found.channels, found.dtypes, found.bit_depth) == ({3: 16}, {"uint8": 16}, 8)
    assert (found.unreadable, found.duplicates, found.needs, found.problems, found.remarks) == ([], [], [], [], [])
    assert found.all_measured
    pixels = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 3) for p in sorted((tmp_path / "d").rglob("*.png"))])
    (values,) = found.values
    assert np.allclose(values["mean"], pixels.mean(0))
    assert np.allclose(values["std"], pixels.std(0))
    assert values["low"] == pixels.min(0).tolist()
    assert values["high"] == pixels.max(0).tolist()
    json.dumps(found.to_dict())


def test_copies_across_splits_are_leaks(tmp_path):
    write_pngs(tmp_path / "train", 6)
    write_pngs(tmp_path / "test", 3, start=10)
    shutil.copy(tmp_path / "train" / "002.png", tmp_path / "test" / "again.png")
    found = inspect_data(DataConfig(str(tmp_path)))
    assert found.leaks == 1
    assert [{name for name, _ in group} for group in found.duplicates] == [{"train/002.png", "test/again.png"}]
    assert any("1 image in more than one split" in remark for remark in found.remarks)
    assert found.problems == []  # a reason to think, not to stop


def test_grey_and_colour_together_call_for_channels(tmp_path):
    write_pngs(tmp_path, 8)
    write_pngs(tmp_path, 2, channels=1, start=50)
    found = inspect_data(DataConfig(str(tmp_path)))
    (need,) = found.needs
    assert (need.option, need.value, need.required) == ("channels", 3, True)
    assert "050.png, 051.png" in need.reason
    assert found.problems
    assert found.configuration["data"]["channels"] == 3
    assert f"omnivae train --data.path {tmp_path} --data.channels 3 --output" in found.command
    assert inspect_data(DataConfig(str(tmp_path), channels=3)).problems == []


def test_sizes_are_chosen_as_for_training(tmp_path):
    write_pngs(tmp_path, 4, size=(90, 120))
    write_pngs(tmp_path, 4, size=(100, 80), start=10)
    found = inspect_data(DataConfig(str(tmp_path)))
    assert (found.sizes["smallest"], found.sizes["largest"], found.sizes["distinct"]) == ([90, 80], [100, 120], 2)
    assert found.problems == []  # training chooses a side by itself
    assert found.configuration["data"]["image_size"] == 80
    config, *_ = read_run(["--data.path", str(tmp_path), "--output", str(tmp_path / "run")])
    assert config.data.image_size == 80
    assert config.model["recipe"] == found.configuration["model"]["recipe"]


def test_small_pictures_of_several_sizes_can_be_trained_on_as_well(tmp_path):
    write_pngs(tmp_path, 4, size=(30, 40))
    write_pngs(tmp_path, 4, size=(50, 33), start=10)
    found = inspect_data(DataConfig(str(tmp_path)))
    assert found.problems == []
    assert found.configuration["data"]["image_size"] == 32
    assert found.configuration["model"]["recipe"] == "conv_vae"


@pytest.mark.parametrize(
    ("array", "expected", "required"),
    [
        (noise((16, 16), dtype=np.uint16, high=4096), (0.0, 4095.0), False),  # 12 bits in 16
        (noise((16, 16), high=2), (0.0, 1.0), False),  # a mask
        (noise((16, 16), high=256).astype(np.float32), (0.0, 255.0), True),
        (np.linspace(-1024, 3071, 256, dtype=np.float32).reshape(16, 16), (-1030.0, 3080.0), True),
        (noise((16, 16), dtype=np.int32, high=1000), (0.0, 1023.0), True),
        (noise((16, 16), dtype=np.uint16, high=65536), None, False),
        (noise((16, 16), dtype=np.float32, high=2), None, False),
    ],
)
def test_the_range_of_values(tmp_path, array, expected, required):
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.roll(array, i))
    found = inspect_data(DataConfig(str(tmp_path)))
    needs = [need for need in found.needs if need.option == "input_range"]
    assert [(need.value, need.required) for need in needs] == ([(expected, required)] if expected else [])
    assert bool(found.problems) == required
    assert found.unreadable == []
    (values,) = found.values
    assert (values["low"], values["high"]) == ([float(array.min())], [float(array.max())])
    if expected:
        assert tuple(found.configuration["data"]["input_range"]) == expected


def test_a_constant_channel_and_a_constant_image(tmp_path):
    for i in range(6):
        pixels = noise((16, 16, 3), seed=i)
        pixels[..., 1] = 7
        Image.fromarray(pixels if i else np.full((16, 16, 3), 7, np.uint8)).save(tmp_path / f"{i}.png")
    found = inspect_data(DataConfig(str(tmp_path)))
    assert found.constant_images == ["0.png"]
    assert len(found.constant_channels) == 1
    assert "channel 2 of" in found.constant_channels[0]
    assert "always 7" in found.constant_channels[0]


def test_many_images_are_measured_by_a_seeded_choice(tmp_path, monkeypatch):
    write_pngs(tmp_path, 20)
    monkeypatch.setattr("omnivae.data.survey.MOST_SAMPLES", 5 * 32 * 32 * 3)
    first, again, other = (inspect_data(DataConfig(str(tmp_path)), seed=seed) for seed in (0, 0, 1))
    assert (first.measured, first.all_measured) == (5, False)
    assert first.values == again.values != other.values


def test_data_that_cannot_be_read_at_all_is_a_finding(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("x")
    found = inspect_data(DataConfig(str(tmp_path / "none")))
    assert found.other_files == {".txt": 1}
    assert "is text, and images are needed here" in found.problems[0]
    (tmp_path / "bad").mkdir()
    for i in range(5):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"")
    found = inspect_data(DataConfig(str(tmp_path / "bad")))
    assert [name for name, _ in found.unreadable] == [f"{i}.png" for i in range(5)]
    assert inspect([str(tmp_path / "bad")]) == 1
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        inspect_data(DataConfig(str(tmp_path / "nowhere")))


def test_tables_and_names_of_data_sets(tmp_path):
    png = io.BytesIO()
    images = []
    for i in range(8):
        png = io.BytesIO()
        Image.fromarray(noise((16, 16, 3), seed=i)).save(png, "PNG")
        images.append(png.getvalue())
    pq.write_table(pa.table({"image": [*images[:7], images[0]], "label": ["x", "y"] * 4}), tmp_path / "a.parquet")
    found = inspect_data(DataConfig(str(tmp_path / "a.parquet")))
    assert found.kind == "table"
    assert set(found.classes) == {"x", "y"}
    assert [{name for name, _ in group} for group in found.duplicates] == [{"a/00000", "a/00007"}]
    digits = inspect_data(DataConfig("digits"))
    assert digits.counts == {"train": 1437, "val": 180, "test": 180}
    assert digits.configuration["model"]["recipe"] == "conv_vae"


def test_the_contact_sheet_shows_a_seeded_choice(tmp_path):
    write_pngs(tmp_path / "d", 40)
    for name in ("a.png", "b.png"):
        inspect_data(DataConfig(str(tmp_path / "d")), picture=tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    sheet = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    original = np.asarray(Image.open(tmp_path / "d" / "000.png"))
    colours = {tuple(c) for c in sheet[::7]}
    assert len(colours) > 1000  # pictures, not only captions
    assert original.shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"got --picture .*sheet\.txt; expected the name of a picture"):
        inspect_data(DataConfig(str(tmp_path / "d")), picture=tmp_path / "sheet.txt")


def test_slips_on_the_command_line():
    with pytest.raises(ValueError, match=r"unknown option --config-oot; did you mean 'config-out'"):
        inspect(["digits", "--config-oot", "a.yaml"])
    with pytest.raises(ValueError, match=r"data\.format"):
        inspect(["digits", "--data.format", "foldr"])


def test_an_empty_folder_gets_a_sentence_and_no_table(tmp_path, capsys):
    assert inspect([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "─" not in said
    for kind in (".png", ".nii.gz", ".zarr", "DICOM", ".mp4"):
        assert kind in said
