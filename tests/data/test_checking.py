"""The check before a run: damaged files of each kind are named; values out of range too; the rest goes on when asked."""

import contextlib
import io
import logging

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from omnivae.data import DataConfig, load_data
from omnivae.data.checking import UnusableImages, check_images
from omnivae.data.header import ReadOptions
from omnivae.data.tiff import read_tiff

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def encoded(kind):
    buffer = io.BytesIO()
    if kind == "png16":
        return imagecodecs.png_encode(PIXELS.astype(np.uint16) * 257)
    if kind == "npy":
        np.save(buffer, PIXELS)
    elif kind.startswith("tif"):
        how = {"tif": {}, "tif-tiles": {"tile": (16, 16)}, "tif-zip": {"compression": "zlib", "rowsperstrip": 8}}[kind]
        tifffile.imwrite(buffer, PIXELS.astype(np.uint16), photometric="rgb", **how)
    elif kind == "gif":
        Image.fromarray(PIXELS[..., 0]).save(buffer, "GIF")
    else:
        Image.fromarray(PIXELS).save(buffer, {"jpg": "JPEG"}.get(kind, kind.upper()))
    return buffer.getvalue()


KINDS = ["png", "png16", "jpg", "webp", "bmp", "gif", "npy", "tif", "tif-tiles", "tif-zip"]


def check(data, verify, **options):
    return check_images([io.BytesIO(data)].__getitem__, ["bad.file"], verify=verify, options=ReadOptions(**options))


@pytest.mark.parametrize("verify", ["full", "headers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_end_is_found_with_and_without_decoding(kind, verify):
    data = encoded(kind)
    assert check(data, verify).headers[0].height == 64
    for cut in (len(data) // 2, len(data) - 40):
        with pytest.raises(ValueError, match=r"1 of 1 images is not usable: bad\.file "):
            check(data[:cut], verify)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"no image at all"])
def test_other_content_is_refused_whatever_the_name(kind, content, tmp_path):
    path = tmp_path / f"bad.{kind.split('-')[0].removesuffix('16')}"
    for data in (content, encoded(kind)[:12] + content):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"1 of 1 images is not usable: .*bad\."):
            load_data(DataConfig(str(tmp_path)))


@pytest.mark.parametrize("kind", ["png", "png16", "tif-zip"])  # the others have no checksum
def test_damaged_pixels_are_found_by_decoding(kind):
    data = bytearray(encoded(kind))
    for at in range(len(data) // 2, len(data) // 2 + 64):
        data[at] ^= 0x5A
    with pytest.raises(ValueError, match=r"bad\.file is damaged and cannot be decoded"):
        check(bytes(data), "full")


def with_exif(*, damaged):
    exif = Image.Exif()
    exif[271], exif[274] = "a camera", 6
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "WEBP", exif=exif)
    header = {"header": (b"MM\0*", b"MMT*"), "orientation": (b"\1\x12\0\3", b"\1\x12\0\2")}[damaged]
    assert buffer.getvalue().count(header[0]) == 1
    return buffer.getvalue().replace(*header)


def without_colours():
    palette = Image.fromarray(PIXELS).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "TIFF")
    colours = (320).to_bytes(2, "little")
    assert buffer.getvalue().count(colours) == 1
    return buffer.getvalue().replace(colours, (321).to_bytes(2, "little"))


@pytest.mark.parametrize("verify", ["full", "headers"])
@pytest.mark.parametrize(
    "data",
    [with_exif(damaged="header"), with_exif(damaged="orientation"), without_colours()],
    ids=["exif", "orientation", "palette"],
)
def test_metadata_that_make_no_sense_are_damage_and_name_the_file(data, verify):
    with pytest.raises(ValueError, match=r"1 of 1 images is not usable: bad\.file is damaged"):
        check(data, verify)


def test_no_damaged_byte_escapes_the_check():
    random = np.random.default_rng(0)
    for kind in KINDS:
        original = encoded(kind)
        for _ in range(40):
            data = bytearray(original)
            for at in random.integers(0, min(len(data), 400), 3):
                data[at] = random.integers(256)
            with contextlib.suppress(UnusableImages):  # which names the file; nothing else may come out
                check(bytes(data), "full")


@pytest.mark.parametrize("how", [{"compression": "zlib"}, {"metadata": None}, {"imagej": True}, {"bigtiff": True}])
def test_pages_as_channels_are_all_there_or_refused_wherever_the_file_is_cut_off(how):
    pages = np.random.default_rng(0).integers(1, 256, (5, 16, 16), dtype=np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pages, photometric="minisblack", **how)
    options = ReadOptions(pages_as_channels=True)
    assert np.array_equal(read_tiff(buffer, "whole", options), np.moveaxis(pages, 0, -1))
    whole, read, reasons = buffer.getvalue(), 0, set()
    for cut in range(8, len(whole) - 1, 13):
        try:
            part = read_tiff(io.BytesIO(whole[:cut]), "part", options)
        except ValueError as error:
            reasons.add(str(error).partition("(")[0])
        else:
            read += 1
            assert np.array_equal(part, np.moveaxis(pages, 0, -1)), f"after {cut} bytes: {part.shape}"
    assert reasons == {"part is damaged and cannot be decoded "}
    assert read < 5  # all but the padding at the very end matters


def test_missing_tiles_are_not_read_as_zeros():
    with tifffile.TiffFile(io.BytesIO(encoded("tif-tiles"))) as tif:
        tag = tif.pages[0].tags["TileByteCounts"]
        where, size = tag.valueoffset, {3: 2, 4: 4}[int(tag.dtype)]
    data = bytearray(encoded("tif-tiles"))
    data[where : where + size] = bytes(size)
    for verify in ("full", "headers"):
        with pytest.raises(ValueError, match="a strip or tile is missing"):
            check(bytes(data), verify)


def test_jpeg_previews_do_not_hide_a_missing_end(tmp_path):
    preview = io.BytesIO()
    Image.fromarray(PIXELS[:16, :16]).save(preview, "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + preview.getvalue()
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    assert b"\xff\xd9" in data[:-2]
    check(data, "headers")
    with pytest.raises(ValueError, match="its end is missing"):
        check(data[:-600], "headers")
    check(data + b"\0" * 300, "headers")  # cameras pad


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, np.nan], [np.inf, 1]], np.float32), r"bad\.file: 2 of 4 values are NaN or infinite"),
        (
            np.array([[0.0, 255.0]], np.float32),
            r"values from 0 to 255, beyond the range 0 to 1 .*data\.input_range.*clip",
        ),
        (np.array([[-3, 4]], np.int16), r"type int16, which does not tell .*set data\.input_range LOW HIGH"),
        (np.array([[3, 4]], np.uint32), r"type uint32, which does not tell"),
        (np.array([["a"]]), r"values of type <U1; expected"),
        (np.zeros((2, 2), np.complex64), r"values of type complex64"),
        (np.zeros((2, 2, 2, 2), np.uint8), r"array of shape \[2, 2, 2, 2\]; expected an image"),
        (np.zeros((0, 4), np.uint8), r"array of shape \[0, 4\]"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        check(npy(array), "auto")


def test_arrays_of_objects_are_never_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="values of type object"):
        check(buffer.getvalue(), "full")


def test_whole_numbers_that_float32_cannot_tell_apart_are_refused():
    edge = npy(np.array([[0, 1 << 24]], np.int32))
    check(edge, "full", input_range=(0.0, float(1 << 24)))
    beyond = npy(np.array([[0, (1 << 24) + 1]], np.int64))
    with pytest.raises(ValueError, match=r"from 0 to 16777217 \(int64\); float32.*exact up to 16777216 only"):
        check(beyond, "full", input_range=(0.0, 2.0**25))


def test_samples_of_fewer_bits_than_their_type_need_a_range():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((8, 8), 4095, np.uint16), compression="jpeg2000", bitspersample=12)
    with pytest.raises(ValueError, match=r"samples of 12 bits.*set data\.input_range to 0 4095"):
        check(buffer.getvalue(), "full")
    assert check(buffer.getvalue(), "full", input_range=(0.0, 4095.0)).headers[0].bit_depth == 12


def test_what_is_left_out_is_counted_listed_and_logged(tmp_path, caplog):
    for i in range(6):
        Image.fromarray(PIXELS).save(tmp_path / f"{i}.png")
    for i in (1, 4):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"2 of 6 images are not usable: .*1\.png is damaged.*; .*4\.png is damaged"):
        load_data(DataConfig(str(tmp_path)))
    with caplog.at_level(logging.WARNING):
        splits = load_data(DataConfig(str(tmp_path), on_error="skip"))
    assert [name for name, _ in splits.skipped] == ["1.png", "4.png"]
    assert all("is damaged or not an image" in reason for _, reason in splits.skipped)
    used = {key for part in (splits.train, splits.val, splits.test) for key in part.keys}
    assert used == {"0.png", "2.png", "3.png", "5.png"}
    assert "2 of 6 images left out" in caplog.text
    assert "4.png is damaged" in caplog.text
    for i in (0, 2, 3, 5):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="6 of 6 images are not usable"):
        load_data(DataConfig(str(tmp_path), on_error="skip"))


def test_labels_stay_with_their_images_when_files_are_left_out(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(PIXELS).save(tmp_path / name / f"{i}.png")
    (tmp_path / "ant" / "2.png").write_bytes(b"broken")
    splits = load_data(DataConfig(str(tmp_path), on_error="skip"))
    assert splits.classes == ["ant", "bee"]
    for part in (splits.train, splits.val, splits.test):
        for i, key in enumerate(part.keys):
            assert splits.classes[part.labels[i]] == key.split("/")[0]


def test_a_split_folder_without_a_usable_file_is_named(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for i in range(3):
            Image.fromarray(PIXELS).save(tmp_path / part / f"{i}.png")
    for i in range(3):
        (tmp_path / "val" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"no file in the val folder .*val/0\.png is damaged"):
        load_data(DataConfig(str(tmp_path), on_error="skip"))


def test_a_file_that_changes_is_looked_at_again(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    assert load_data(DataConfig(str(path))).image_size == (64, 64)
    Image.fromarray(PIXELS[:32]).save(path)
    assert load_data(DataConfig(str(path))).image_size == (32, 64)


def test_channels_that_are_no_colours_are_not_converted(tmp_path):
    for i in range(4):
        tifffile.imwrite(tmp_path / f"{i}.tif", PIXELS.transpose(2, 0, 1), metadata={"axes": "CYX"}, imagej=True)
    with pytest.raises(
        ValueError, match=r"data\.channels is 1 and 4 of 4 images cannot be turned into that, e\.g\. 0\.tif"
    ):
        load_data(DataConfig(str(tmp_path), channels=1))
    assert load_data(DataConfig(str(tmp_path), channels=3)).channels == 3
    with pytest.raises(ValueError, match=r"data\.channels is 2 and 4 of 4 images .*leave data\.channels out"):
        load_data(DataConfig(str(tmp_path), channels=2))
    splits = load_data(DataConfig(str(tmp_path)))
    assert (splits.native.dtypes, splits.native.modes) == ({"uint8": 4}, {"N": 4})
    assert not splits.alpha


def test_wide_images_are_resized_channel_by_channel(tmp_path):
    """A channel of five is resized as it would be alone, and 16 bits are not rounded to 8 on the way."""
    stack = np.random.default_rng(1).integers(0, 65536, (20, 30, 5)).astype(np.uint16)
    for channel in range(5):
        (tmp_path / str(channel)).mkdir()
        np.save(tmp_path / str(channel) / "a.npy", stack[..., channel])
    (tmp_path / "all").mkdir()
    np.save(tmp_path / "all" / "a.npy", stack)
    whole = load_data(DataConfig(str(tmp_path / "all"), image_size=13), value_range=(0.0, 1.0)).train[0]["x"]
    assert whole.shape == (5, 13, 13)
    for channel in range(5):
        config = DataConfig(str(tmp_path / str(channel)), image_size=13)
        assert (load_data(config, value_range=(0.0, 1.0)).train[0]["x"][0] == whole[channel]).all()
    levels = (whole * 255).frac()
    assert ((levels > 0.01) & (levels < 0.99)).float().mean() > 0.9


def test_rounding_of_double_precision_is_said(tmp_path, caplog):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).random((8, 8)))
    with caplog.at_level(logging.WARNING):
        x = load_data(DataConfig(str(tmp_path)), value_range=(0.0, 1.0)).train[0]["x"]
    assert "3 images hold samples of 64-bit floats" in caplog.text
    assert x.dtype == torch.float32
