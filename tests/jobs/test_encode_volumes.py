"""Volumes in a posterior store: encoded as reconstruct sees them, decoded to what reconstruct writes, whatever happens between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_reconstruct_volumes import affine_of, scan

from omnivae.data.volumes import ct_phantom, write_volume
from omnivae.data.volumes.dicom_write import write_dicom
from omnivae.jobs.decode import decode_latents
from omnivae.jobs.volumes_encode import encode_volumes
from omnivae.jobs.volumes_reconstruct import reconstruct_volumes
from omnivae.recipes.volumes import MaisiVAE

nib = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


def save_toy(directory, seed=0, **arguments):
    torch.manual_seed(seed)
    model = MaisiVAE(num_channels=(8, 8, 8), num_res_blocks=(1, 1, 1), norm_num_groups=4, **arguments)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A narrow model of HU volumes; tests must not write to it."""
    return save_toy(tmp_path_factory.mktemp("toy") / "maisi")


def encode(model, paths, output, **arguments):
    paths = paths if isinstance(paths, list) else [paths]
    return encode_volumes(model, paths, output, progress=False, **arguments)


def decode(store, model, output, **arguments):
    return decode_latents([store], model, output, progress=False, **arguments)


@pytest.fixture
def scans(tmp_path):
    """Six scans of different sizes, geometries, types and formats, in folders."""
    folder = tmp_path / "scans"
    write_volume(scan(affine_of("oblique")), folder / "oblique.nii.gz")
    volume = scan(affine_of("PIR"), "float32", seed=1)
    write_volume(volume.with_array(volume.array[:, :, :5]), folder / "deep" / "float.nii")
    volume = scan(affine_of("tilted"), seed=2)
    write_volume(volume.with_array(np.tile(volume.array, (1, 2, 1, 3))), folder / "tilted.nii.gz")
    write_volume(scan(affine_of("anisotropic"), "int32", seed=3), folder / "itk.nrrd")
    write_volume(ct_phantom(0, size=(20, 16, 12), spacing=(18.0, 18.0, 30.0)).volume, folder / "phantom.mha")
    write_dicom(scan(affine_of("LPS"), seed=4), folder / "series")
    return folder


# -- what reconstruct writes


def test_decoding_gives_what_reconstruct_writes_bit_for_bit(toy, scans, tmp_path):
    result = encode(toy, scans, tmp_path / "store")
    assert (result.encoded, result.kept, result.what) == (6, 0, "volumes")
    written = decode(tmp_path / "store", toy, tmp_path / "decoded")
    expected = reconstruct_volumes(toy, [scans], tmp_path / "expected", measure=False, progress=False)
    names = sorted(r.output for r in expected)
    assert sorted(path.relative_to(tmp_path / "decoded").as_posix() for path in written) == names
    assert len(names) == 6
    for name in names:
        # Equal volumes are equal files: header, affine, type and every voxel.
        assert (tmp_path / "decoded" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
    dtypes = {nib.load(path).get_data_dtype().name for path in written}
    assert dtypes == {"int16", "int32", "float32"}
