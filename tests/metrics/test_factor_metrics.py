import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from omnivae import conv_vae, evaluate
from omnivae.data import DataConfig, load_data
from omnivae.jobs.evaluate import evaluate_model
from omnivae.jobs.factors import process_of
from omnivae.metrics import Evaluation
from omnivae.metrics.disentanglement import dci, mig, sap
from omnivae.metrics.factors import draw_table

NAMES = (
    "mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae", "beta_vae", "modularity",
    "explicitness", "irs",
)  # fmt: skip


@dataclass
class Pixels:
    """Three factors, each the brightness of one pixel of an image of four."""

    names: tuple[str, ...] = ("first", "second", "third")
    factor_sizes: tuple[int, ...] = (4, 5, 6)
    num_rows: int = 3_000

    def observe(self, factors):
        x = torch.zeros(len(factors), 1, 2, 2)
        x.view(-1, 4)[:, :3] = torch.as_tensor(factors / np.array(self.factor_sizes), dtype=torch.float32)
        return x


class Identity(torch.nn.Module):
    """A model whose code is the image, mixed where asked to."""

    def __init__(self, mixing=None):
        super().__init__()
        self.model = conv_vae(
            in_channels=1, image_size=2, latent_dim=4, channels=(4,), norm="none", value_range=(0.0, 1.0)
        )
        self.mixing = torch.eye(4) if mixing is None else mixing
        self.value_range, self.in_channels = (0.0, 1.0), 1

    def encode(self, x, cond=None):
        q = self.model.encode(x)
        return type(q)(x.flatten(1) @ self.mixing, q.logvar)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def images(count, factors=None):
    rng = np.random.default_rng(0)
    made = Pixels()
    drawn = rng.integers(made.factor_sizes, size=(count, 3))
    return [
        {"x": x, "key": str(i)} | ({} if factors is None else {"label": torch.tensor(drawn[i, factors])})
        for i, x in enumerate(made.observe(drawn))
    ]


def test_perfect_codes_score_one_and_mixed_ones_do_not():
    result = evaluate(
        Identity(), images(4), metrics=["disentanglement"], process=Pixels(), bootstrap=50, progress=False
    )
    assert set(result.metrics) == set(NAMES)
    for name in set(NAMES) - {"sap", "modularity", "irs", "dci_disentanglement", "dci_completeness"}:
        assert result.metrics[name].mean > 0.99, name
    for name in ("dci_disentanglement", "dci_completeness", "irs"):
        assert result.metrics[name].mean > 0.9, name
    # the fourth code is constant, and tells nothing of any factor
    assert result.metrics["modularity"].mean == pytest.approx(0.75, abs=0.01)
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    mixed = evaluate(
        Identity(rotation), images(4), metrics=["disentanglement"], process=Pixels(), bootstrap=0, progress=False
    )
    for name in ("mig", "dci_disentanglement"):
        assert mixed.metrics[name].mean < result.metrics[name].mean - 0.2, name
    # a line through one code cannot tell the middle values of a factor from the others, not even of a perfect code
    assert 0 <= mixed.metrics["sap"].mean < result.metrics["sap"].mean


def test_numbers_are_those_of_the_library():
    torch.manual_seed(0)
    model = Identity(torch.randn(4, 4))
    result = evaluate(
        model, images(4), metrics=["mig", "sap", "dci_disentanglement"], process=Pixels(), seed=3, progress=False
    )
    table = draw_table(model, Pixels(), seed=3)
    assert table.codes.shape == (3000, 4)
    assert result.metrics["mig"].mean == pytest.approx(mig(table.codes, table.factors).score)
    assert result.metrics["sap"].mean == pytest.approx(sap(table.codes, table.factors, seed=3).score)
    assert result.metrics["dci_disentanglement"].mean == pytest.approx(dci(table.codes, table.factors, seed=3).score)
    assert np.shape(result.details["mig"]["mutual_information"]) == (4, 3)
    assert np.shape(result.details["dci_disentanglement"]["importances"]) == (4, 3)
    assert result.details["mig"]["factors"] == ["first", "second", "third"]
    assert "3,000 images drawn from their process" in result.remarks["mig"]
    # the card holds all of it
    again = Evaluation.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.details == result.details
    assert again.metrics == result.metrics


def test_intervals_hold_the_share_they_are_of():
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    result = evaluate(Identity(rotation), images(4), metrics=["factor_vae", "mig"], process=Pixels(), progress=False)
    share = result.metrics["factor_vae"]
    assert share.low < share.mean < share.high
    # of 5,000 batches: two standard deviations of a binomial share to either side
    expected = 1.96 * np.sqrt(share.mean * (1 - share.mean) / 5000)
    assert (share.high - share.low) / 2 == pytest.approx(expected, rel=0.2)
    assert result.metrics["mig"].low is None


def test_labels_of_the_images_do_where_there_is_no_process():
    data = images(400, factors=[0, 2])
    result = evaluate(
        Identity(),
        data,
        metrics=["mig", "dci_disentanglement"],
        factor_names=["size", "age"],
        bootstrap=0,
        progress=False,
    )
    assert result.metrics["mig"].mean > 0.9
    assert set(result.details["mig"]["per_factor"]) == {"size", "age"}
    assert "of 400 images and their 2 factors (size, age)" in result.remarks["mig"]
    one = evaluate(Identity(), images(400, factors=1), metrics=["mig"], bootstrap=0, progress=False)
    assert one.details["mig"]["factors"] == ["label"]
    with pytest.raises(ValueError, match=r"factor_vae holds one factor fixed .* needs the process .*--world dsprites"):
        evaluate(Identity(), data, metrics=["factor_vae"], progress=False)


def test_missing_factors_are_refused_with_where_they_come_from():
    with pytest.raises(
        ValueError, match=r"these images have none: factors come from a world .* columns of a table .* label column"
    ):
        evaluate(Identity(), images(20), metrics=["mig"], progress=False)
    wide = conv_vae(in_channels=1, image_size=16, latent="spatial", latent_dim=64, channels=(4,))
    data = [{"x": torch.zeros(1, 16, 16), "key": str(i), "label": torch.tensor([i % 2, i % 3])} for i in range(20)]
    with pytest.raises(ValueError, match="for vector latents of 512 elements at most"):
        evaluate(wide, data, metrics=["mig"], progress=False)


def test_images_of_a_process_are_those_of_the_data_set():
    splits = load_data(DataConfig("dsprites", limit=5), value_range=(-1.0, 1.0))
    process = process_of(splits, None)
    item = splits.test[2]
    assert torch.equal(process.observe(item["label"].numpy()[None])[0], item["x"])
    assert process_of(load_data(DataConfig("digits")), None) is None


def test_columns_of_a_table_are_factors(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = ["path,angle,width,name"]
    for i in range(60):
        Image.fromarray(rng.integers(255, size=(8, 8), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 3},{0.5 * (i % 4)},n{i}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=(4,), norm="none").save_pretrained(tmp_path / "model")
    measure = {"path": str(tmp_path / "table.csv"), "metrics": ["mig"], "progress": False}
    result = evaluate_model(tmp_path / "model", factors=["angle", "width"], **measure)
    assert result.details["mig"]["factors"] == ["angle", "width"]
    assert result.details["mig"]["entropy"] == pytest.approx(np.log([3, 4]))
    with pytest.raises(ValueError, match=r"'name', which holds something else than numbers"):
        evaluate_model(tmp_path / "model", factors=["name"], **measure)
    with pytest.raises(ValueError, match="these images have none: factors come from"):
        evaluate_model(tmp_path / "model", **measure)
    with pytest.raises(ValueError, match=r"--world dsprites and --data\.path"):
        evaluate_model(tmp_path / "model", world="dsprites", **measure)
