"""Scores of a table against slow, separate implementations of the papers' formulas, and what must hold for any codes."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from scipy.stats import entropy as scipy_entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.svm import LinearSVC

from omnivae.metrics import disentanglement
from omnivae.metrics.disentanglement import dci, irs, mig, modularity, sap
from omnivae.metrics.disentanglement.boosting import boost
from omnivae.metrics.disentanglement.sap import support_vectors
from omnivae.metrics.disentanglement.table import make_table, split

SIZES = (3, 5, 8, 4)


def independent_factors(count, sizes=SIZES, seed=0):
    return np.random.default_rng(seed).integers(sizes, size=(count, len(sizes)))


def mixed_codes(factors, num_codes=6, seed=1):
    """Codes that hold the factors mixed, uneven and noisy, and one that holds nothing."""
    rng = np.random.default_rng(seed)
    mixing = 0.4 * rng.normal(size=(factors.shape[1], num_codes))
    mixing[: factors.shape[1], : factors.shape[1]] += np.eye(factors.shape[1])
    mixing[:, -1] = 0
    return np.tanh((factors / factors.max(0) - 0.5) @ mixing) + 0.05 * rng.normal(size=(len(factors), num_codes))


@pytest.fixture(scope="module")
def factors():
    return independent_factors(3000)


@pytest.fixture(scope="module")
def codes(factors):
    return mixed_codes(factors)


def shuffled(factors, seed=5):
    return np.random.default_rng(seed).permutation(factors)


def rotated(codes):
    """Four codes turned by the matrix of Hadamard: each holds as much of every factor."""
    return codes @ hadamard(4) / 2


# ---- the references: one pair at a time, with scikit-learn


def slow_information(codes, factors, num_bins=20):
    result = np.zeros((codes.shape[1], factors.shape[1]))
    for i in range(codes.shape[1]):
        bins = np.digitize(codes[:, i], np.histogram(codes[:, i], num_bins)[1][:-1])
        for j in range(factors.shape[1]):
            result[i, j] = mutual_info_score(factors[:, j], bins)
    return result


def slow_mig(codes, factors):
    information = np.sort(slow_information(codes, factors), axis=0)
    own = [mutual_info_score(column, column) for column in factors.T]
    return np.mean((information[-1] - information[-2]) / own)


def slow_predictability(train, test, **options):
    result = np.zeros((train.num_codes, train.num_factors))
    for i in range(train.num_codes):
        for j in range(train.num_factors):
            model = LinearSVC(C=0.01, class_weight="balanced", **options)
            model.fit(train.codes[:, [i]], train.factors[:, j])
            result[i, j] = np.mean(model.predict(test.codes[:, [i]]) == test.factors[:, j])
    return result


def slow_dci(importances):
    per_code = 1 - scipy_entropy(importances.T + 1e-11, base=importances.shape[1])
    per_factor = 1 - scipy_entropy(importances + 1e-11, base=importances.shape[0])
    return (
        np.sum(per_code * importances.sum(axis=1) / importances.sum()),
        np.sum(per_factor * importances.sum(axis=0) / importances.sum()),
    )


def slow_irs(codes, factors, quantile=0.99):
    codes = codes[:, codes.var(axis=0) > 0]
    bins = np.stack([np.digitize(v, np.histogram(v, 20)[1][:-1]) for v in factors.T], axis=1)
    largest = np.max(np.abs(codes - codes.mean(axis=0)), axis=0)
    matrix = np.zeros((codes.shape[1], factors.shape[1]))
    for i in range(codes.shape[1]):
        for j in range(factors.shape[1]):
            values = np.unique(bins[:, j])
            for value in values:
                group = codes[bins[:, j] == value, i]
                matrix[i, j] += np.quantile(np.abs(group - group.mean()), quantile) / len(values)
    matrix = 1 - matrix / largest[:, None]
    return np.average(matrix.max(axis=1), weights=largest)


# ---- equal to the references


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mig_is_the_reference(codes, factors, dtype):
    codes = codes.astype(dtype)
    result = mig(codes, factors)
    assert result.score == pytest.approx(slow_mig(codes, factors), abs=1e-9)
    np.testing.assert_allclose(result.mutual_information, slow_information(codes, factors), atol=1e-9)
    assert result.score == pytest.approx(np.mean(list(result.per_factor.values())))


def test_mig_of_a_heavy_tail_and_a_constant_code(factors):
    codes = np.exp(3 * np.random.default_rng(0).normal(size=(3000, 3)))
    codes[:, 1] = 7.5
    codes[:, 2] = factors[:, 0]
    assert mig(codes, factors).score == pytest.approx(slow_mig(codes, factors), abs=1e-9)


def test_sap_is_the_reference(codes, factors):
    train, test = split(make_table(codes, factors), seed=4)
    exact = slow_predictability(train, test, tol=1e-9, max_iter=100_000)
    usual = slow_predictability(train, test)
    result = sap(codes, factors, seed=4)
    np.testing.assert_allclose(result.predictability, exact, atol=1 / len(test))
    np.testing.assert_allclose(result.predictability, usual, atol=3 / len(test))
    ordered = np.sort(usual, axis=0)
    assert result.score == pytest.approx(np.mean(ordered[-1] - ordered[-2]), abs=2e-3)
    assert "support vector machine" in result.classifier


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("size", [2, 5])
def test_support_vectors_are_the_optimum(scale, size):
    rng = np.random.default_rng(size)
    label = np.sort(rng.integers(size, size=400))[:, None]
    label = np.where(rng.random((400, 1)) < 0.2, rng.permutation(label), label)
    code = scale * (label[:, 0] + rng.normal(size=400))
    slopes, offsets = support_vectors(code, label, [size])
    model = LinearSVC(C=0.01, class_weight="balanced", tol=1e-12, max_iter=100_000).fit(code[:, None], label[:, 0])
    mine = slice(1, 2) if size == 2 else slice(None)
    np.testing.assert_allclose(slopes[mine], model.coef_[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(offsets[mine], model.intercept_, rtol=1e-4, atol=1e-6)


def test_sap_of_quantities_is_the_squared_correlation(codes, factors):
    expected = np.corrcoef(codes.T, factors.T)[: codes.shape[1], codes.shape[1] :] ** 2
    result = sap(codes, factors, continuous=True)
    np.testing.assert_allclose(result.predictability, expected, atol=1e-9)
    assert sap(factors, factors, continuous=True).score > 0.99
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5000, 3))
    assert sap(values, values, continuous=True).score > 0.99


def test_dci_is_the_reference_on_the_same_importances(codes, factors):
    result = dci(codes[:900], factors[:900])
    score, completeness = slow_dci(result.importances)
    assert result.score == pytest.approx(score, abs=1e-12)
    assert result.completeness == pytest.approx(completeness, abs=1e-12)
    np.testing.assert_allclose(result.importances.sum(axis=0), 1)


def test_binned_boosting_is_close_to_gradient_boosting(codes, factors):
    codes, factors = codes[:900], factors[:900, :2]
    fast, slow = dci(codes, factors), dci(codes, factors, predictor="gradient_boosting")
    assert "GradientBoostingClassifier" in slow.classifier
    assert "quantile bins" in fast.classifier
    np.testing.assert_allclose(fast.importances, slow.importances, atol=0.02)
    assert fast.score == pytest.approx(slow.score, abs=0.02)
    assert fast.completeness == pytest.approx(slow.completeness, abs=0.02)
    assert fast.informativeness == pytest.approx(slow.informativeness, abs=0.02)


@pytest.mark.parametrize("size", [2, 4])
def test_boosting_grows_the_same_trees_where_bins_lose_nothing(size):
    rng = np.random.default_rng(0)
    x = rng.permuted(np.tile(np.linspace(0, 1, 200), (3, 4)), axis=1).T
    y = np.clip(np.floor(size * (0.8 * x[:, 0] + 0.2 * x[:, 1]) + 0.6 * rng.normal(size=800)), 0, size - 1).astype(int)
    # Splits that are equally good come late, and scikit-learn takes one of them at random.
    for num_stages, tolerance in ((5, 1e-5), (100, 0.01)):
        model = GradientBoostingClassifier(random_state=0, n_estimators=num_stages).fit(x[:500], y[:500])
        fast = boost(x[:500], y[:500, None], [size], x[500:], y[500:, None], num_stages=num_stages)
        np.testing.assert_allclose(fast.importances[:, 0], model.feature_importances_, atol=tolerance)
        assert fast.train[0] == pytest.approx(model.score(x[:500], y[:500]), abs=tolerance)
        assert fast.test[0] == pytest.approx(model.score(x[500:], y[500:]), abs=0.02)


def test_modularity_and_explicitness_are_the_reference(codes, factors):
    train, test = split(make_table(codes, factors), seed=2)
    squares = slow_information(train.codes, train.factors) ** 2
    best = squares.max(axis=1)
    expected = np.mean(1 - (squares.sum(axis=1) - best) / (best * (factors.shape[1] - 1)))
    mean, std = train.codes.mean(axis=0), train.codes.std(axis=0)
    areas = []
    for j in range(factors.shape[1]):
        model = LogisticRegression(max_iter=1000).fit((train.codes - mean) / std, train.factors[:, j])
        guess = model.predict_proba((test.codes - mean) / std)
        areas.append(np.mean([roc_auc_score(test.factors[:, j] == k, guess[:, k]) for k in range(guess.shape[1])]))
    result = modularity(codes, factors, seed=2)
    assert result.score == pytest.approx(expected, abs=1e-9)
    assert result.explicitness == pytest.approx(np.mean(areas), abs=1e-6)


@pytest.mark.parametrize("quantile", [0.99, 1.0])
def test_irs_is_the_reference(codes, factors, quantile):
    assert irs(codes, factors, quantile=quantile).score == pytest.approx(slow_irs(codes, factors, quantile), abs=1e-12)
    uneven = factors**2 / 3
    assert irs(codes, uneven).score == pytest.approx(slow_irs(codes, uneven), abs=1e-12)


def test_irs_leaves_constant_codes_out(codes, factors):
    more = np.concatenate([codes, np.ones((len(codes), 1))], axis=1)
    result = irs(more, factors)
    assert result.score == pytest.approx(irs(codes, factors).score)
    assert result.parents[-1] == -1
    assert np.isnan(result.per_code[-1])


# ---- perfect, shuffled and rotated codes

BOUNDED = ("mig", "dci", "factor_vae", "beta_vae", "modularity", "irs")


@pytest.fixture(scope="module")
def perfect(factors):
    return disentanglement(factors[:1500], factors[:1500])


@pytest.mark.parametrize("name", BOUNDED)
def test_perfect_codes_score_one(perfect, name):
    # The mutual information of 1,500 independent rows and the importances of boosting are not exactly zero.
    assert perfect[name].score == pytest.approx(1, abs=0.01)


def test_perfect_codes_are_complete_informative_and_explicit(perfect):
    assert perfect["dci"].completeness == pytest.approx(1, abs=0.01)
    assert perfect["dci"].informativeness == 1
    # One line cannot cut out a value between two others: the areas of those stay below 1.
    assert perfect["modularity"].explicitness > 0.7


def test_perfect_codes_of_all_combinations_score_exactly_one():
    factors = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), -1).reshape(-1, len(SIZES))
    assert mig(factors, factors).score == pytest.approx(1, abs=1e-12)
    assert irs(factors, factors).score == 1
    two = independent_factors(4000, (2, 2, 2))
    # the second best code guesses: right half of the time, within four standard errors of 1,333 rows
    assert sap(two, two).score == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1333) + 0.01)


def test_shuffled_codes_score_nothing(factors):
    codes = shuffled(mixed_codes(factors))
    # A plug-in estimate of no information has mean (bins - 1)(values - 1) / 2N and a deviation of the same order.
    bias = 19 * (np.array(SIZES) - 1) / (2 * len(codes))
    entropy = np.log(SIZES)
    assert mig(codes, factors).score < 2 * np.mean(bias / entropy)
    assert sap(codes, factors).score < 4 * np.sqrt(0.25 / 1000)
    result = dci(codes[:1200], factors[:1200])
    assert result.score < 0.15
    assert result.completeness < 0.15
    assert result.informativeness == pytest.approx(np.mean(1 / np.array(SIZES)), abs=0.05)
    scores = disentanglement(codes, factors, metrics=["beta_vae", "modularity"])
    assert scores["beta_vae"].score == pytest.approx(1 / 4, abs=0.05)
    assert scores["modularity"].explicitness == pytest.approx(0.5, abs=0.03)


def test_rotated_codes_score_low(factors):
    codes = (factors / factors.max(0) - 0.5).astype(np.float64)
    for score in (lambda z: mig(z, factors).score, lambda z: dci(z[:900], factors[:900]).score):
        assert score(rotated(codes)) < 0.5 * score(codes)
    for name in ("modularity", "irs"):
        turned, straight = (disentanglement(z, factors, metrics=[name])[name].score for z in (rotated(codes), codes))
        assert turned < straight - 0.1


# ---- invariances


def test_order_of_codes_does_not_matter(codes, factors):
    order = np.random.default_rng(0).permutation(codes.shape[1])
    names = ("mig", "sap", "modularity", "irs")
    before, after = (disentanglement(z, factors, metrics=names) for z in (codes, codes[:, order]))
    for name in names:
        assert after[name].score == pytest.approx(before[name].score, abs=1e-9)
    np.testing.assert_array_equal(after["irs"].parents, before["irs"].parents[order])


def test_sign_and_scale_of_codes_do_not_matter(codes, factors):
    scales = np.array([2.0, -1.0, 0.25, -8.0, 1.0, 4.0])
    # powers of two move no value to another bin, a sign only one that lies on an edge
    assert mig(np.abs(scales) * codes, factors).score == mig(codes, factors).score
    assert mig(scales * codes, factors).score == pytest.approx(mig(codes, factors).score, abs=2e-3)
    assert irs(scales * codes, factors).per_code == pytest.approx(irs(codes, factors).per_code)
    fewer = factors[:900]
    same = dci(codes[:900], fewer).score
    assert dci(np.abs(scales) * codes[:900], fewer).score == pytest.approx(same, abs=1e-9)
    signs = np.sign(scales)
    np.testing.assert_allclose(
        sap(signs * codes, factors).predictability, sap(codes, factors).predictability, atol=1e-3
    )


def test_names_of_values_do_not_matter(codes, factors):
    other = np.array([7.5, -1, 40, 3, 0, 2, 11, 13])[factors]
    assert mig(codes, other).score == pytest.approx(mig(codes, factors).score, abs=1e-12)


def test_same_seed_same_score(codes, factors):
    first, second = (disentanglement(codes, factors, metrics=["sap", "factor_vae"], seed=7) for _ in range(2))
    assert {k: v.score for k, v in first.items()} == {k: v.score for k, v in second.items()}


# ---- what goes in


def test_tensors_and_names(codes, factors):
    names = ["shape", "scale", "x", "y"]
    result = mig(torch.from_numpy(codes), torch.from_numpy(factors), names=names)
    assert list(result.per_factor) == names
    assert result.score == mig(codes, factors).score
    assert mig(torch.from_numpy(codes).bfloat16(), factors).score > 0


def test_continuous_factors_are_refused_until_binned(codes):
    values = np.random.default_rng(0).random((len(codes), 2))
    with pytest.raises(ValueError, match="num_factor_bins=20"):
        mig(codes, values)
    assert mig(values, values, num_factor_bins=20).score > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, v: (z[:10], v), r"expected \[10, F\]"),
        (lambda z, v: (z[0], v), r"expected \[N, D\]"),
        (lambda z, v: (np.where(z > 0.3, np.nan, z), v), "NaN"),
        (lambda z, v: (z, v * 0), "same value in every row"),
        (lambda z, v: (z[:, :1], v), "needs at least two"),
        (lambda z, v: (z, v.astype(str)), "expected numbers"),
    ],
)
def test_bad_tables_are_refused(codes, factors, change, message):
    with pytest.raises(ValueError, match=message):
        mig(*change(codes, factors))


def test_unknown_metric_and_predictor(codes, factors):
    with pytest.raises(ValueError, match="'mig'"):
        disentanglement(codes, factors, metrics=["migg"])
    with pytest.raises(ValueError, match="no metric"):
        disentanglement(codes, factors, metrics=[])
    with pytest.raises(ValueError, match="expected one of binned_boosting"):
        dci(codes, factors, predictor="lasso")
    with pytest.raises(ValueError, match="different ones"):
        mig(codes, factors, names=["a", "b"])


def test_a_value_that_only_one_part_has_is_refused(codes, factors):
    rare = factors.copy()
    rare[0, 0] = 99
    with pytest.raises(ValueError, match=r"rows to (judge by|fit on) have"):
        sap(codes, rare)
