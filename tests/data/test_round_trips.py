"""What is written is read back bit by bit, over types, channels and formats; nothing is converted on the way."""

import io

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from omnivae.data.encoding import encode_like
from omnivae.data.header import ReadOptions
from omnivae.data.images import preprocess_image, read_header, read_image
from omnivae.data.saving import save_like

fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
integers = st.sampled_from(["uint8", "uint16"])


@st.composite
def images(draw, dtypes, channels):
    dtype, shape = np.dtype(draw(dtypes)), (*draw(sides), draw(channels))
    elements = None
    if dtype.kind == "f":
        elements = st.floats(0, 1, width=8 * dtype.itemsize)
    return draw(arrays(dtype, shape, elements=elements))


def as_file(array, **how):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **how)
    return buffer


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer


def read_both(file, options=None):
    header, array = read_header(file, "a", options), read_image(file, "a", options)
    assert array.shape == (header.height, header.width, header.channels)
    assert array.dtype.name == header.dtype
    assert array.dtype.isnative
    return header, array


def comes_back(array, file, options=None):
    """Check that a file is read exactly, and that what is written like it is read exactly and has the same header."""
    header, read = read_both(file, options)
    np.testing.assert_array_equal(read, array)
    changed = read[::-1].copy()
    again, rewritten = read_both(io.BytesIO(encode_like(changed, header)), options)
    np.testing.assert_array_equal(rewritten, changed)
    assert again == header
    return header


TYPES = st.sampled_from(
    ["bool", "uint8", "int8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64", "int64", "uint64"]
)


@fast
@given(images(TYPES, st.integers(1, 6)), st.sampled_from("<>"), st.booleans())
def test_npy(array, order, fortran):
    stored = array.astype(array.dtype.newbyteorder(order), order="F" if fortran else "C")
    assert comes_back(array, as_npy(stored), ReadOptions(channel_axis="last")).axes == "YXC"
    first = ReadOptions(channel_axis="first")
    assert comes_back(array, as_npy(stored.transpose(2, 0, 1)), first).axes == "CYX"
    assert comes_back(array[..., :1], as_npy(stored[..., 0])).axes == "YX"


@fast
@given(
    images(TYPES.filter(lambda t: t != "bool"), st.integers(2, 6)), st.sampled_from("<>"), st.booleans(), st.booleans()
)
def test_tiff_with_the_samples_of_a_pixel_together_or_in_planes(array, order, planes, squeezed):
    how = {"byteorder": order, "compression": "zlib" if squeezed else None, "photometric": "minisblack"}
    if planes:
        file = as_file(array.transpose(2, 0, 1), planarconfig="separate", **how)
    else:
        file = as_file(array, planarconfig="contig", **how)
    header = comes_back(array, file)
    assert (header.mode, header.axes) == ("N", "SYX" if planes else "YXS")
    assert header.compression == (8 if squeezed else 1)


@fast
@given(images(TYPES, st.just(1)), st.sampled_from("<>"))
def test_grey_tiff(array, order):
    header = comes_back(array, as_file(array[..., 0], byteorder=order, photometric="minisblack"))
    assert header.bit_depth == (1 if array.dtype == bool else 8 * array.dtype.itemsize)


@fast
@given(images(integers, st.sampled_from([3, 4])))
def test_rgb_and_rgba_tiff(array):
    header = comes_back(array, as_file(array, photometric="rgb", tile=(16, 16)))
    assert header.mode == {3: "RGB", 4: "RGBA"}[array.shape[2]]


@fast
@given(
    images(st.sampled_from(["uint8", "uint16", "float32"]), st.integers(2, 5)), st.sampled_from(["ome", "imagej", ""])
)
def test_tiff_with_an_axis_of_channels(array, container):
    if container == "imagej" and array.shape[1] == 1:
        container = ""  # tifffile writes these as one page
    flags = {container: True} if container else {}
    how = {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "resolution": (4.0, 2.0), "resolutionunit": 3}
    header = comes_back(array, as_file(array.transpose(2, 0, 1), **how, **flags))
    assert (header.axes, header.container, header.mode) == ("CYX", container, "N")
    assert header.resolution[:2] == (4.0, 2.0)


@fast
@given(images(integers, st.integers(1, 4)))
def test_png(array):
    header = comes_back(array, io.BytesIO(encode_like(array, read_header(png(array), "a"))))
    assert header.mode == ["L", "LA", "RGB", "RGBA"][array.shape[2] - 1]
    assert header.bit_depth == 8 * array.dtype.itemsize


def png(array):
    import imagecodecs

    return io.BytesIO(imagecodecs.png_encode(array[..., 0] if array.shape[2] == 1 else array))


@fast
@given(
    images(st.sampled_from(["uint8", "uint16", "int16", "int32", "uint32", "bool"]), st.integers(1, 5)),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0)]),
)
def test_through_the_tensor_and_back(tmp_path, array, value_range):
    low, high = int(array.min()), int(array.max())
    if high - low >= 1 << 22 or max(abs(low), abs(high)) > 1 << 24:
        array = (array % 1000).astype(array.dtype)
        low, high = int(array.min()), int(array.max())
    options = ReadOptions(input_range=(low, high + 1), channel_axis="last")
    source, target = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(source, array)
    x = preprocess_image(source, value_range=value_range, options=options)
    assert x.dtype == torch.float32
    assert x.min() >= value_range[0]
    assert x.max() <= value_range[1]
    save_like(x[0], target, read_header(source, "a", options), value_range=value_range, options=options)
    assert target.read_bytes() == source.read_bytes()


@fast
@given(images(st.just("float32"), st.integers(1, 5)))
def test_floats_through_the_tensor_and_back(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    options = ReadOptions(channel_axis="last")
    x = preprocess_image(tmp_path / "a.npy", value_range=(0.0, 1.0), options=options)
    save_like(
        x[0], tmp_path / "b.npy", read_header(tmp_path / "a.npy", "a", options), value_range=(0.0, 1.0), options=options
    )
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array)


# -- single cases


def test_white_is_zero_tiff_is_turned():
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    header, read = read_both(as_file(65535 - array, photometric="miniswhite"))
    np.testing.assert_array_equal(read[..., 0], array)
    assert tifffile.TiffFile(io.BytesIO(encode_like(read, header))).pages[0].photometric.name == "MINISWHITE"
    bits = array % 2 == 1
    np.testing.assert_array_equal(read_image(as_file(~bits, photometric="miniswhite"), "a")[..., 0], bits)


def test_palettes_become_rgb(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)).convert("P")
    expected = np.asarray(image.convert("RGB"))
    for name in ("a.png", "a.tif", "a.bmp"):
        image.save(tmp_path / name)
        header, read = read_both(tmp_path / name)
        assert header.mode == "P"
        np.testing.assert_array_equal(read, expected)
        again, rewritten = read_both(io.BytesIO(encode_like(read, header)))
        assert again.mode == "RGB"
        np.testing.assert_array_equal(rewritten, expected)


def test_a_palette_of_sixteen_bits_keeps_them():
    table = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    index = np.arange(20, dtype=np.uint8).reshape(4, 5)
    _, read = read_both(as_file(index, photometric="palette", colormap=table))
    np.testing.assert_array_equal(read, table.T[index])


def test_cmyk_comes_back_as_cmyk(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)).convert("CMYK")
    image.save(tmp_path / "a.tif")
    image.save(tmp_path / "a.jpg")
    header, read = read_both(tmp_path / "a.tif")
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))
    assert read_header(io.BytesIO(encode_like(read, header)), "a").mode == "CMYK"
    header, read = read_both(tmp_path / "a.jpg")
    assert Image.open(io.BytesIO(encode_like(read, header))).mode == "CMYK"


def test_colour_profiles_are_kept(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        image.save(tmp_path / name, icc_profile=profile)
        header, read = read_both(tmp_path / name)
        assert read_header(io.BytesIO(encode_like(read, header)), "a").icc == profile, name
    deep = encode_like(np.zeros((2, 2, 3), np.uint16), read_header(png(np.zeros((2, 2, 3), np.uint16)), "a"))
    from dataclasses import replace

    like = replace(read_header(io.BytesIO(deep), "a"), icc=profile)
    header, _ = read_both(io.BytesIO(encode_like(np.zeros((2, 2, 3), np.uint16), like)))
    assert header.icc == profile


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_alike(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png", exif=exif)
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", pixels.astype(np.uint16) * 257, photometric="rgb", extratags=[tag])
    _, shown = read_both(tmp_path / "a.png")
    _, deep = read_both(tmp_path / "a.tif")
    np.testing.assert_array_equal(deep, shown.astype(np.uint16) * 257)
    data = png(pixels.astype(np.uint16) * 257).getvalue()
    chunk = (tmp_path / "a.png").read_bytes()
    at = chunk.index(b"eXIf") - 4
    part = chunk[at : at + 12 + int.from_bytes(chunk[at : at + 4], "big")]
    for place in (33, len(data) - 12):  # before the pixels and behind them
        _, deep = read_both(io.BytesIO(data[:place] + part + data[place:]))
        np.testing.assert_array_equal(deep, shown.astype(np.uint16) * 257)


def test_an_orientation_in_xmp_is_seen_by_header_and_pixels(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "a.png", pnginfo=info)
    header, _ = read_both(tmp_path / "a.png")
    assert (header.height, header.width) == (5, 3)


@pytest.mark.parametrize(("shape", "axes"), [((5, 40, 50), "CYX"), ((40, 50, 5), "YXC"), ((40, 50), "YX")])
def test_the_axis_of_channels_is_told_where_it_is_clear(shape, axes):
    array = np.zeros(shape, np.uint8)
    assert read_header(as_npy(array), "a").axes == axes


@pytest.mark.parametrize("shape", [(5, 5, 5), (40, 5, 50), (5, 40, 5), (70, 80, 90), (3, 3, 9)])
def test_the_axis_of_channels_is_asked_for_where_it_is_not(shape):
    file = as_npy(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy holds an array of shape .*set data\.channel_axis to first or last"):
        read_header(file, "a.npy")
    assert read_header(file, "a.npy", ReadOptions(channel_axis="first")).channels == shape[0]
    assert read_header(file, "a.npy", ReadOptions(channel_axis="last")).channels == shape[2]


def test_pages_are_channels_only_when_asked():
    pages = np.random.default_rng(0).integers(0, 99, (5, 8, 9)).astype(np.uint16)
    file = as_file(pages, photometric="minisblack")
    with pytest.raises(ValueError, match=r"a\.tif holds 5 x 8 x 9 samples along the axes QYX.*data\.pages_as_channels"):
        read_header(file, "a.tif")
    comes_back(pages.transpose(1, 2, 0), file, ReadOptions(pages_as_channels=True))
    volume = as_file(np.zeros((4, 2, 8, 9), np.uint16), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(ValueError, match=r"axes ZCYX; expected one image with one axis of channels"):
        read_header(volume, "a.tif", ReadOptions(pages_as_channels=True))


def test_premultiplied_and_unknown_extra_samples_are_kept_as_they_are():
    array = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    for extra, mode in (("assocalpha", "RGBa"), ("unspecified", "RGBX")):
        assert comes_back(array, as_file(array, photometric="rgb", extrasamples=[extra])).mode == mode
    grey = array[..., :2]
    assert comes_back(grey, as_file(grey, photometric="minisblack", extrasamples=["unassalpha"])).mode == "LA"
