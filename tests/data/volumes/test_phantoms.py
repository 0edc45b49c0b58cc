"""Phantoms: values of what they show, truth on the same grid, the same for a seed, pairs that differ where they should."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from omnivae.data.volumes import (
    OmeZarrImage,
    check_hu,
    ct_phantom,
    field_phantom,
    guess_unit,
    lesion_pair,
    mr_phantom,
    plate_phantom,
    plate_positions,
    read_pairs,
    read_volume,
)
from omnivae.jobs.phantoms import write_phantoms

GRID = {"size": (48, 44, 40), "spacing": (8.0, 8.0, 9.0)}


@pytest.fixture(scope="module")
def ct():
    return ct_phantom(3, **GRID, lesions=3)


def test_a_ct_has_hounsfield_units_of_its_tissues(ct):
    check_hu(ct.volume)
    assert guess_unit(ct.volume) == "HU"
    values = ct.volume.array[0]
    for name, low, high in (
        ("air", -1024, -950),
        ("lung", -920, -700),
        ("fat", -130, -70),
        ("muscle", 20, 80),
        ("bone", 150, 700),
        ("liver", 30, 140),
    ):
        inner = ndimage.binary_erosion(ct.mask(name)) if name in ("air", "lung", "muscle", "liver") else ct.mask(name)
        assert low < np.median(values[inner]) < high, name
    assert values.min() >= -1024
    assert values.dtype == np.int16
    with pytest.raises(ValueError, match="expected one of air, fat, muscle"):
        ct.mask("brain")


def test_truth_lies_on_the_grid_of_the_volume(ct):
    for truth in (ct.labels, ct.lesions):
        assert truth.size == ct.volume.size
        assert np.array_equal(truth.affine, ct.volume.affine)
        assert truth.array.dtype == np.uint8
    assert ct.volume.orientation == "LPS"
    assert ct.volume.spacing == pytest.approx((8, 8, 9))
    assert set(np.unique(ct.lesions.array)) == {0, 1, 2, 3}
    # The liver lies on the right, the spine behind, the lungs above the liver: in the world, whatever the axes.
    for code in ("RAS", "PIR"):
        phantom = ct_phantom(3, **GRID, orientation=code)
        middle = {
            name: (phantom.volume.affine @ [*np.argwhere(phantom.mask(name)).mean(0), 1])[:3]
            for name in ("liver", "bone", "lung", "muscle")
        }
        assert middle["liver"][0] > 20
        assert middle["lung"][2] > middle["liver"][2] + 60
        spine = phantom.mask("bone")
        at = np.argwhere(spine) @ phantom.volume.affine[:3, :3].T + phantom.volume.affine[:3, 3]
        assert np.median(at[np.abs(at[:, 0]) < 20][:, 1]) < -30


@pytest.mark.parametrize("draw", [ct_phantom, mr_phantom])
def test_a_seed_is_one_person(draw):
    grid = {**GRID, "spacing": (5.0, 5.0, 5.0)}
    first, again, other = (draw(seed, **grid, lesions=1) for seed in (1, 1, 2))
    assert np.array_equal(first.volume.array, again.volume.array)
    assert np.array_equal(first.lesions.array, again.lesions.array)
    assert not np.array_equal(first.labels.array, other.labels.array)
    clean = draw(1, **grid, lesions=1, **({"noise_hu": 0.0} if draw is ct_phantom else {"noise": 0.0}))
    assert np.array_equal(clean.labels.array, first.labels.array)
    assert np.abs(clean.volume.array - first.volume.array).mean() > 5


def test_noise_has_the_asked_standard_deviation():
    noisy, clean = (
        ct_phantom(0, **GRID, lesions=0, noise_hu=sigma).volume.array.astype(float) for sigma in (20.0, 0.0)
    )
    inside = clean > -900  # air is cut at -1024
    assert (noisy - clean)[inside].std() == pytest.approx(20, rel=0.05)


def test_a_pair_differs_at_its_lesions_only():
    pair = lesion_pair(4, **GRID, lesions=3)
    change = np.abs(pair.with_lesions.volume.array.astype(int) - pair.without.volume.array)[0]
    near = ndimage.binary_dilation(pair.mask, np.ones((5, 5, 5)))
    assert not change[~near].any()
    assert change[pair.mask].mean() > 40
    assert not pair.without.lesions.array.any()
    assert np.array_equal(pair.without.labels.array, pair.with_lesions.labels.array)
    organs = set(pair.without.labels.array[0][pair.mask])
    assert organs <= {3, 6}  # lung and liver


def test_mr_contrasts_are_of_the_same_person():
    grid = {"size": (48, 48, 48), "spacing": (4.8, 4.8, 4.8)}
    t1, t2 = (mr_phantom(5, **grid, weighting=weighting) for weighting in ("t1", "t2"))
    assert np.array_equal(t1.labels.array, t2.labels.array)
    assert np.array_equal(t1.lesions.array, t2.lesions.array)
    one, two = t1.volume.array[0], t2.volume.array[0]

    def mean(values, name):
        return float(values[t1.mask(name)].mean())

    assert mean(one, "white") > mean(one, "grey") > mean(one, "csf")
    assert mean(two, "white") < mean(two, "grey") < mean(two, "csf")
    assert guess_unit(t1.volume) == "arbitrary"
    assert one.min() >= 0
    lesion = t1.lesions.array[0] > 0
    assert one[lesion].mean() < mean(one, "white")
    assert two[lesion].mean() > mean(two, "white")


def test_fields_of_cells():
    phantom = field_phantom(2, size=(9, 96, 96), cells=8, odd=2)
    phase, light = phantom.volume.array
    nuclei = phantom.labels.array[0] > 0
    background = ~ndimage.binary_dilation(nuclei, iterations=4)
    assert len(np.unique(phantom.labels.array)) == len(phantom.names)
    assert light[nuclei].mean() > 3 * light[background].mean()
    assert light[background].mean() == pytest.approx(110, abs=25)
    assert abs(phase.mean()) < 0.1
    assert phase[nuclei].mean() > phase[background].mean() + 0.1
    odd, plain = phantom.lesions.array[0] > 0, nuclei & (phantom.lesions.array[0] == 0)
    assert light[odd].mean() > 1.5 * light[plain].mean()
    assert phantom.volume.spacing == (0.5, 0.35, 0.35)


def test_a_plate_holds_its_fields(tmp_path):
    path = plate_phantom(tmp_path / "p.zarr", wells=("A/1", "B/3"), fields=2, size=(5, 48, 48), cells=3, version="0.5")
    assert plate_positions(path) == ["A/1/0", "A/1/1", "B/3/0", "B/3/1"]
    image = OmeZarrImage(path, position="B/3/1")
    assert image.channels == ("Phase3D", "Nuclei")
    fields = [read_volume(path, position=name).array for name in plate_positions(path)]
    assert not any(np.array_equal(a, b) for a, b in pairwise(fields))


def test_wells_of_a_plate_differ_by_their_condition(tmp_path):
    """The condition is what the map says, drawn: as many nuclei as bright as the odd ones are, whatever the well."""
    plate, labels, table = write_phantoms(tmp_path, kind="plate", size=(7, 96, 96), count=8, conditions=[0, 4], seed=3)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert rows == [["A/1", "control", "0"], ["A/2", "odd 4", "4"], ["B/1", "control", "0"], ["B/2", "odd 4", "4"]]
    bright = {}
    for name in plate_positions(plate):
        light, number = (read_volume(path, position=name).array[-1] for path in (plate, labels))
        levels = np.sort([light[number == n].mean() for n in range(1, int(number.max()) + 1)])
        bright[name] = levels
    treated = [levels[-4:].mean() for name, levels in bright.items() if name[2] == "2"]
    plain = [levels[-4:].mean() for name, levels in bright.items() if name[2] == "1"]
    assert min(treated) > 1.3 * max(plain)
    with pytest.raises(ValueError, match="5 conditions for 4 wells"):
        write_phantoms(tmp_path / "few", kind="plate", count=8, conditions=[0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="expected a plate"):
        write_phantoms(tmp_path / "ct", kind="ct", conditions=[0, 1])
    with pytest.raises(ValueError, match="expected a number for each of"):
        plate_phantom(tmp_path / "p.zarr", wells=("A/1", "A/2"), odd={"A/1": 2})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ct_phantom(size=(4, 32, 32)), "8 voxels or more"),
        (lambda: ct_phantom(spacing=(0, 1, 1)), "lengths above 0"),
        (lambda: ct_phantom(**GRID, lesions=-1), "0 to 255 lesions"),
        (lambda: ct_phantom(size=(16, 16, 16), spacing=(24, 24, 24), lesions=200), "there is room for"),
        (lambda: lesion_pair(lesions=0), "at least 1"),
        (lambda: mr_phantom(weighting="flair"), "expected 't1' or 't2'"),
        (lambda: field_phantom(cells=2, odd=3), "0 <= odd <= cells"),
        (lambda: field_phantom(size=(3, 8, 8)), "16 x 16 or more"),
    ],
)
def test_mistakes_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_folders_of_phantoms(tmp_path):
    small = {"size": (24, 24, 16), "count": 2, "lesions": 1}
    folders = write_phantoms(tmp_path / "ct", kind="ct", format="nrrd", **small)
    assert [folder.name for folder in folders] == ["volumes", "labels", "lesions"]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["ct_000.nrrd", "ct_001.nrrd"]
    volume = read_volume(folders[0] / "ct_001.nrrd", unit="HU")
    assert volume.size == (24, 24, 16)
    assert volume.spacing == pytest.approx((16, 16, 24))
    assert read_volume(folders[2] / "ct_001.nrrd").array.max() == 1
    more = write_phantoms(tmp_path / "more", kind="ct", seed=1, size=(24, 24, 16), count=1, lesions=1)
    assert np.array_equal(read_volume(more[0] / "ct_001.nii.gz").array, volume.array)
    pair = write_phantoms(tmp_path / "pair", kind="pair", **small)
    assert [folder.name for folder in pair] == ["without", "with", "labels", "lesions", "pairs.csv"]
    listed = read_pairs(pair[-1])
    assert [one.name for one in listed] == ["pair_000", "pair_001"]
    assert len({one.group for one in listed}) == 2
    assert listed[1].followup.read().size == (24, 24, 16)
    plate, labels, table = write_phantoms(tmp_path / "plate", kind="plate", size=(3, 32, 32), count=4)
    assert plate_positions(plate) == plate_positions(labels) == ["A/1/0", "A/1/1", "A/2/0", "A/2/1"]
    assert table.read_text() == "well,condition,odd_nuclei\nA/1,odd 2,2\nA/2,odd 2,2\n"
    with pytest.raises(ValueError, match="did you mean 'plate'"):
        write_phantoms(tmp_path, kind="plates")
    with pytest.raises(ValueError, match="expected an even number"):
        write_phantoms(tmp_path / "x", kind="plate", count=3)
