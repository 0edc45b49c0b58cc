"""``compare``: the tests keep their promises, cards that do not fit are refused, and verdicts say what was found."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from linear_model import ListDataset

from omnivae.metrics import Evaluation, MetricResult, Provenance, bootstrap_interval, compare, evaluate
from omnivae.metrics.paired import detectable_difference, fewest_images, holm, sign_flip_test, wilcoxon_test


def evaluation(values, name="psnr", *, unit="dB", better="higher", comparable="always", version=1):
    """An evaluation of one metric with the given values, on images named by their number."""
    keys = [f"{i:03d}.png" for i in range(len(values))]
    card = {
        "format": 1,
        "model": {
            "name": "VAE",
            "recipe": None,
            "hash": None,
            "parameters": 10,
            "likelihood": "GaussianLikelihood",
            "discrete": False,
            "value_range": [0.0, 1.0],
        },
        "data": {
            "name": "toys",
            "split": "test",
            "images": len(values),
            "inputs_hash": "i" * 64,
            "inputs_are": "stored",
            "pixels_hash": "p" * 64,
            "preprocessing": {"shape": [1, 8, 8]},
            "preprocessing_hash": "h" * 64,
        },
        "metrics": {
            name: {"version": version, "unit": unit, "better": better, "comparable": comparable, "data_range": 1.0}
        },
        "environment": {"torch": "2", "device": "cpu"},
        "seed": 0,
    }
    return Evaluation(
        {name: MetricResult(float(np.mean(values)), None, None, unit)},
        len(values),
        {name: dict(zip(keys, map(float, values), strict=True))},
        settings={"num_samples_nll": 100},
        card=card,
        inputs=dict.fromkeys(keys, "0" * 16),
    )


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def scores(random):
    return random.normal(25, 3, 100)


# -- the statistics


def test_the_sign_flip_test_errs_in_five_percent_of_null_comparisons(random):
    # Skewed magnitudes, symmetric signs: what two equally good models give.
    p = [sign_flip_test(random.normal(size=30) * random.gamma(1, size=30), flips=500, seed=i) for i in range(400)]
    rejected = sum(value < 0.05 for value in p)
    assert scipy.stats.binomtest(rejected, 400, 0.05).pvalue > 0.001
    assert rejected > 0


def test_the_interval_covers_the_true_difference(random):
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(random.normal(0.3, 1, 80), 500, seed=trial)
        covered += low <= 0.3 <= high
    assert scipy.stats.binomtest(covered, 400, 0.945).pvalue > 0.001


def test_the_sign_flip_test_is_exact_for_few_images(random):
    for number in (3, 8, 12):
        d = random.normal(0.5, 1, number)
        theirs = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flip_test(d) == pytest.approx(theirs, rel=1e-12)


def test_the_random_sign_flip_test_agrees_with_scipy(random):
    d = random.normal(0.2, 1, 60)
    options = {"permutation_type": "samples", "n_resamples": 20_000, "rng": np.random.default_rng(1)}
    theirs = scipy.stats.permutation_test((d,), np.mean, **options).pvalue
    assert sign_flip_test(d, flips=20_000) == pytest.approx(theirs, abs=0.01)


def test_equal_differences_tie_with_the_observed_pattern():
    # All signs equal in 2 of 2**12 patterns, whatever the rounding of 0.1.
    assert sign_flip_test(np.full(12, 0.1)) == 2 / 2**12


def test_no_difference_has_p_one():
    assert sign_flip_test(np.zeros(50)) == 1
    assert wilcoxon_test(np.zeros(50)) == 1


def test_holm_by_hand():
    # sorted 0.001, 0.02, 0.03, 0.2 times 4, 3, 2, 1, made monotone.
    assert holm([0.03, 0.001, 0.2, 0.02]) == pytest.approx([0.06, 0.004, 0.2, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_detectable_difference_is_detected_in_80_percent(random):
    spread = random.normal(size=50)
    size = detectable_difference(spread / spread.std(ddof=1))
    noise = random.normal(size=(400, 50))
    found = sum(sign_flip_test(row + size, flips=300, seed=i) < 0.05 for i, row in enumerate(noise))
    assert 0.7 < found / 400 < 0.9


def test_fewest_images_by_hand():
    # 2 / 2**6 = 0.031 < 0.05 <= 2 / 2**5; four metrics: 4 * 2 / 2**8 = 0.031.
    assert fewest_images(1) == 6
    assert fewest_images(4) == 8


# -- verdicts


def test_a_card_against_itself_is_exactly_zero(scores):
    a = evaluation(scores)
    result = compare(a, a)
    d = result.differences["psnr"]
    assert (d.mean, d.low, d.high, d.p, d.p_corrected, d.p_wilcoxon, d.detectable) == (0, 0, 0, 1, 1, 1, 0)
    assert d.winner is None
    assert result.verdict == "A and B are equal to the last digit on all 100 images."


def test_a_known_gap_is_found(scores, random):
    b = scores + 0.4 + random.normal(0, 0.5, 100)
    result = compare(evaluation(scores), evaluation(b))
    d = result.differences["psnr"]
    assert d.winner == "B"
    assert d.mean == pytest.approx(float(np.mean(b - scores)), rel=1e-12)
    assert d.low < 0.4 < d.high
    assert d.low > 0
    assert d.p < 0.001
    assert result.verdict.startswith("B is better: psnr +0.")
    assert "dB [" in result.verdict
    turned = compare(evaluation(b), evaluation(scores))
    assert turned.differences["psnr"].winner == "A"
    assert turned.differences["psnr"].mean == -d.mean
    assert turned.verdict.startswith("A is better: psnr +0.")


def test_lower_is_better_where_it_is(scores, random):
    errors = {"name": "mse", "unit": "", "better": "lower", "comparable": "range"}
    b = scores - 1 + random.normal(0, 0.5, 100)
    result = compare(evaluation(scores, **errors), evaluation(b, **errors))
    assert result.differences["mse"].winner == "B"
    assert "B is better: mse -" in result.verdict


def test_noise_is_called_no_difference_with_what_would_have_shown(scores, random):
    noise = random.normal(0, 1, 100)
    result = compare(evaluation(scores), evaluation(scores + noise - noise.mean() + 0.01))
    d = result.differences["psnr"]
    assert d.low < 0 < d.high
    assert d.winner is None
    # (t_{0.975, 99} + t_{0.8, 99}) s / 10
    assert d.detectable == pytest.approx(2.8295 * noise.std(ddof=1) / 10, rel=1e-3)
    assert f"{d.detectable:.4g} dB" in result.verdict
    assert "No difference that these 100 images could show" in result.verdict


def test_too_few_images_say_so():
    result = compare(evaluation([1, 2, 3]), evaluation([2, 3, 4.5]))
    assert "3 images are too few to tell: with 1 metric it takes at least 6." in result.verdict


def test_the_extreme_images_are_named(scores):
    b = scores.copy()
    b[[7, 9]] += [5, 3]
    b[4] -= 2
    extremes = compare(evaluation(scores), evaluation(b)).differences["psnr"].extremes()
    assert [key for key, _ in extremes["B"]] == ["007.png", "009.png"]
    assert [key for key, _ in extremes["A"]] == ["004.png"]


def test_several_metrics_are_corrected_together(scores, random):
    def both(shift):
        first = evaluation(scores + shift + random.normal(0, 0.1, 100))
        second = evaluation(scores + random.normal(0, 0.1, 100), "ssim", unit="")
        return Evaluation(
            first.metrics | second.metrics,
            100,
            first.per_image | second.per_image,
            settings=first.settings,
            card=first.card | {"metrics": first.card["metrics"] | second.card["metrics"]},
            inputs=first.inputs,
        )

    result = compare(both(0), both(1))
    assert result.differences["psnr"].p_corrected == pytest.approx(2 * result.differences["psnr"].p)
    assert result.differences["psnr"].winner == "B"
    assert result.differences["ssim"].winner is None
    assert "ssim" in result.verdict
    assert result.table().row_count == 2


def test_the_result_is_the_same_every_time_and_is_json(scores, random, tmp_path):
    pair = evaluation(scores), evaluation(scores + random.normal(0, 1, 100))
    content = compare(*pair).to_dict()
    assert compare(*pair).to_dict() == content
    file = compare(*pair).to_json(tmp_path / "deep" / "out.json")
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == json.loads(json.dumps(content))
    assert set(content["differences"]["psnr"]["per_image"]) == set(pair[0].inputs)


# -- what cannot be compared


def changed(values, **sections):
    result = evaluation(values)
    card = copy.deepcopy(result.card)
    for section, entries in sections.items():
        card[section].update(entries)
    return Evaluation(result.metrics, result.images, result.per_image, [], result.settings, card, dict(result.inputs))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"preprocessing": {"shape": [1, 16, 16]}}},
            r"prepared differently: shape is \[1, 8, 8\] in A and \[1, 16",
        ),
        ({"metrics": {"psnr": {"version": 2}}}, "psnr is version 1 in A and 2 in B"),
        ({"data": {"inputs_are": "tensors"}}, "hashes of files and the other hashes of tensors"),
    ],
)
def test_other_preparation_or_versions_are_refused(scores, sections, message):
    with pytest.raises(ValueError, match=message):
        compare(evaluation(scores), changed(scores, **sections))


def test_other_images_are_refused_unless_the_common_ones_are_asked_for(scores):
    a, b = evaluation(scores), evaluation(scores[:90] + 1)
    with pytest.raises(ValueError, match=r"90 in common, 10 only in A, such as '090\.png'.*--common"):
        compare(a, b)
    result = compare(a, b, common=True)
    assert result.images == 90
    assert "90 images in common, of 100 in A and 90 in B" in result.notes
    assert result.differences["psnr"].mean == pytest.approx(1)


def test_other_content_under_the_same_name_is_refused(scores):
    b = evaluation(scores)
    b.inputs["003.png"] = "1" * 16
    for common in (False, True):
        with pytest.raises(ValueError, match=r"1 of 100 images have the same name and another content: '003\.png'"):
            compare(evaluation(scores), b, common=common)


def test_metrics_in_the_unit_of_another_value_range_are_left_out(scores):
    other = {"model": {"value_range": [-1.0, 1.0]}}
    relative = compare(evaluation(scores), changed(scores + 1, **other))
    assert relative.differences["psnr"].mean == pytest.approx(1)
    a = evaluation(scores, "mse", comparable="range")
    b = evaluation(scores, "mse", comparable="range")
    b.card["model"]["value_range"] = [-1.0, 1.0]
    with pytest.raises(ValueError, match=r"mse is left out: A's images have values in \[0\.0, 1\.0\] and B's in"):
        compare(a, b)
    with pytest.raises(ValueError, match="mse cannot be compared"):
        compare(a, b, metrics=["mse"])


def test_probabilities_and_densities_are_not_compared(scores):
    a, b = (evaluation(scores, "elbo", comparable="likelihood") for _ in range(2))
    b.card["model"]["discrete"] = True
    with pytest.raises(ValueError, match="A's likelihood gives densities and B's probabilities"):
        compare(a, b)


def test_bounds_of_other_sample_counts_are_not_compared(scores):
    a, b = (evaluation(scores, "nll", comparable="likelihood") for _ in range(2))
    b.settings["num_samples_nll"] = 5
    with pytest.raises(ValueError, match="num_samples_nll is 100 in A and 5 in B"):
        compare(a, b)


def test_infinite_values_are_not_averaged_away(scores):
    a, b = evaluation(scores), evaluation([math.inf, *scores[1:]])
    with pytest.raises(ValueError, match="psnr is left out: 1 of 100 pairs have an infinite or undefined value"):
        compare(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["psnrr"]}, "card A has no metric 'psnrr'; did you mean 'psnr'"),
        ({"metrics": []}, "got no metric"),
        ({"flips": 3}, "got flips=3"),
    ],
)
def test_bad_arguments_are_refused(scores, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(evaluation(scores), evaluation(scores), **arguments)


# -- cards


def test_a_card_survives_its_file(loose_model, images, tmp_path):
    result = evaluate(loose_model, ListDataset(images), ["psnr", "nll", "active_units"], num_samples_nll=3)
    again = Evaluation.from_json(result.to_json(tmp_path / "evaluation.json"))
    assert again.to_dict() == result.to_dict()
    assert Evaluation.from_json(tmp_path).to_dict() == result.to_dict()
    comparison = compare(result, tmp_path)
    assert comparison.verdict == "A and B are equal to the last digit on all 24 images."
    assert comparison.whole["active_units"] == (2.0, 2.0)


def test_a_card_says_what_was_measured(loose_model, images):
    known = Provenance("a" * 64, "linear", "toys", "test", {"shape": [1, 2, 2], "value_range": [-4, 4]})
    result = evaluate(loose_model, ListDataset(images), ["psnr", "nll"], num_samples_nll=2, seed=3, provenance=known)
    card = result.card
    assert card["model"]["hash"] == "a" * 64
    assert card["model"]["parameters"] == 18
    assert card["data"]["images"] == 24
    assert card["data"]["preprocessing"] == {"shape": [1, 2, 2]}
    assert card["metrics"]["psnr"] == {
        "version": 1, "unit": "dB", "better": "higher", "comparable": "always", "data_range": 8.0,
    }  # fmt: skip
    assert card["metrics"]["nll"]["data_range"] is None
    assert card["seed"] == 3
    assert card["environment"]["torch"] == torch.__version__
    assert card["environment"]["precision"] == "float32"
    text = result.to_text()
    assert "sha256 aaaaaaaaaaaa" in text
    assert "24 images of toys (test)" in text


def test_hashes_change_with_what_they_are_of(loose_model, images):
    def data(x, keys=None):
        return evaluate(loose_model, ListDataset(x, keys), ["mse"], bootstrap=0).card["data"]

    one = data(images)
    other = images.clone()
    other[5] += 0.01
    assert data(other)["inputs_hash"] != one["inputs_hash"]
    assert data(images, [f"x{i}" for i in range(24)])["inputs_hash"] != one["inputs_hash"]
    assert data(images)["inputs_hash"] == one["inputs_hash"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not the card of an evaluation"),
        ("[1]", "it holds a list"),
        ("nonsense", "not JSON"),
        ('{"card": {"format": 99}}', "newer omnivae"),
        ('{"card": {"format": 1, "metrics": {}}, "metrics": {"psnr": {}}}', "is damaged"),
    ],
)
def test_what_is_no_card_is_refused(tmp_path, content, message):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Evaluation.from_json(tmp_path / "card.json")


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no evaluation card at .*evaluation\.json"):
        compare(tmp_path, tmp_path)


def test_an_evaluation_without_a_card_is_refused():
    bare = Evaluation({"psnr": MetricResult(1.0, None, None)}, 1, {"psnr": {"a": 1.0}})
    with pytest.raises(ValueError, match="evaluation A has no card"):
        compare(bare, bare)
