"""What a folder of volumes is trained with where nothing is said about the model."""

from pathlib import Path

from omnivae import DataConfig
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes import ct_phantom, write_volume
from omnivae.jobs.choose import choose_for


def test_volumes_larger_than_a_small_picture_get_a_model_of_volumes(tmp_path: Path):
    for seed in range(2):
        phantom = ct_phantom(seed, size=(72, 16, 16), spacing=(5.0, 24.0, 24.0))
        write_volume(phantom.volume, tmp_path / f"{seed}.nii.gz")
    chosen = choose_for(DataConfig(str(tmp_path), volume=VolumeConfig(unit="HU", patch_size=16)))
    assert chosen["model"]["recipe"] == "maisi_vae"
    assert "data" not in chosen  # no side of images
