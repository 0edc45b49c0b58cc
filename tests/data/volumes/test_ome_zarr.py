"""OME-Zarr: stores written by hand after the specification are read, ours hold what it says, crops touch what they need."""

import json
import pickle

import numpy as np
import pytest
import zarr

from omnivae.data.volumes import OmeZarrImage, plate_positions, read_volume, write_ome_zarr, write_plate
from omnivae.volume import Stored, Volume


def store(
    path,
    array,
    axes,
    *,
    version="0.4",
    names=None,
    scale=None,
    unit="micrometer",
    levels=("s0",),
    extra=None,
    **options,
):
    """Write an image straight from the specification, without this library's writer."""
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    kinds = {"t": "time", "c": "channel"}
    listed = []
    for axis in axes:
        entry = {"name": axis, "type": kinds.get(axis.lower(), "space")}
        if entry["type"] == "space" and unit:
            entry["unit"] = unit
        listed.append(entry)
    datasets = []
    for n, name in enumerate(levels):
        data = array[..., :: 2**n, :: 2**n]
        made = group.create_array(name, shape=data.shape, dtype=data.dtype, **options)
        made[...] = data
        factor = [2**n if axis.lower() in "yx" else 1 for axis in axes]
        values = [s * f for s, f in zip(scale or [1.0] * len(axes), factor, strict=True)]
        datasets.append({"path": name, "coordinateTransformations": [{"type": "scale", "scale": values}]})
    about = {"multiscales": [{"axes": listed, "datasets": datasets, **(extra or {})}]}
    if names:
        about["omero"] = {"channels": [{"label": label} for label in names]}
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", **about}
    else:
        about["multiscales"][0]["version"] = version
        group.attrs.update(about)
    return path


def random(*shape):
    return np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "TCZYX", "czyx", "zyx", "cyx", "tzyx", "yx"])
def test_three_to_five_axes_in_either_case(tmp_path, version, axes):
    sizes = {"t": 1, "c": 2, "z": 3, "y": 4, "x": 5}
    steps = {"t": 1.0, "c": 1.0, "z": 0.5, "y": 0.2, "x": 0.1}
    array = random(*[sizes[a] for a in axes.lower()])
    store(tmp_path / "i.zarr", array, axes, version=version, scale=[steps[a] for a in axes.lower()])
    volume = read_volume(tmp_path / "i.zarr")
    c, z = (sizes[a] if a in axes.lower() else 1 for a in "cz")
    assert np.array_equal(volume.array, array.reshape(c, z, 4, 5))
    assert volume.spacing == pytest.approx((0.5 if z > 1 else 1.0, 0.2, 0.1))
    assert volume.channels == ()
    assert volume.space == "stage"
    image = OmeZarrImage(tmp_path / "i.zarr")
    assert (image.version, image.axes) == (version, axes.lower())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_by_the_paths_of_the_metadata_and_scales_of_the_whole_image(tmp_path, version):
    array = random(3, 8, 8)
    extra = {"coordinateTransformations": [{"type": "scale", "scale": [2.0, 1.0, 1.0]}]}
    store(
        tmp_path / "i.zarr",
        array,
        "zyx",
        version=version,
        scale=[100, 50, 50],
        unit="nanometer",
        levels=("full", "a/half"),
        extra=extra,
    )
    assert OmeZarrImage(tmp_path / "i.zarr").levels == 2
    assert read_volume(tmp_path / "i.zarr", level=0).spacing == pytest.approx((0.2, 0.05, 0.05))
    coarse = read_volume(tmp_path / "i.zarr", level=1)
    assert coarse.spacing == pytest.approx((0.2, 0.1, 0.1))
    assert np.array_equal(coarse.array[0], array[:, ::2, ::2])
    with pytest.raises(ValueError, match="has 2 resolution levels; got level 2; expected 0 to 1"):
        read_volume(tmp_path / "i.zarr", level=2)


def test_old_versions_without_axes_or_with_plain_ones(tmp_path):
    array = random(1, 2, 3, 4, 5)
    store(tmp_path / "i.zarr", array, "tczyx", version="0.1")
    attributes = json.loads((tmp_path / "i.zarr" / ".zattrs").read_text())
    for axes in (None, list("tczyx")):
        attributes["multiscales"][0].pop("axes", None)
        if axes:
            attributes["multiscales"][0]["axes"] = axes
        attributes["multiscales"][0]["datasets"] = [{"path": "s0"}]
        (tmp_path / "i.zarr" / ".zattrs").write_text(json.dumps(attributes))
        volume = read_volume(tmp_path / "i.zarr")
        assert np.array_equal(volume.array, array[0])
        assert any("micrometres are assumed" in problem for problem in volume.problems)


def test_channels_by_name_and_number(tmp_path):
    array = random(3, 2, 4, 4)
    store(tmp_path / "i.zarr", array, "czyx", names=("Phase3D", "GFP", "DAPI"))
    image = OmeZarrImage(tmp_path / "i.zarr")
    assert np.array_equal(image.crop(channels=["DAPI", "Phase3D"]), array[[2, 0]])
    assert np.array_equal(image.crop(channels=[1]), array[[1]])
    volume = read_volume(tmp_path / "i.zarr", channels=["GFP"])
    assert (volume.channels, volume.array.shape) == (("GFP",), (1, 2, 4, 4))
    with pytest.raises(
        ValueError, match=r"has no channel 'Phase'; did you mean 'Phase3D'\?; it has Phase3D, GFP, DAPI"
    ):
        image.crop(channels=["Phase"])
    with pytest.raises(ValueError, match="has 3 channels; got channel 3; expected 0 to 2"):
        image.crop(channels=[3])
    store(tmp_path / "bare.zarr", array, "czyx")
    with pytest.raises(ValueError, match="its 3 channels have no names: choose by number"):
        OmeZarrImage(tmp_path / "bare.zarr").crop(channels=["GFP"])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_crop_reads_the_chunks_that_it_touches_and_no_others(tmp_path, version):
    array = random(1, 2, 6, 64, 64)
    store(tmp_path / "i.zarr", array, "tczyx", version=version, chunks=(1, 1, 2, 32, 32))
    # Every other chunk is spoilt: a crop that opened one would fail.
    chunks = [
        p
        for p in (tmp_path / "i.zarr" / "s0").rglob("*")
        if p.is_file() and not p.name.startswith(".z") and p.name != "zarr.json"
    ]
    assert len(chunks) == 2 * 3 * 2 * 2
    wanted = [p for p in chunks if tuple(int(n) for n in p.name.split(".")[-5:] if n.isdigit())[-5:] == (0, 1, 1, 0, 1)]
    if not wanted:
        wanted = [
            p for p in chunks if p.relative_to(tmp_path / "i.zarr" / "s0").parts[-5:] == ("0", "1", "1", "0", "1")
        ]
    assert len(wanted) == 1
    for path in set(chunks) - set(wanted):
        path.write_bytes(b"spoilt")
    image = OmeZarrImage(tmp_path / "i.zarr")
    assert image.chunks == (2, 32, 32)
    assert np.array_equal(image.crop(z=(2, 4), y=(0, 32), x=slice(40, 64), channels=[1]), array[0, 1:, 2:4, :32, 40:])
    with pytest.raises(ValueError, match="is damaged: voxels cannot be read"):
        image.crop(z=(0, 4))


def test_ranges_beyond_the_image(tmp_path):
    store(tmp_path / "i.zarr", random(5, 6, 7), "zyx")
    image = OmeZarrImage(tmp_path / "i.zarr")
    assert image.crop(z=(4, 5)).shape == (1, 1, 6, 7)
    for bad in ((3, 6), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected a range within 0 to 5"):
            image.crop(z=bad)


def test_what_is_no_image(tmp_path):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w", zarr_format=2)
    group.create_array("data", shape=(2, 2), dtype="u1")
    with pytest.raises(ValueError, match=r"without multiscales \(it holds data\); expected an OME-Zarr image"):
        read_volume(tmp_path / "g.zarr")
    zarr.open_array(str(tmp_path / "a.zarr"), mode="w", shape=(2, 2), dtype="u1", zarr_format=2)
    with pytest.raises(ValueError, match="is no OME-Zarr group"):
        read_volume(tmp_path / "a.zarr")
    (tmp_path / "e.zarr").mkdir()
    with pytest.raises(ValueError, match="is no OME-Zarr group"):
        read_volume(tmp_path / "e.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["datasets"][0].update(path="../secret"), "expected one inside the store"),
        (lambda m: m["datasets"][0].update(path="s9"), "lists the resolution level 's9' but holds no such array"),
        (
            lambda m: m["datasets"][0].update(coordinateTransformations=[{"type": "scale", "scale": [1, 0, 1]}]),
            "spacing of 0 along y",
        ),
        (
            lambda m: m["datasets"][0].update(coordinateTransformations=[{"type": "scale", "scale": [1]}]),
            "with 3 numbers",
        ),
        (lambda m: m["axes"][0].update(name="angle"), "expected one letter"),
        (lambda m: m["axes"][0].update(name="q"), "has an axis 'q' of length 3"),
        (lambda m: m["axes"][2].update(unit="parsec"), "unit of length 'parsec'"),
    ],
)
def test_metadata_that_is_wrong(tmp_path, change, message):
    store(tmp_path / "i.zarr", random(3, 4, 5), "zyx")
    attributes = json.loads((tmp_path / "i.zarr" / ".zattrs").read_text())
    change(attributes["multiscales"][0])
    (tmp_path / "i.zarr" / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(ValueError, match=message):
        read_volume(tmp_path / "i.zarr")


def stage(seed=0, size=(5, 32, 48)):
    array = np.random.default_rng(seed).normal(size=(2, *size)).astype(np.float32)
    affine = np.diag([0.5, 0.1, 0.1, 1.0])
    affine[:3, 3] = [3.0, 100.25, -7.5]
    return Volume(array, affine, space="stage", channels=("Phase3D", "GFP"), stored=Stored("float32"))


@pytest.mark.parametrize(("version", "shards"), [("0.4", None), ("0.5", None), ("0.5", (5, 32, 32))])
def test_plates_there_and_back(tmp_path, version, shards):
    fields = {name: stage(n) for n, name in enumerate(("A/1/0", "A/1/1", "B/10/0", "B/2/0"))}
    path = write_plate(fields, tmp_path / "p.zarr", version=version, chunks=(5, 16, 16), shards=shards)
    assert plate_positions(path) == ["A/1/0", "A/1/1", "B/2/0", "B/10/0"]
    for name, truth in fields.items():
        got = read_volume(path, position=name)
        assert np.array_equal(got.array, truth.array)
        assert np.array_equal(got.affine, truth.affine)
        assert (got.channels, got.space) == (("Phase3D", "GFP"), "stage")
    image = OmeZarrImage(path, position="B/2/0")
    assert np.array_equal(image.crop(z=(1, 3), channels=["GFP"]), fields["B/2/0"].array[1:, 1:3])
    again = pickle.loads(pickle.dumps(image))
    assert np.array_equal(again.crop(z=(1, 3)), image.crop(z=(1, 3)))
    assert plate_positions(path / "A" / "1" / "0") == []
    with pytest.raises(
        ValueError, match="is a plate of 4 fields of view; expected one: choose a position, such as A/1/0"
    ):
        read_volume(path)
    with pytest.raises(ValueError, match="has no position 'C/1/0'"):
        read_volume(path, position="C/1/0")
    with pytest.raises(ValueError, match="is no plate and has no position"):
        read_volume(path / "A" / "1" / "0", position="A/1/0")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_written_follows_the_specification(tmp_path, version):
    path = write_plate({"B/3/0": stage()}, tmp_path / "p.zarr", version=version, levels=2)
    root = zarr.open_group(str(path), mode="r")
    plate = root.attrs["ome"]["plate"] if version == "0.5" else root.attrs["plate"]
    assert plate["wells"] == [{"path": "B/3", "rowIndex": 0, "columnIndex": 0}]
    well = root["B/3"].attrs["ome"]["well"] if version == "0.5" else root["B/3"].attrs["well"]
    assert plate["version"] == well["version"] == version
    assert (plate["rows"], plate["columns"]) == ([{"name": "B"}], [{"name": "3"}])
    field = root["B/3/0"].attrs["ome"] if version == "0.5" else dict(root["B/3/0"].attrs)
    image = field["multiscales"][0]
    assert [axis["name"] for axis in image["axes"]] == list("tczyx")
    assert {axis.get("unit") for axis in image["axes"][2:]} == {"micrometer"}
    fine, coarse = (root[f"B/3/0/{dataset['path']}"] for dataset in image["datasets"])
    assert (fine.shape, coarse.shape) == ((1, 2, 5, 32, 48), (1, 2, 5, 16, 24))
    assert fine.metadata.zarr_format == (3 if version == "0.5" else 2)
    scale, move = image["datasets"][1]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1.0, 1.0, 0.5, 0.2, 0.2]}
    np.testing.assert_allclose(move["translation"], [0, 0, 3.0, 100.3, -7.45])
    np.testing.assert_allclose(coarse[0, :, :, 0, 0], fine[0, :, :, :2, :2].mean((2, 3)), rtol=1e-6)
    assert [channel["label"] for channel in field["omero"]["channels"]] == ["Phase3D", "GFP"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_oblique_patient_comes_back_exactly_and_others_see_its_spacing(tmp_path, version):
    turn = np.array([[2, -2, 1], [1, 2, 2], [-2, -1, 2]]) / 3  # orthogonal
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [0.7, 0.8, 2.5], [-100.1, 33.3, 7.7]
    path = write_ome_zarr(Volume(random(1, 8, 6, 4), affine), tmp_path / "p.ome.zarr", version=version)
    assert np.array_equal(read_volume(path).affine, affine)
    about = zarr.open_group(str(path), mode="r").attrs
    image = (about["ome"] if version == "0.5" else about)["multiscales"][0]
    assert [axis.get("unit") for axis in image["axes"]] == [None, None, *["millimeter"] * 3]
    (step,) = image["datasets"][0]["coordinateTransformations"]
    np.testing.assert_allclose(step["scale"], [1, 1, 2.5, 0.8, 0.7], rtol=1e-15)


def test_coarser_levels_of_a_patient_lie_where_their_voxels_lie(tmp_path):
    volume = Volume(
        random(1, 8, 6, 4), np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0.3, 4, 7], [0, 0, 0, 1]]), unit="arbitrary"
    )
    path = write_ome_zarr(volume, tmp_path / "p.ome.zarr", levels=2)
    fine, coarse = read_volume(path), read_volume(path, level=1)
    assert np.array_equal(fine.affine, volume.affine)
    assert np.array_equal(fine.array, volume.array)
    assert coarse.size == (4, 3, 4)
    for index in ((0, 0, 0), (3, 2, 3)):
        i, j, k = index
        centre = np.mean([volume.affine @ [2 * i + a, 2 * j + b, k, 1] for a in (0, 1) for b in (0, 1)], 0)
        np.testing.assert_allclose(coarse.affine @ [*index, 1], centre)
        block = volume.array[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k]
        assert coarse.array[0][index] == np.rint(block.mean())


def test_a_store_is_replaced_as_a_whole_and_nothing_else_is(tmp_path):
    path = tmp_path / "i.ome.zarr"
    write_ome_zarr(stage(0), path)

    def broken():
        yield "A/1/0", stage(1)
        raise RuntimeError("the disk of the microscope is gone")

    with pytest.raises(RuntimeError):
        write_plate(broken(), path)
    assert np.array_equal(read_volume(path).array, stage(0).array)
    write_ome_zarr(stage(2), path)
    assert np.array_equal(read_volume(path).array, stage(2).array)
    assert [entry.name for entry in tmp_path.iterdir()] == ["i.ome.zarr"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="no OME-Zarr store"):
        write_ome_zarr(stage(0), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: write_ome_zarr(stage(), p, version="0.3"), "expected '0.4' or '0.5'"),
        (lambda p: write_ome_zarr(stage(), p, shards=(5, 32, 32)), "version 0.5, whose zarr 3 has them"),
        (lambda p: write_ome_zarr(stage(), p, levels=9), "more levels than planes"),
        (lambda p: write_ome_zarr(stage().with_array(stage().array, space="video"), p), "frames of a video"),
        (lambda p: write_plate({}, p), "expected at least one field of view"),
        (lambda p: write_plate({"A1": stage()}, p), "expected row/column/field"),
        (lambda p: write_plate({"A/../0": stage()}, p), "expected row/column/field"),
        (lambda p: write_plate([("A/1/0", stage()), ("A/1/0", stage())], p), "twice"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, write, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "i.ome.zarr")
    assert not list(tmp_path.iterdir())
