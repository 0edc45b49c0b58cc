"""Volumes by path: what each format says, what is refused and in which words, and what a folder holds."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from dicom_slices import hounsfield, save, series

from omnivae.data.volumes import (
    check_hu,
    ct_phantom,
    guess_unit,
    list_volumes,
    mr_phantom,
    read_volume,
    volume_header,
    write_ome_zarr,
    write_plate,
    write_volume,
)
from omnivae.data.volumes.listing import natural
from omnivae.volume import Volume


def nifti(path, array, affine=None, **fields):
    image = nibabel.Nifti1Image(array, np.diag([-1.0, -1, 2, 1]) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def set_bytes(path, offset, content):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)
    return path


SMALL = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def test_four_axes_where_three_are_asked(tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (3, 4, 5, 2)).astype(np.int16)
    path = nifti(tmp_path / "four.nii", array)
    with pytest.raises(ValueError, match=r"holds 2 time points; expected one volume: choose one with time \(0 to 1\)"):
        read_volume(path)
    assert np.array_equal(read_volume(path, time=1).array[0], array[..., 1])
    assert volume_header(path).times == 2
    with pytest.raises(ValueError, match="got time 2; expected 0 to 1"):
        read_volume(path, time=2)
    single = nifti(tmp_path / "one.nii.gz", array[..., :1])
    assert np.array_equal(read_volume(single).array[0], array[..., 0])


@pytest.mark.parametrize(
    ("sform", "message"),
    [
        (np.zeros((3, 4)), "affine of zeros"),
        (np.full((3, 4), np.nan), "not finite"),
        (np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]), "affine of zeros or without volume"),
    ],
)
def test_an_affine_that_is_no_geometry(tmp_path, sform, message):
    path = nifti(tmp_path / "v.nii", SMALL)
    set_bytes(path, 280, sform.astype("<f4").tobytes())  # srow_x, srow_y, srow_z
    for read in (read_volume, volume_header):
        with pytest.raises(ValueError, match=message):
            read(path)


@pytest.mark.parametrize("length", [0.0, -1.0, np.nan])
def test_a_spacing_of_zero(tmp_path, length):
    image = nibabel.Nifti1Image(SMALL, None)
    image.header.set_qform(np.eye(4), code=1)
    image.to_filename(tmp_path / "v.nii")
    set_bytes(tmp_path / "v.nii", 76 + 4 * 2, np.array([length], "<f4").tobytes())  # pixdim[2]
    with pytest.raises(ValueError, match=r"has a spacing of .*; expected three lengths above 0"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize(("quaternion", "word"), [(2.0, "damaged"), (np.nan, "not finite")])
def test_a_broken_qform_beside_a_sform_is_said(tmp_path, quaternion, word):
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([1.0, 1, 2, 1]))
    image.header["qform_code"] = 1
    image.header["quatern_b"] = image.header["quatern_c"] = quaternion
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.affine, np.diag([1.0, 1, 2, 1]))
    assert any(f"the qform is {word}" in problem for problem in volume.problems)


def test_neither_sform_nor_qform_is_read_and_said(tmp_path):
    image = nibabel.Nifti1Image(SMALL, None)
    image.header.set_zooms((1, 2, 3))
    image.to_filename(tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    assert volume.spacing == (1, 2, 3)
    assert any("left, right and position are unknown" in problem for problem in volume.problems)


def test_lengths_in_metres_and_micrometres(tmp_path):
    for code, factor in ((1, 1000.0), (3, 0.001), (2, 1.0)):
        image = nibabel.Nifti1Image(SMALL, np.diag([0.5, 0.5, 2.0, 1.0]))
        image.header["xyzt_units"] = code
        image.to_filename(tmp_path / "v.nii")
        volume = read_volume(tmp_path / "v.nii")
        np.testing.assert_allclose(volume.spacing, np.array([0.5, 0.5, 2.0]) * factor)
        assert bool(volume.problems) == (code != 2)
        again = read_volume(write_volume(volume, tmp_path / "w.nii"))
        assert np.array_equal(again.affine, volume.affine)


def test_damaged_and_foreign_files(tmp_path):
    path = nifti(tmp_path / "v.nii", np.zeros((30, 30, 30), np.int16))
    packed = tmp_path / "w.nii.gz"
    packed.write_bytes(gzip.compress(np.random.default_rng(0).bytes(200_000)))
    for cut, message in ((5000, "is damaged: its voxels cannot be read"), (100, "is no NIfTI file, or cut off")):
        part = tmp_path / "part.nii"
        part.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match=message):
            read_volume(part)
    with pytest.raises(ValueError, match="is no NIfTI file"):
        read_volume(packed)
    good = write_volume(
        Volume(np.random.default_rng(0).integers(0, 9999, (1, 40, 40, 40)), np.eye(4)), tmp_path / "g.nii.gz"
    )
    good.write_bytes(good.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is damaged: its voxels cannot be read"):
        read_volume(good)
    (tmp_path / "x.mha").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x\.mha cannot be read as mha"):
        read_volume(tmp_path / "x.mha")
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(ValueError, match="is no volume that is known here"):
        read_volume(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_volume(tmp_path / "none.nii")


def test_a_packed_file_without_gz_in_its_name_is_read(tmp_path):
    packed = write_volume(Volume(SMALL[None], np.eye(4)), tmp_path / "v.nii.gz")
    packed.rename(tmp_path / "v.nii")
    assert np.array_equal(read_volume(tmp_path / "v.nii").array[0], SMALL)


def test_big_endian_files_are_read(tmp_path):
    image = nibabel.Nifti1Image(SMALL, np.eye(4), nibabel.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    image.to_filename(tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[0], SMALL)


def test_colours_and_complex_numbers_are_refused(tmp_path):
    rgb = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(ValueError, match=r"holds colours \(R, G, B\)"):
        read_volume(nifti(tmp_path / "rgb.nii", rgb))
    with pytest.raises(ValueError, match="samples of type complex64"):
        read_volume(nifti(tmp_path / "c.nii", np.zeros((3, 3, 3), np.complex64)))


def test_options_that_a_format_does_not_have(tmp_path):
    path = nifti(tmp_path / "v.nii", SMALL)
    with pytest.raises(ValueError, match=r"got level, position for .* which is NIfTI"):
        read_volume(path, level=1, position="A/1/0")
    with pytest.raises(ValueError, match=r"expected one that ends in \.nii"):
        write_volume(read_volume(path), tmp_path / "v.jpg")


def test_hounsfield_units_are_asked_for_never_guessed(tmp_path):
    ct = ct_phantom(0, size=(32, 28, 20), spacing=(12, 12, 18)).volume
    path = write_volume(ct, tmp_path / "ct.nii.gz")
    assert read_volume(path).unit == "arbitrary"
    assert read_volume(path, unit="HU").unit == "HU"
    assert guess_unit(read_volume(path)) == "HU"
    mr = write_volume(mr_phantom(0, size=(32, 32, 32), spacing=(7, 7, 7), lesions=0).volume, tmp_path / "mr.nii.gz")
    assert guess_unit(read_volume(mr)) == "arbitrary"
    with pytest.raises(ValueError, match="expected 'HU' or 'arbitrary'"):
        read_volume(path, unit="hu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: np.clip((a + 1000) / 8, 0, 255).astype(np.uint8), "8-bit picture or screenshot"),
        (lambda a: np.clip((a + 1000) / 8, 0, 255).astype(np.int16), "8-bit picture or screenshot"),
        (lambda a: (np.clip(a, -1000, 1000) / 1000).astype(np.float32), r"scaled to \[-1, 1\]"),
        (lambda a: (a + 1024).astype(np.int16), "add the intercept"),
        (lambda a: np.where(a < 0, -3, a), "neither air nor fat"),
        (lambda a: np.where(a < -900, np.nan, a), "not finite"),
        (lambda a: (a + 1000) * 20 - 60, r"\d+% of the voxels lie above 1000, denser than bone"),
    ],
)
def test_what_cannot_be_hounsfield_units_is_refused(change, message):
    ct = ct_phantom(0, size=(32, 28, 20), spacing=(12, 12, 18)).volume
    check_hu(ct)
    with pytest.raises(ValueError, match=message):
        check_hu(ct.with_array(change(ct.array)))


def test_itk_files_of_two_and_four_axes_and_vectors(tmp_path):
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(np.full((3, 4, 5), n, np.int16)) for n in range(2)])
    SimpleITK.WriteImage(image, str(tmp_path / "t.nrrd"))
    with pytest.raises(ValueError, match="holds 2 time points"):
        read_volume(tmp_path / "t.nrrd")
    assert set(np.unique(read_volume(tmp_path / "t.nrrd", time=1).array)) == {1}
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 5), np.int16)), str(tmp_path / "flat.mha"))
    assert read_volume(tmp_path / "flat.mha").size == (5, 4, 1)
    assert "thickness is unknown" in read_volume(tmp_path / "flat.mha").problems[0]


def test_a_spacing_of_zero_in_mha(tmp_path):
    path = write_volume(Volume(SMALL[None], np.eye(4)), tmp_path / "v.mha")
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1"))
    with pytest.raises(ValueError, match=r"v\.mha"):
        read_volume(path)


# ------------------------------------------------------------------------------------------------ TIFF


def test_imagej_axes_spacing_and_channels(tmp_path):
    array = np.random.default_rng(0).integers(0, 65535, (2, 5, 3, 6, 7)).astype(np.uint16)  # T Z C Y X
    about = {"axes": "TZCYX", "spacing": 2.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "v.tif", array, imagej=True, resolution=(4.0, 5.0), metadata=about)
    volume = read_volume(tmp_path / "v.tif", time=1)
    assert np.array_equal(volume.array, array[1].transpose(1, 0, 2, 3))
    assert volume.spacing == pytest.approx((2.5, 0.2, 0.25))
    assert volume.space == "stage"
    assert volume.problems == ()
    assert volume_header(tmp_path / "v.tif").times == 2


def test_ome_axes_spacing_and_channel_names(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    about = {
        "axes": "CZYX",
        "PhysicalSizeX": 120,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.13,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 0.5,
        "Channel": {"Name": ["Phase3D", "GFP"]},
    }
    tifffile.imwrite(tmp_path / "v.ome.tif", array, metadata=about, photometric="minisblack")
    volume = read_volume(tmp_path / "v.ome.tif")
    assert np.array_equal(volume.array, array)
    assert volume.spacing == pytest.approx((0.5, 0.13, 0.12))
    assert volume.channels == ("Phase3D", "GFP")


def test_stacks_that_do_not_name_their_axes(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (4, 2, 5, 6)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", array[:, 0], metadata=None, photometric="minisblack")
    volume = read_volume(tmp_path / "pages.tif")
    assert np.array_equal(volume.array[0], array[:, 0])
    assert any("taken for slices along z" in problem for problem in volume.problems)
    tifffile.imwrite(tmp_path / "q.tif", array, photometric="minisblack")
    with pytest.raises(ValueError, match="whose meaning the file does not say: give axes, such as 'ZCYX'"):
        read_volume(tmp_path / "q.tif")
    assert np.array_equal(read_volume(tmp_path / "q.tif", axes="ZCYX").array, array.transpose(1, 0, 2, 3))
    with pytest.raises(ValueError, match="expected one letter of T, C, Z, Y, X for each"):
        read_volume(tmp_path / "q.tif", axes="ZYX")


@pytest.mark.parametrize("imagej", [True, False])
@pytest.mark.parametrize("missing", [300, 9000, 30000])
def test_a_tiff_cut_off_is_refused(tmp_path, imagej, missing):
    options = {"imagej": True, "metadata": {"axes": "ZYX"}} if imagej else {"metadata": None}
    tifffile.imwrite(tmp_path / "v.tif", np.ones((9, 50, 50), np.uint16), photometric="minisblack", **options)
    content = (tmp_path / "v.tif").read_bytes()
    assert read_volume(tmp_path / "v.tif").size == (9, 50, 50)
    (tmp_path / "v.tif").write_bytes(content[:-missing])
    with pytest.raises(ValueError, match="damaged"):
        read_volume(tmp_path / "v.tif")


def test_a_stack_cut_off_after_its_first_page_is_no_picture(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", np.ones((9, 50, 50), np.uint16), metadata=None, compression="zlib")
    with tifffile.TiffFile(tmp_path / "v.tif") as tif:
        second = tif.pages[1].offset
    (tmp_path / "v.tif").write_bytes((tmp_path / "v.tif").read_bytes()[:second])
    assert [entry.name for entry in list_volumes(tmp_path)] == ["v.tif"]
    with pytest.raises(ValueError, match="its list of pages breaks off after 1"):
        read_volume(tmp_path / "v.tif")


# ------------------------------------------------------------------------------------------------ folders


def test_a_folder_is_listed_in_natural_order(tmp_path):
    volume = Volume(SMALL[None], np.eye(4))
    stage = Volume(SMALL[None], np.eye(4), space="stage")
    for name in ("s10.nii.gz", "s2.nii", "deep/s1.nrrd", "a.mha"):
        write_volume(volume, tmp_path / name)
    write_plate({"B/10/0": stage, "B/2/0": stage}, tmp_path / "p.zarr")
    write_ome_zarr(stage, tmp_path / "image.ome.zarr")
    tifffile.imwrite(tmp_path / "stack.tif", SMALL, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "picture.tif", SMALL[0])
    (tmp_path / "notes.txt").write_text("about")
    (tmp_path / ".hidden.nii").write_bytes(b"")
    entries = list_volumes(tmp_path)
    assert [entry.name for entry in entries] == [
        *(
            "a.mha",
            "deep/s1.nrrd",
            "image.ome.zarr",
            "p.zarr/B/2/0",
            "p.zarr/B/10/0",
            "s2.nii",
            "s10.nii.gz",
            "stack.tif",
        )
    ]
    for entry in entries:
        assert np.array_equal(entry.read().array, SMALL[None])
        assert entry.header().shape == (1, *SMALL.shape)
    assert [entry.name for entry in list_volumes(tmp_path / "s2.nii")] == ["s2.nii"]
    assert [entry.position for entry in list_volumes(tmp_path / "p.zarr")] == ["B/2/0", "B/10/0"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no volume that is known here"):
        list_volumes(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        list_volumes(tmp_path / "none")


def test_dicom_series_are_listed_without_identifiers_and_read(tmp_path):
    for part, patient in (("one", "P1"), ("1.2.840.113619.2.55.3", "P2")):
        save(tmp_path / part, series(hounsfield(), patient=patient))
    entries = list_volumes(tmp_path)
    assert [entry.format for entry in entries] == ["dicom", "dicom"]
    assert not any("1.2.840" in entry.name for entry in entries)
    for entry in entries:
        assert entry.readable
        volume = entry.read()
        assert np.array_equal(volume.array[0], hounsfield())
        assert volume.unit == "HU"
        assert np.array_equal(volume.affine, entry.header().affine)
    with pytest.raises(ValueError, match="holds 2 patients"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, series=2).size == (7, 5, 6)
    with pytest.raises(ValueError, match="is in Hounsfield units; got the unit 'arbitrary'"):
        read_volume(tmp_path / "one", unit="arbitrary")
    assert [entry.format for entry in list_volumes(next((tmp_path / "one").iterdir()))] == ["dicom"]


def test_natural_order():
    assert sorted(["x10", "x9", "X1", "a"], key=natural) == ["a", "X1", "x9", "x10"]
