"""Anomalies of volumes: the map is the distance to what the model makes of a volume, in HU, on the volume's own grid."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from omnivae.cli.main import main
from omnivae.data.volumes import contract_pipeline, ct_phantom, lesion_pair, read_volume, write_volume
from omnivae.jobs.volumes_anomaly import RECORD, find_volume_anomalies, smoothed
from omnivae.jobs.volumes_codec import VolumeCodec
from omnivae.likelihoods import GaussianLikelihood
from omnivae.metrics.anomaly import voxel_detection
from omnivae.models import VAE
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.volumes import MaisiVAE
from omnivae.volume import Volume

nib = pytest.importorskip("nibabel")

HU = {"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS", "clip": True}
SIZE, SPACING = (32, 28, 24), (12.0, 12.0, 15.0)


class Resize(nn.Module):
    """Halves or doubles each axis: what is finer than two voxels is lost."""

    dim = 3

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.in_channels = self.out_channels = channels
        self.up, self.stride = up, 2

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if self.up:
            return nn.functional.interpolate(x, scale_factor=2, mode="trilinear")
        return nn.functional.avg_pool3d(x, 2)


def blurring(intensity: dict | None = None, channels: int = 1) -> VAE:
    """A codec that keeps a volume at half its resolution."""
    posterior = GaussianPosterior(channels, channels, dim=3)
    with torch.no_grad():
        posterior.projection.weight.zero_()
        posterior.projection.bias.zero_()
        posterior.projection.weight[:channels] = torch.eye(channels)[..., None, None, None]
    networks = Resize(channels, up=False), Resize(channels, up=True)
    model = VAE(networks[0], posterior, networks[1], GaussianLikelihood(), StandardNormal(), value_range=(0.0, 1.0))
    model.statistics["intensity"] = intensity or HU
    return model.eval()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients without lesions, three others of whom two have some, and masks."""
    folder = tmp_path_factory.mktemp("phantoms")
    for seed in range(4):
        write_volume(ct_phantom(seed, size=SIZE, spacing=SPACING).volume, folder / "normal" / f"{seed}.nii.gz")
    for seed in range(10, 13):
        pair = lesion_pair(seed, size=SIZE, spacing=SPACING, lesions=2)
        drawn = pair.without if seed == 12 else pair.with_lesions
        write_volume(drawn.volume, folder / "odd" / f"{seed}.nii.gz")
        write_volume(drawn.lesions, folder / "masks" / f"{seed}_seg.nii.gz")
        write_volume(pair.without.volume, folder / "twins" / f"{seed}.nii.gz")
    return folder


@pytest.fixture
def removing(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A codec that takes lesions out: what comes back is the patient's twin without, and noise of 5 HU of the scanner's."""
    known: dict[bytes, np.ndarray] = {}
    calls: list[int] = []
    for file in (*(phantoms / "odd").iterdir(), *(phantoms / "normal").iterdir()):
        twin = phantoms / "twins" / file.name
        pipeline = contract_pipeline(HU)
        seen, healthy = (
            pipeline(read_volume(f, unit="HU")).volume.array for f in (file, twin if twin.exists() else file)
        )
        noise = np.random.default_rng(len(known)).normal(0, 5 / 2000, seen.shape) if file.parent.name == "normal" else 0
        known[seen.tobytes()] = (healthy + noise).astype(np.float32)

    def run(self: VolumeCodec, array: np.ndarray, progress: object) -> np.ndarray:
        calls.append(1)
        return known[array.tobytes()].copy()

    monkeypatch.setattr(VolumeCodec, "_run", run)
    return calls


def test_a_codec_that_removes_lesions_maps_exactly_the_lesions(phantoms, tmp_path, removing):
    """The map of a lesion is what the lesion adds in HU; it finds volumes and voxels without a mistake."""
    report = find_volume_anomalies(
        blurring(),
        str(phantoms / "odd"),
        tmp_path,
        normal=str(phantoms / "normal"),
        masks=phantoms / "masks",
        rate=0.2,
        progress=False,
    )
    assert report.names == ["10", "11", "12"]
    assert report.unit == "HU"
    for name in report.names:
        original, twin = (read_volume(phantoms / part / f"{name}.nii.gz", unit="HU") for part in ("odd", "twins"))
        a, b = (v.array.astype(np.float64).clip(-1000, 1000) for v in (original, twin))
        found = nib.load(tmp_path / report.maps[name])
        np.testing.assert_allclose(found.get_fdata()[None], np.abs(a - b), atol=0.01)
        np.testing.assert_array_equal(found.affine, nib.load(phantoms / "odd" / f"{name}.nii.gz").affine)
        assert found.get_data_dtype() == np.float32
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("10", "11"):
        voxels = report.voxels[name]
        assert voxels["inside"] > 50 * voxels["outside"]
        assert voxels["auroc"] > 0.99
    assert report.voxels["12"] == {
        "lesion_voxels": 0,
        "inside": None,
        "outside": 0.0,
        "auroc": None,
        "average_precision": None,
    }
    assert report.anomalous.tolist() == [True, True, False]
    assert report.flagged["peak"].tolist() == [True, True, False]
    assert report.detection["peak"]["auroc"].mean == 1
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["flagged_by_peak"] for row in rows] == ["1", "1", "0"]
    assert float(rows[0]["voxels_auroc"]) == report.voxels["10"]["auroc"]
    facts = json.loads((tmp_path / "anomaly.json").read_text())
    assert facts["scores"]["11"]["map"] == "maps/11.nii.gz"
    assert facts["thresholds"]["peak"]["num_normal"] == 4
    assert any("inside" in line and "average precision" in line for line in report.lines())


def test_a_blurring_codec_is_worse_inside_lesions(phantoms):
    """What is small goes, and lesions are small; the body's own edges go too, so this is far from perfect."""
    report = find_volume_anomalies(
        blurring(),
        str(phantoms / "odd"),
        normal=str(phantoms / "normal"),
        masks=phantoms / "masks",
        rate=0.2,
        scores=["mean"],
        progress=False,
    )
    assert list(report.scores) == ["mean"]
    for name in ("10", "11"):
        found = report.voxels[name]
        assert found["inside"] > found["outside"]
        assert 0.6 < found["auroc"] < 1


def test_what_is_done_is_not_done_again(phantoms, tmp_path, removing):
    def again(**options: object) -> object:
        return find_volume_anomalies(
            blurring(),
            str(phantoms / "odd"),
            tmp_path,
            normal=str(phantoms / "normal"),
            rate=0.2,
            progress=False,
            **options,  # type: ignore[arg-type]
        )

    first = again()
    assert len(removing) == 7
    (tmp_path / first.maps["11"]).unlink()
    record = json.loads((tmp_path / RECORD).read_text())
    del record["volumes"]["normal/3"]
    (tmp_path / RECORD).write_text(json.dumps(record))
    second = again()
    assert len(removing) == 9
    assert second.to_csv() == first.to_csv()
    assert (tmp_path / first.maps["11"]).is_file()
    with pytest.raises(ValueError, match="another smooth: give another --output"):
        again(smooth=3.0)


def test_smoothing_is_in_millimetres():
    array = np.zeros((1, 41, 41, 41), np.float32)
    array[0, 20, 20, 20] = 1
    out = smoothed(Volume(array, np.diag([1.0, 2.0, 4.0, 1.0])), 6.0).array[0].astype(np.float64)
    assert out.sum() == pytest.approx(1, abs=1e-3)  # 20 of its planes are 3.3 deviations
    places = np.moveaxis(np.indices(out.shape), 0, -1) - 20.0
    spread = np.sqrt((out[..., None] * places**2).sum((0, 1, 2))) * [1, 2, 4]
    np.testing.assert_allclose(spread, 6.0, rtol=0.03)


def test_maps_of_resampled_and_clipped_volumes(tmp_path):
    """Interpolation and what lies beyond the window are no errors: a model that keeps everything has none."""
    volume = ct_phantom(3, size=SIZE, spacing=SPACING).volume
    array = volume.array.copy()
    array[0, 3, :5, 4], array[0, 16, 10:14, 9] = -3000, 3000
    contract = HU | {"spacing": [10.0, 10.0, 10.0]}

    class Keeping(VolumeCodec):
        def _run(self, seen: np.ndarray, progress: object) -> np.ndarray:
            out = seen.copy()
            out[:, :8] = np.abs(out[:, :8] - 0.05)
            return out

    rebuilt, errors = Keeping(blurring(contract)).with_errors(volume.with_array(array))
    assert rebuilt.resampled
    assert errors.size == volume.size
    assert np.array_equal(errors.affine, volume.affine)
    assert errors.array.dtype == np.float32
    # The model's first axis points right, the file's left: 8 of its planes of 10 mm are the file's last ones.
    far, near = errors.array[0, :-8], errors.array[0, -6:]
    assert far.max() == 0
    assert 99 <= near.max() <= 100.01


def test_channels_without_a_unit_are_shares_of_the_window(tmp_path):
    pytest.importorskip("zarr")
    random = np.random.default_rng(0)
    for place in ("normal/a", "normal/b", "normal/c", "normal/d", "odd/e"):
        array = random.integers(0, 1000, (2, 6, 8, 8)).astype(np.uint16)
        array[1] *= 50
        write_volume(Volume(array, np.diag([2.0, 0.3, 0.3, 1.0]), space="stage"), tmp_path / f"{place}.ome.zarr")
    contract = {"unit": "arbitrary", "zscore": 1.0, "range": [0, 1], "clip": False}
    model = blurring(contract, 2)
    report = find_volume_anomalies(
        model, str(tmp_path / "odd"), tmp_path / "out", normal=str(tmp_path / "normal"), rate=0.2, progress=False
    )
    assert report.unit == "of the window"
    original = read_volume(tmp_path / "odd" / "e.ome.zarr").array.astype(np.float64)
    blurred = nn.functional.interpolate(
        nn.functional.avg_pool3d(torch.from_numpy(original)[None], 2), scale_factor=2, mode="trilinear"
    )[0].numpy()
    width = 2 * original.reshape(2, -1).std(1)
    expected = (np.abs(blurred - original) / width[:, None, None, None]).mean(0)
    found = read_volume(tmp_path / "out" / report.maps["e"])
    np.testing.assert_allclose(found.array[0], expected, atol=1e-4)
    assert found.space == "stage"


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_scores_of_voxels_equal_those_of_scikit_learn(levels, monkeypatch):
    monkeypatch.setattr("omnivae.metrics.anomaly._AT_ONCE", 100)
    random = np.random.default_rng(levels)
    mask = random.random((7, 8, 9)) < 0.1
    scores = random.integers(0, levels, mask.shape).astype(np.float32) + mask
    found = voxel_detection(scores, mask)
    assert found["auroc"] == pytest.approx(roc_auc_score(mask.ravel(), scores.ravel()), abs=1e-12)
    assert found["average_precision"] == pytest.approx(average_precision_score(mask.ravel(), scores.ravel()), abs=1e-12)


def test_the_command(phantoms, tmp_path, capsys):
    torch.manual_seed(0)
    model = MaisiVAE(num_channels=(8, 8, 8), num_res_blocks=(1, 1, 1), norm_num_groups=4)
    model.save_pretrained(tmp_path / "model")
    one = ["anomaly", str(tmp_path / "model"), "--data.path", str(phantoms / "odd" / "10.nii.gz")]
    given = [*one, "--output", str(tmp_path / "out"), "--rate", "0.2"]
    normal = ["--normal", str(phantoms / "normal")]
    mask = phantoms / "masks" / "10_seg.nii.gz"
    assert main([*given, *normal, "--masks", str(mask), "--smooth", "20"]) == 0
    said = capsys.readouterr().out
    assert "peak" in said
    assert "lesion voxels" in said
    assert [file.name for file in (tmp_path / "out" / "maps").iterdir()] == ["10.nii.gz"]

    def refused(argv: list[str]) -> str:
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1
        return err

    new = [*one, "--output", str(tmp_path / "new"), "--rate", "0.2"]
    assert "its normal volumes are not known" in refused(new)
    assert "needs at least 19 normal" in refused([*one, *normal, "--output", str(tmp_path / "new")])
    assert "another masks and smooth" in refused([*given, *normal])
    assert "--num_worst" in refused([*new, *normal, "--num_worst", "3"])
    assert "did you mean 'mean'" in refused([*new, *normal, "--scores", "meen"])
    assert "no such file" in refused([*new, *normal, "--masks", str(tmp_path / "nowhere")])
    elsewhere = write_volume(Volume(np.zeros((1, 4, 4, 4), np.uint8), np.eye(4)), tmp_path / "elsewhere.nii.gz")
    assert "another grid" in refused([*new, *normal, "--masks", str(elsewhere)])
    assert not (tmp_path / "new" / "scores.csv").exists()
