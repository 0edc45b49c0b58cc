"""Stored pixels to Hounsfield units: slopes, padding, signs, inverted greys, codecs, damage."""

import numpy as np
import pydicom
import pytest
from dicom_slices import hounsfield, save, series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from omnivae.data.volumes import find_series, read_dicom

AIR = -1024


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4000, (7, 5, 6))
    slopes, intercepts = [0.5 + 0.25 * k for k in range(6)], [-3.5 * k for k in range(6)]
    truth = stored * np.array(slopes) + np.array(intercepts)
    volume = read_dicom(save(tmp_path, series(truth, modality="MR", slope=slopes, intercept=intercepts)))
    np.testing.assert_array_equal(volume.array[0], truth.astype(np.float32))
    assert volume.array.dtype == np.float32
    assert volume.unit == "arbitrary"
    assert any(p.startswith("rescale") for p in volume.problems)


@pytest.mark.parametrize("stored", [np.uint16, np.int16])
def test_signedness_and_values_are_right(tmp_path, stored):
    values = hounsfield()
    volume = read_dicom(save(tmp_path, series(values, stored=stored, intercept=-1024 if stored is np.uint16 else 0)))
    np.testing.assert_array_equal(volume.array[0], values)
    assert volume.stored.dtype == np.dtype(stored).name


def test_values_that_do_not_fit_in_16_bits_are_kept_whole(tmp_path):
    values = hounsfield().astype(np.int32)
    values[0, 0, 0] = 64000
    volume = read_dicom(save(tmp_path, series(values)))
    np.testing.assert_array_equal(volume.array[0], values)
    assert volume.array.dtype == np.int32


@pytest.mark.parametrize(
    ("padding", "intercept", "element"),
    [(-2000, 0, True), (-2000, -1024, True), (-2000, -1024, False), (-3024, 0, False), (-1500, 0, False)],
)
def test_padding_becomes_air_and_is_counted(tmp_path, padding, intercept, element):
    values = hounsfield()
    hole = np.zeros(values.shape, bool)
    hole[:2] = hole[:, :1] = True
    marked = np.where(hole, padding + intercept, values)
    more = {"PixelPaddingValue": padding} if element else {}
    save(tmp_path, series(marked, stored=np.int16, intercept=intercept, **more))
    volume = read_dicom(tmp_path)
    np.testing.assert_array_equal(volume.array[0], np.where(hole, AIR, values))
    (note,) = volume.problems
    assert note.startswith(f"padding: {hole.sum()} of {hole.size} voxels")
    np.testing.assert_array_equal(read_dicom(tmp_path, padding="keep").array[0], marked)


def test_a_padding_value_written_with_the_other_sign_is_understood(tmp_path):
    values = hounsfield()
    values[0] = -2000
    slices = series(values, stored=np.int16, intercept=0)
    for data in slices:
        data.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert (read_dicom(save(tmp_path, slices)).array[0, 0] == AIR).all()


def test_a_range_of_padding_values(tmp_path):
    values = np.abs(hounsfield()) + 10
    values[0], values[1] = 4000, 4050
    slices = series(values, modality="MR", intercept=0, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095)
    volume = read_dicom(save(tmp_path, slices))
    assert (volume.array[0, :2] == values[2:].min()).all()  # where air has no number: the lowest value measured
    np.testing.assert_array_equal(volume.array[0, 2:], values[2:])


def test_a_padding_value_that_is_tissue_is_left_alone_and_told(tmp_path):
    values = hounsfield()
    values[3] = 0  # water
    volume = read_dicom(save(tmp_path, series(values, stored=np.int16, intercept=0, PixelPaddingValue=0)))
    np.testing.assert_array_equal(volume.array[0], values)
    assert volume.problems == ("padding: the padding value is 0 HU, which is tissue: left as it is",)


def test_monochrome1_is_inverted_unless_values_are_hounsfield_units(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (7, 5, 6))
    shared = {"slope": None, "bits": 12, "PhotometricInterpretation": "MONOCHROME1"}
    volume = read_dicom(save(tmp_path / "mr", series(values, modality="MR", **shared)))
    np.testing.assert_array_equal(volume.array[0], 4095 - values)
    assert any(p.startswith("MONOCHROME1") for p in volume.problems)
    ct = read_dicom(save(tmp_path / "ct", series(hounsfield(), PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(ct.array[0], hounsfield())


def test_colours_are_refused(tmp_path):
    slices = series(np.repeat(hounsfield(), 3, axis=0), SamplesPerPixel=3, PhotometricInterpretation="RGB", Columns=7)
    save(tmp_path, slices)
    with pytest.raises(ValueError, match="colours: pixels are RGB with 3 samples"):
        read_dicom(tmp_path)


@pytest.mark.parametrize(
    ("elements", "unit"),
    [({}, "HU"), ({"RescaleType": "HU"}, "HU"), ({"RescaleType": "US"}, "arbitrary"), ({"slope": None}, "arbitrary")],
)
def test_hounsfield_units_are_claimed_only_where_the_header_says_so(tmp_path, elements, unit):
    volume = read_dicom(save(tmp_path, series(np.abs(hounsfield()), **elements)))
    assert volume.unit == unit
    assert any(p.startswith("unit") for p in volume.problems) == (unit != "HU")


def _compressed(slices, syntax, encode):
    for data in slices:
        raw = np.frombuffer(data.PixelData, np.uint16).reshape(data.Rows, data.Columns)
        data.PixelData = pydicom.encaps.encapsulate([encode(raw)])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
    return slices


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1], ids=lambda s: s.name[:24]
)
def test_compressed_pixels_are_equal_to_plain_ones(tmp_path, syntax):
    imagecodecs = pytest.importorskip("imagecodecs")
    encoders = {
        JPEG2000Lossless: lambda raw: imagecodecs.jpeg2k_encode(raw, codecformat="j2k", reversible=True, level=0),
        JPEGLSLossless: imagecodecs.jpegls_encode,
        JPEGLosslessSV1: lambda raw: imagecodecs.ljpeg_encode(raw, bitspersample=16),
    }
    values = hounsfield(32, 24, 3)
    slices = series(values)
    if syntax == RLELossless:
        for data in slices:
            data.compress(syntax)
    else:
        _compressed(slices, syntax, encoders[syntax])
    volume = read_dicom(save(tmp_path, slices))
    np.testing.assert_array_equal(volume.array[0], values)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=lambda s: s.name[:24])
def test_other_plain_syntaxes_are_read(tmp_path, syntax):
    slices = series(hounsfield())
    for data in slices:
        data.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_array_equal(read_dicom(save(tmp_path, slices)).array[0], hounsfield())


def test_big_endian_is_read(tmp_path):
    slices = series(hounsfield())
    for data in slices:
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        data.PixelData = np.frombuffer(data.PixelData, np.uint16).astype(">u2").tobytes()
    folder = save(tmp_path, slices, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(read_dicom(folder).array[0], hounsfield())


def test_files_without_a_preamble_are_read(tmp_path):
    for k, data in enumerate(series(hounsfield())):
        path = tmp_path / f"{k}"
        data.save_as(path, enforce_file_format=True)
        path.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read_dicom(tmp_path).array[0], hounsfield())


def test_a_missing_codec_is_named_with_its_package(tmp_path, monkeypatch):
    slices = series(hounsfield())
    for data in slices:
        data.compress(RLELossless)
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    save(tmp_path, slices)
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", False)
    with pytest.raises(ImportError, match=r"JPEG 2000.* needs a codec: pip install pylibjpeg pylibjpeg-openjpeg"):
        read_dicom(tmp_path)
    assert any(p.name == "unreadable pixel data" for p in find_series(tmp_path)[0].problems)


@pytest.mark.parametrize("cut", [4, 30])
def test_truncated_pixel_data_are_named(tmp_path, cut):
    save(tmp_path, series(hounsfield()))
    path = tmp_path / "image003.dcm"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        ValueError, match=r"unreadable pixel data: pixel data are truncated: \d+ bytes of 70 \(slice 4\)"
    ):
        read_dicom(tmp_path)


def test_damaged_compressed_pixels_are_named(tmp_path, caplog):
    slices = series(hounsfield(32, 24, 3))
    for data in slices:
        data.compress(RLELossless)
    save(tmp_path, slices)
    path = tmp_path / "image001.dcm"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"image001\.dcm \(slice 2\).*(no pixel data|truncated|cannot be read)"):
        read_dicom(tmp_path)
    assert str(tmp_path) not in caplog.text


def test_files_without_pixels_are_named(tmp_path):
    slices = series(hounsfield())
    del slices[2].PixelData
    save(tmp_path, slices)
    with pytest.raises(ValueError, match=r"there is no pixel data \(slice 3\)"):
        read_dicom(tmp_path)


def test_a_slope_of_zero_is_refused(tmp_path):
    slices = series(hounsfield())
    for data in slices:
        data.RescaleSlope = 0
    with pytest.raises(ValueError, match="RescaleSlope of 0"):
        read_dicom(save(tmp_path, slices))


def test_a_table_in_place_of_a_slope_is_applied(tmp_path):
    slices = series(np.arange(4 * 3 * 5).reshape(4, 3, 5), modality="MR", slope=None)
    for data in slices:
        table = pydicom.Dataset()
        table.LUTDescriptor = [64, 0, 16]
        table.LUTData = (np.arange(64, dtype=np.uint16) ** 2).tobytes()
        table.ModalityLUTType = "US"
        data.ModalityLUTSequence = [table]
    volume = read_dicom(save(tmp_path, slices))
    np.testing.assert_array_equal(volume.array[0], np.arange(60).reshape(4, 3, 5) ** 2)
