"""A narrow model of CT, scans of different kinds, and short names for encoding and decoding them, for tests of stores."""

import numpy as np
import torch
from test_reconstruct_volumes import affine_of, scan

from omnivae.data.volumes import ct_phantom, write_volume
from omnivae.data.volumes.dicom_write import write_dicom
from omnivae.jobs.decode import decode_latents
from omnivae.jobs.volumes_encode import encode_volumes
from omnivae.recipes.volumes import MaisiVAE


def save_toy(directory, seed=0, **arguments):
    torch.manual_seed(seed)
    model = MaisiVAE(num_channels=(8, 8, 8), num_res_blocks=(1, 1, 1), norm_num_groups=4, **arguments)
    model.save_pretrained(directory)
    return directory


def encode(model, paths, output, **arguments):
    paths = paths if isinstance(paths, list) else [paths]
    return encode_volumes(model, paths, output, progress=False, **arguments)


def decode(store, model, output, **arguments):
    return decode_latents([store], model, output, progress=False, **arguments)


def write_scans(folder):
    """Six scans of different sizes, geometries, types and formats, in folders."""
    write_volume(scan(affine_of("oblique")), folder / "oblique.nii.gz")
    volume = scan(affine_of("PIR"), "float32", seed=1)
    write_volume(volume.with_array(volume.array[:, :, :5]), folder / "deep" / "float.nii")
    volume = scan(affine_of("tilted"), seed=2)
    write_volume(volume.with_array(np.tile(volume.array, (1, 2, 1, 3))), folder / "tilted.nii.gz")
    write_volume(scan(affine_of("anisotropic"), "int32", seed=3), folder / "itk.nrrd")
    write_volume(ct_phantom(0, size=(20, 16, 12), spacing=(18.0, 18.0, 30.0)).volume, folder / "phantom.mha")
    write_dicom(scan(affine_of("LPS"), seed=4), folder / "series")
    return folder
