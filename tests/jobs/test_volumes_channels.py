"""A model trained on a named channel of a plate takes that channel of any plate, by its name, in every command on volumes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from test_reconstruct_volumes import identity
from test_volume_runs import MODEL
from volume_stores import decode, encode, save_toy

from omnivae.cli.main import main
from omnivae.data import DataConfig
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes import read_volume, write_volume
from omnivae.jobs.config import RunConfig
from omnivae.jobs.train import train
from omnivae.jobs.volumes_anomaly import find_volume_anomalies
from omnivae.jobs.volumes_channels import choose_channels, known_channels
from omnivae.jobs.volumes_codec import VolumeCodec
from omnivae.jobs.volumes_reconstruct import reconstruct_volumes
from omnivae.models import VAE
from omnivae.training import TrainingConfig
from omnivae.volume import Volume

pytest.importorskip("zarr")
pytest.importorskip("nibabel")

VALUES = {"unit": "arbitrary", "percentiles": [0, 100], "range": [0, 1], "clip": True}
NAMES = ("Phase3D", "Nuclei", "Membrane")


def field(names: tuple[str, ...] = NAMES, seed: int = 0) -> Volume:
    """A field of view whose channels hold different values."""
    count = 3
    array = (
        np.random.default_rng(seed).integers(0, 999, (count, 8, 12, 8)) + 1000 * np.arange(count)[:, None, None, None]
    )
    chosen = [NAMES.index(name) for name in names] if names else range(count)
    return Volume(
        array[list(chosen)].astype(np.uint16), np.diag([0.25, 0.1, 0.1, 1.0]), space="stage", channels=tuple(names)
    )


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path / "cache"))


def taking(*names: str, channels: int | None = None) -> VAE:
    """A model that changes nothing and was trained on some channels."""
    model = identity(VALUES, channels=channels or len(names))
    if names:
        model.statistics["channels"] = list(names)
    return model


def plate_model(directory: Path) -> Path:
    """A model directory that was trained on nuclei."""
    save_toy(directory)
    file = directory / "statistics.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {"intensity": VALUES, "channels": ["Nuclei"]}))
    return directory


@pytest.mark.parametrize(
    "wanted", [("Phase3D",), ("Nuclei",), ("Membrane", "Phase3D"), ("Nuclei", "Membrane", "Phase3D")]
)
def test_reconstruct_takes_the_channels_by_name_and_writes_them_with_their_names(tmp_path, caplog, wanted):
    for number in range(2):
        write_volume(field(seed=number), tmp_path / "in" / f"{number}.ome.zarr")
    with caplog.at_level(logging.INFO, "omnivae"):
        results = reconstruct_volumes(taking(*wanted), [tmp_path / "in"], tmp_path / "out", progress=False)
    for number, result in enumerate(results):
        after = read_volume(tmp_path / "out" / result.output)
        assert after.channels == wanted
        np.testing.assert_array_equal(after.array, field(wanted, seed=number).array)
        np.testing.assert_allclose(after.affine, field().affine)
        assert result.shape[0] == len(wanted)
        assert result.metrics["mae"] == 0
    said = [record.message for record in caplog.records if "the model takes" in record.message]
    assert said == [
        f"of the channels Phase3D, Nuclei, Membrane the model takes {', '.join(wanted)}, as in its training"
    ]


def test_encode_and_decode_take_the_channel(tmp_path):
    model = plate_model(tmp_path / "model")
    write_volume(field(), tmp_path / "plate.ome.zarr")
    write_volume(field(("Nuclei",)), tmp_path / "alone" / "plate.ome.zarr")
    for source, store in (("plate.ome.zarr", "a"), ("alone", "b")):
        encode(model, tmp_path / source, tmp_path / store)
        decode(tmp_path / store, model, tmp_path / f"{store}-back")
    ours, alone = (read_volume(tmp_path / f"{store}-back" / "plate.ome.zarr") for store in "ab")
    assert ours.channels == alone.channels == ("Nuclei",)
    np.testing.assert_array_equal(ours.array, alone.array)
    (rebuilt,) = reconstruct_volumes(model, [tmp_path / "plate.ome.zarr"], tmp_path / "rec", progress=False)
    np.testing.assert_array_equal(ours.array, read_volume(tmp_path / "rec" / rebuilt.output).array)


def test_anomaly_takes_the_channel(tmp_path):
    model = plate_model(tmp_path / "model")
    for number in range(2):
        write_volume(field(seed=number), tmp_path / "all" / f"{number}.ome.zarr")
        write_volume(field(("Nuclei",), seed=number), tmp_path / "alone" / f"{number}.ome.zarr")
    ours, alone = (
        find_volume_anomalies(
            model, str(tmp_path / part), normal=str(tmp_path / part), rate=0.5, limit=2, progress=False
        )
        for part in ("all", "alone")
    )
    np.testing.assert_array_equal(ours.scores["mean"], alone.scores["mean"])


@pytest.mark.parametrize("chosen", [("Nuclei",), ()])
def test_training_writes_the_names_so_that_the_directory_alone_knows(tmp_path, chosen):
    for number in range(4):
        write_volume(field(seed=number), tmp_path / "in" / f"{number}.ome.zarr")
    config = RunConfig(
        model=dict(MODEL),
        data=DataConfig(
            str(tmp_path / "in"), volume=VolumeConfig(patch_size=8, patches_per_volume=1, channel_names=chosen)
        ),
        losses={"l1": {}, "kl": {"weight": 1e-7}},
        training=TrainingConfig(batch_size=2, max_steps=1),
    )
    train(config, tmp_path / "run", progress=False, report=False)
    model = (tmp_path / "run" / "model").rename(tmp_path / "model")
    names = chosen or NAMES
    assert VAE.from_pretrained(model).statistics["channels"] == list(names)
    # The same channels lie elsewhere in the files of another microscope.
    write_volume(field(("Membrane", "Nuclei", "Phase3D"), seed=9), tmp_path / "other.ome.zarr")
    (result,) = reconstruct_volumes(model, [tmp_path / "other.ome.zarr"], tmp_path / "out", progress=False)
    assert read_volume(tmp_path / "out" / result.output).channels == names


def test_a_model_of_before_knows_the_channels_that_its_training_chose():
    statistics = {"data": {"name": "plate", "volume": {"channel_names": ["Nuclei"]}}}
    assert known_channels(statistics, 1) == ("Nuclei",)
    assert known_channels(statistics, 2) == ()
    assert known_channels({"data": {"name": "faces", "volume": None}}, 3) == ()


@pytest.mark.parametrize("names", [["Nuclei", "Phase3D"], "N", [3]])
def test_statistics_that_are_no_names_are_refused(names):
    with pytest.raises(ValueError, match=r'"channels": .*expected a list of names, one for each of the 1'):
        known_channels({"channels": names}, 1)


@pytest.mark.parametrize(
    ("wanted", "count", "there", "said"),
    [
        (
            ("Actin",),
            1,
            NAMES,
            r"3 channels \(Phase3D, Nuclei, Membrane\) and the model takes 1 \(Actin\); none is called",
        ),
        ((), 1, NAMES, r'does not know their names: .* statistics.json .* "channels": \["Phase3D"\]'),
        (
            ("Nuclei",),
            1,
            (),
            r"3 channels \(without names\) and the model takes 1 \(Nuclei\): name the channels in the file",
        ),
        (
            ("Nuclei", "Actin"),
            2,
            ("Nuclei",),
            r"1 channel \(Nuclei\) and the model takes 2 .*: give volumes of 2 channels",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_the_command_with_names_and_remedy(
    tmp_path, capsys, wanted, count, there, said
):
    plate = tmp_path / "plate.ome.zarr"
    write_volume(field(there), plate)
    model = taking(*wanted, channels=count)
    with pytest.raises(ValueError, match=said) as refused:
        reconstruct_volumes(model, [plate], tmp_path / "out", progress=False)
    assert str(plate) in str(refused.value)
    assert not (tmp_path / "out" / "plate.ome.zarr").exists()


def test_the_commands_say_it_in_one_sentence(tmp_path, capsys):
    model = plate_model(tmp_path / "model")
    write_volume(field(("Phase3D", "Membrane")), tmp_path / "plate.ome.zarr")
    for command in ("reconstruct", "encode"):
        assert main([command, str(model), str(tmp_path / "plate.ome.zarr"), "-o", str(tmp_path / command)]) == 2
        said = capsys.readouterr().err.strip()
        assert (
            "plate.ome.zarr has 2 channels (Phase3D, Membrane) and the model takes 1 (Nuclei); none is called" in said
        )
        assert "\n" not in said


def test_two_channels_of_the_name_are_no_choice():
    volume = field()
    twice = volume.with_array(volume.array, channels=("Nuclei", "Nuclei", "Membrane"))
    with pytest.raises(ValueError, match="several are called Nuclei"):
        choose_channels(twice, ["Nuclei"], 1)


def test_as_many_channels_of_other_names_are_taken_with_a_warning(caplog):
    volume = field(("Membrane",))
    codec = VolumeCodec(taking("Nuclei"))
    with caplog.at_level(logging.INFO, "omnivae"):
        assert codec.choose(volume) is volume
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Membrane are shown to a model that was trained on Nuclei" in record.message
    caplog.clear()
    bare = volume.with_array(volume.array, channels=())
    assert codec.choose(bare) is bare
    assert not caplog.records
