"""``evaluate``: invariance to batching and order, intervals, JSON, and refused input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from linear_model import ListDataset

from omnivae.metrics import METRICS, Evaluation, MetricResult, bootstrap_interval, evaluate
from omnivae.metrics.registry import metric

ALL = ["psnr", "mse", "l1", "elbo", "nll", "kl", "bits_per_dim", "active_units"]


def test_batch_size_and_order_change_nothing(loose_model, images):
    keys = [f"k{i}" for i in range(len(images))]
    first = evaluate(loose_model, ListDataset(images, keys), ALL, batch_size=24)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = ListDataset([images[i] for i in order], [keys[i] for i in order])
    second = evaluate(loose_model, shuffled, ALL, batch_size=5)
    for name in ALL:
        assert second.metrics[name].mean == pytest.approx(first.metrics[name].mean, rel=1e-6)
        if first.metrics[name].low is not None:
            assert second.metrics[name].low == pytest.approx(first.metrics[name].low, rel=1e-6)
            assert second.metrics[name].high == pytest.approx(first.metrics[name].high, rel=1e-6)
    assert list(second.per_image["nll"]) == sorted(keys)
    assert second.kl_per_dimension == pytest.approx(first.kl_per_dimension, rel=1e-6)


def test_the_noise_depends_on_the_seed_and_not_on_the_global_state(loose_model, images):
    data = ListDataset(images)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    a = evaluate(loose_model, data, ["nll"], seed=1, num_samples_nll=3).metrics["nll"].mean
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert evaluate(loose_model, data, ["nll"], seed=1, num_samples_nll=3).metrics["nll"].mean == a
    assert evaluate(loose_model, data, ["nll"], seed=2, num_samples_nll=3).metrics["nll"].mean != a


def test_images_of_several_sizes(loose_model):
    # A vector latent pads smaller images to its canvas; both sizes are evaluated, each in its own batches.
    sizes = [(2, 2), (1, 2), (2, 2), (1, 1)]
    data = ListDataset([torch.full((1, *s), 0.1) for s in sizes])
    loose_model.value_range = (0.0, 1.0)
    result = evaluate(loose_model, data, ["psnr", "mse"], batch_size=2)
    assert result.images == 4
    assert len(result.per_image["mse"]) == 4


def test_the_model_is_left_as_it_was(loose_model, images):
    loose_model.train()
    loose_model.decoder.eval()
    evaluate(loose_model, ListDataset(images), ["mse"])
    assert loose_model.training
    assert not loose_model.decoder.training
    assert loose_model.decoder.weight.grad is None


def test_reconstruction_is_the_decoded_mode(loose_model, images):
    expected = loose_model.decode(loose_model.encode(images)).clamp(-4, 4)
    result = evaluate(loose_model, ListDataset(images), ["mse"])
    errors = (expected - images).square().flatten(1).mean(1)
    assert list(result.per_image["mse"].values()) == pytest.approx(errors.tolist(), rel=1e-5)


def test_one_image_has_no_interval():
    assert bootstrap_interval(torch.tensor([20.0]).numpy()) == (None, None)


def test_bootstrap_interval_covers_the_true_mean():
    g = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(100):
        low, high = bootstrap_interval(torch.randn(60, generator=g).double().numpy(), 300, seed=trial)
        covered += low <= 0 <= high
    assert 88 <= covered <= 99


def test_json_is_valid_and_complete(loose_model, images, tmp_path):
    result = evaluate(loose_model, ListDataset(images), ["psnr", "active_units"])
    content = json.loads(result.to_json(tmp_path / "deep" / "out.json").read_text(), parse_constant=pytest.fail)
    assert set(content["metrics"]["psnr"]) == {"mean", "low", "high"}
    assert content["metrics"]["psnr"]["low"] <= content["metrics"]["psnr"]["mean"] <= content["metrics"]["psnr"]["high"]
    assert content["images"] == 24
    assert len(content["per_image"]["psnr"]) == 24
    assert content["settings"]["seed"] == 0
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out.json"]


def test_infinite_values_become_null_with_a_note(tmp_path):
    values = {"a": math.inf, "b": 20.0}
    result = Evaluation({"psnr": MetricResult(math.inf, 20.0, math.inf, "dB")}, 2, {"psnr": values})
    content = json.loads(result.to_json(tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"]["psnr"] == {"mean": None, "low": 20.0, "high": None}
    assert content["per_image"]["psnr"] == {"a": None, "b": 20.0}
    assert "1 of 2 values are infinite" in content["notes"]["psnr"]
    assert "1 of 2 values are infinite" in result.to_text()
    assert bootstrap_interval(torch.tensor([math.inf, 20.0]).numpy(), 100) == (20.0, math.inf)


def test_table_and_text_show_every_metric(loose_model, images):
    result = evaluate(loose_model, ListDataset(images), ALL)
    assert result.table().row_count == len(ALL)
    text = result.to_text()
    assert all(name in text for name in ALL)
    assert "24 images" in text


def test_every_metric_says_what_it_means():
    assert {"psnr", "ssim", "ms_ssim", "mse", "l1", "elbo", "nll", "kl", "bits_per_dim", "active_units"} <= set(METRICS)
    for m in METRICS.values():
        assert m.meaning.endswith(".")
        assert m.better in ("higher", "lower")


def test_a_metric_needs_one_decorated_function(loose_model, images):
    @metric(unit="", better="lower", meaning="Largest absolute error.")
    def largest_error(reconstruction, x, *, data_range):
        return (reconstruction - x).abs().flatten(1).amax(1)

    try:
        result = evaluate(loose_model, ListDataset(images), ["largest_error"])
        assert result.metrics["largest_error"].mean > 0
    finally:
        del METRICS["largest_error"]


def test_two_metrics_of_one_name_are_refused():
    def psnr(reconstruction, x, *, data_range):
        return x

    with pytest.raises(ValueError, match=r"already defined in omnivae\.metrics\.image"):
        metric(unit="", better="lower", meaning="x.")(psnr)


def test_unknown_metric_gets_the_nearest_name_and_the_list(loose_model, images):
    with pytest.raises(ValueError, match=r"unknown metric 'psnrr'; did you mean 'psnr'\?; available: .*ssim"):
        evaluate(loose_model, ListDataset(images), ["psnrr"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 2, 2), math.nan), r"image 'bad' has 4 NaN or infinite values"),
        (torch.full((1, 2, 2), 4.5), r"image 'bad' has values in \[4.5, 4.5\], outside the model's range \[-4, 4\]"),
        (torch.zeros(3, 2, 2), r"image 'bad' has shape \(3, 2, 2\); this model takes \[1, \*S\]"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), r"image 'bad' has torch.uint8 values"),
        (torch.zeros(1, 0, 2), r"image 'bad' is empty"),
    ],
)
def test_bad_images_are_refused_by_name(loose_model, image, message):
    with pytest.raises(ValueError, match=message):
        evaluate(loose_model, ListDataset([torch.zeros(1, 2, 2), image], ["good", "bad"]), ["mse"])


def test_rounding_beyond_the_range_is_accepted(loose_model):
    assert evaluate(loose_model, ListDataset([torch.full((1, 2, 2), 4.00005)]), ["mse"]).images == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "got batch_size=0"),
        ({"num_samples_nll": 0}, "got num_samples_nll=0"),
        ({"bootstrap": -1}, "got bootstrap=-1"),
    ],
)
def test_bad_settings_are_refused(loose_model, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(loose_model, ListDataset(images), ["mse"], **arguments)


def test_empty_data_and_repeated_keys_are_refused(loose_model):
    with pytest.raises(ValueError, match="empty"):
        evaluate(loose_model, ListDataset([]), ["mse"])
    with pytest.raises(ValueError, match="'a' occurs twice"):
        evaluate(loose_model, ListDataset(torch.zeros(2, 1, 2, 2), ["a", "a"]), ["mse"])
