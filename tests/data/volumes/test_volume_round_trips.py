"""Reading, writing and reading again changes nothing: values, affine, spacing, orientation, shape and type are bit-equal."""

import gzip
import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from omnivae.data.volumes import Orient, read_volume, to_stored, volume_header, write_volume
from omnivae.volume import Stored, Volume

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".ome.zarr")


def affine_of(kind):
    spacing = np.array([0.7, 0.7, 3.3])
    axes = {
        "RAS": np.eye(3),
        "LPS": np.diag([-1, -1, 1]),
        "PIR": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
        "oblique": Rotation.from_euler("xyz", [11, -23, 37], degrees=True).as_matrix(),
        "sheared": np.array([[1, 0, 0], [0, 1, 0.33], [0, 0, 1]]),
    }[kind]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = [-101.3, 57.123456789, 12.5]
    return affine


def values(dtype):
    generator = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return generator.normal(-300, 500, (1, 7, 6, 5)).astype(dtype)
    ends = np.iinfo(dtype)
    array = generator.integers(ends.min, ends.max, (1, 7, 6, 5), dtype=dtype, endpoint=True)
    array[0, 0, 0, :2] = ends.min, ends.max
    return array


def cases():
    for suffix, kind in itertools.product(SUFFIXES, ("RAS", "LPS", "PIR", "oblique", "sheared")):
        if kind != "sheared" or suffix not in (".nrrd", ".mha"):
            yield suffix, kind, "int16"
    for suffix, dtype in itertools.product(SUFFIXES, ("uint8", "uint16", "int32", "float32", "float64")):
        yield suffix, "oblique", dtype


@pytest.mark.parametrize(("suffix", "kind", "dtype"), list(cases()))
def test_identity(tmp_path, suffix, kind, dtype):
    volume = Volume(values(dtype), affine_of(kind), stored=Stored(dtype))
    first = read_volume(write_volume(volume, tmp_path / f"a{suffix}"))
    np.testing.assert_allclose(first.affine, volume.affine, rtol=1e-6, atol=1e-5)  # NIfTI's sform is float32
    second = read_volume(write_volume(first, tmp_path / f"b{suffix}"))
    for got in (first, second):
        assert np.array_equal(got.array, volume.array)
        assert got.array.dtype == np.dtype(dtype)
        assert got.stored == Stored(dtype)
        assert got.orientation == volume.orientation
        np.testing.assert_allclose(got.spacing, volume.spacing, rtol=1e-6)
    assert np.array_equal(first.affine, second.affine)
    assert first.spacing == second.spacing
    header = volume_header(tmp_path / f"b{suffix}")
    assert header.shape == volume.array.shape
    assert np.array_equal(header.affine, second.affine)
    assert (header.dtype, header.orientation) == (dtype, volume.orientation)


@pytest.mark.parametrize("kind", ["LPS", "PIR", "oblique"])
def test_nibabel_and_itk_agree_on_what_was_written(tmp_path, kind):
    volume = Volume(values("int16"), affine_of(kind), stored=Stored("int16"))
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        path = write_volume(volume, tmp_path / f"v{suffix}")
        image = SimpleITK.ReadImage(str(path))
        assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), volume.array[0])
        for index in ((0, 0, 0), (6, 5, 4), (2, 0, 3)):
            world = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]  # ITK's world is LPS
            np.testing.assert_allclose(world, (volume.affine @ [*index, 1])[:3], atol=2e-5)
    image = nibabel.load(tmp_path / "v.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), volume.array[0])
    np.testing.assert_allclose(image.affine, volume.affine, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(image.header.get_qform(), volume.affine, atol=1e-4)
    assert nibabel.aff2axcodes(image.affine) == tuple(volume.orientation)


def test_nibabel_keeps_the_shear_that_itk_refuses(tmp_path):
    volume = Volume(values("int16"), affine_of("sheared"))
    path = write_volume(volume, tmp_path / "v.nii")
    np.testing.assert_allclose(nibabel.load(path).affine, volume.affine, rtol=1e-6)
    assert int(nibabel.load(path).header["qform_code"]) == 0  # a quaternion cannot hold it
    for suffix in (".nrrd", ".mha"):
        with pytest.raises(ValueError, match=r"sheared by .* write \.nii\.gz.*Resample\(deshear=True\)"):
            write_volume(volume, tmp_path / f"v{suffix}")


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (0.5, 3.0), (2.4420026e-3, -7.0), (-2.0, 100.0)])
@pytest.mark.parametrize("stored", ["int16", "uint16"])
def test_slope_and_intercept_are_kept(tmp_path, slope, intercept, stored):
    raw = np.random.default_rng(0).integers(0, 4096, (5, 4, 3)).astype(stored)
    image = nibabel.Nifti1Image(raw, np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(tmp_path / "a.nii")
    truth = nibabel.load(tmp_path / "a.nii").get_fdata()
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.array[0], truth, rtol=1e-6)
    whole = slope == int(slope) and stored == "int16"  # all values fit; below 0 they do not fit into uint16
    assert volume.array.dtype == ("int16" if whole else "float32")
    again = nibabel.load(write_volume(volume, tmp_path / "b.nii"))
    assert np.array_equal(np.asanyarray(again.dataobj.get_unscaled()), raw)
    assert again.get_data_dtype() == np.dtype(stored)
    assert (again.dataobj.slope, again.dataobj.inter) == (np.float32(slope), np.float32(intercept))
    # Other formats have no slope: they hold the values.
    other = read_volume(write_volume(volume, tmp_path / "c.mha"))
    assert np.array_equal(other.array, volume.array)


def test_codes_and_an_sform_that_differs_from_the_qform_are_kept_bit_for_bit(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine_of("oblique"))
    image.header.set_sform(affine_of("oblique"), code=4)
    image.header.set_qform(affine_of("LPS"), code=2)
    image.to_filename(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert any("disagree" in problem for problem in volume.problems)
    write_volume(volume, tmp_path / "b.nii.gz")
    a, b = (nibabel.load(tmp_path / f"{name}.nii.gz").header for name in "ab")
    for field in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "pixdim",
    ):
        assert a[field].tobytes() == b[field].tobytes(), field


def test_a_qform_alone_comes_back_bit_for_bit(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header.set_qform(affine_of("oblique"), code=1)
    image.header.set_sform(None, code=0)
    image.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    again = read_volume(write_volume(volume, tmp_path / "b.nii"))
    assert np.array_equal(again.affine, volume.affine)
    # A changed affine is written as such, not the source's.
    turned = Orient("RAS").plan(volume).forward(volume, "linear")
    assert read_volume(write_volume(turned, tmp_path / "c.nii")).orientation == "RAS"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_channels_come_back(tmp_path, suffix):
    array = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    volume = Volume(array, affine_of("LPS"), stored=Stored("float32"))
    assert np.array_equal(read_volume(write_volume(volume, tmp_path / f"v{suffix}")).array, array)


def test_values_beyond_the_stored_type_are_refused_or_clipped_on_request(tmp_path):
    volume = Volume(np.full((1, 2, 2, 2), 40000.4, np.float32), np.eye(4), stored=Stored("int16"))
    with pytest.raises(ValueError, match="8 values beyond int16"):
        write_volume(volume, tmp_path / "v.nii")
    assert not list(tmp_path.iterdir())
    assert read_volume(write_volume(volume, tmp_path / "v.nii", clip=True)).array.max() == 32767
    holes = Volume(np.full((1, 2, 2, 2), np.nan, np.float32), np.eye(4), stored=Stored("int16"))
    with pytest.raises(ValueError, match="not finite"):
        write_volume(holes, tmp_path / "w.nii", clip=True)
    rounded = Volume(np.array([0.4, 0.6, -1.5, 2.5], np.float32).reshape(1, 4, 1, 1), np.eye(4), stored=Stored("int16"))
    assert to_stored(rounded)[0].ravel().tolist() == [0, 1, -2, 2]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_about_a_person_is_written(tmp_path, suffix):
    secrets = {"PatientName": "DOE^JANE", "uid": "1.2.840.99999.7", "date": "19580301"}
    volume = Volume(
        values("int16"),
        affine_of("LPS"),
        stored=Stored("int16"),
        source="/scans/DOE^JANE/1.2.840.99999.7",
        origin=secrets,
    )
    path = write_volume(volume, tmp_path / f"out{suffix}")
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        content = file.read_bytes()
        content += gzip.decompress(content) if suffix == ".nii.gz" else b""
        assert not [secret for secret in (*secrets.values(), "scans") if secret.encode() in content]
    if suffix.startswith(".nii"):
        header = nibabel.load(path).header
        assert [header[field].item() for field in ("descrip", "db_name", "aux_file", "intent_name")] == [b""] * 4
        assert not header.extensions


def test_extensions_and_descriptions_of_the_source_are_dropped(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4))
    image.header["descrip"], image.header["db_name"] = b"DOE^JANE 1958", b"DOE"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"born 19580301"))
    image.to_filename(tmp_path / "a.nii")
    content = write_volume(read_volume(tmp_path / "a.nii"), tmp_path / "b.nii").read_bytes()
    assert b"DOE" not in content
    assert b"1958" not in content


def test_equal_volumes_are_equal_files(tmp_path):
    volume = Volume(values("int16"), affine_of("LPS"))
    a, b = (write_volume(volume, tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert a == b


def test_an_axis_too_long_for_nifti_1(tmp_path):
    volume = Volume(np.zeros((1, 40000, 1, 1), np.uint8), np.eye(4))
    path = write_volume(volume, tmp_path / "long.nii")
    assert isinstance(nibabel.load(path), nibabel.Nifti2Image)
    assert read_volume(path).size == (40000, 1, 1)
