"""Scores of batches with a fixed factor against loops over the same batches, samplers, and UDR against SciPy."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso, LogisticRegression

from omnivae.metrics.disentanglement import (
    FactorSampler,
    ProcessSampler,
    beta_vae_score,
    factor_vae_score,
    table_sampler,
    udr,
)

SIZES = (3, 5, 4)
FEW = {"num_train": 600, "num_eval": 300, "batch_size": 16}


def encode(factors):
    """Codes that hold the factors mixed, with a constant one among them."""
    mixing = np.array([[1, 0.3, 0.0, 0.1, 0], [0.2, 1, 0.3, 0.0, 0], [0.0, 0.4, 0.5, 0.2, 0]])
    return (factors / np.array(SIZES)) @ mixing + 2.0


@pytest.fixture(scope="module")
def factors():
    return np.random.default_rng(0).integers(SIZES, size=(2000, 3))


class Recorder:
    """Passes everything on and keeps it."""

    def __init__(self, sampler):
        self.sampler, self.num_factors, self.names = sampler, sampler.num_factors, sampler.names
        self.drawn, self.held = [], []

    def sample(self, count, rng):
        self.all = self.sampler.sample(count, rng)
        return self.all

    def fixed(self, factors, batch_size, rng):
        batches = self.sampler.fixed(factors, batch_size, rng)
        self.drawn += list(batches)
        self.held += list(factors)
        return batches

    def pairs(self, factors, batch_size, rng):
        pairs = self.sampler.pairs(factors, batch_size, rng)
        self.drawn += list(zip(*pairs, strict=True))
        self.held += list(factors)
        return pairs


@pytest.fixture(params=["table", "process"])
def sampler(request, factors):
    return table_sampler(encode(factors), factors) if request.param == "table" else ProcessSampler(encode, SIZES)


def test_factor_vae_score_is_the_reference_on_the_same_batches(sampler):
    recorder = Recorder(sampler)
    result = factor_vae_score(recorder, seed=1, **FEW)
    spread = np.var(recorder.all, axis=0, ddof=1)
    active = np.sqrt(spread) >= 0.05
    assert active.tolist() == [True, True, True, True, False]
    votes = np.zeros((2, 3, 5), dtype=int)
    for i, (held, batch) in enumerate(zip(recorder.held, recorder.drawn, strict=True)):
        quietest = np.argmin(np.var(batch, axis=0, ddof=1)[active] / spread[active])
        votes[int(i >= 600), held, quietest] += 1
    chosen = votes[0].argmax(axis=0)
    right = [votes[part][chosen, np.arange(5)].sum() / votes[part].sum() for part in (0, 1)]
    assert (result.train_accuracy, result.score) == pytest.approx(tuple(right))
    np.testing.assert_array_equal(result.votes, votes[0])
    np.testing.assert_array_equal(result.active, active)


def test_beta_vae_score_is_the_reference_on_the_same_batches(sampler):
    recorder = Recorder(sampler)
    result = beta_vae_score(recorder, seed=1, **FEW)
    x = np.array([np.mean(np.abs(a - b), axis=0) for a, b in recorder.drawn])
    y = np.array(recorder.held)
    model = LogisticRegression(max_iter=1000).fit(x[:600], y[:600])
    assert result.train_accuracy == pytest.approx(model.score(x[:600], y[:600]))
    assert result.score == pytest.approx(model.score(x[600:], y[600:]))


def test_samplers_hold_one_factor_and_let_the_others_vary(factors):
    held = np.array([0, 1, 2, 1])
    for sampler in (table_sampler(factors, factors), ProcessSampler(lambda f: f, SIZES, chunk=7)):
        assert isinstance(sampler, FactorSampler)
        rng = np.random.default_rng(0)
        batches = sampler.fixed(held, 200, rng)
        a, b = sampler.pairs(held, 200, rng)
        for m, factor in enumerate(held):
            assert len(set(batches[m, :, factor])) == 1
            np.testing.assert_array_equal(a[m, :, factor], b[m, :, factor])
            assert len(set(a[m, :, factor])) == SIZES[factor]
            for other in {0, 1, 2} - {int(factor)}:
                # uniform over the values: five standard deviations of 200 draws
                share = np.bincount(batches[m, :, other].astype(int), minlength=SIZES[other]) / 200
                p = 1 / SIZES[other]
                np.testing.assert_allclose(share, p, atol=5 * np.sqrt(p * (1 - p) / 200))
                assert np.mean(a[m, :, other] == b[m, :, other]) == pytest.approx(p, abs=0.2)


def test_table_and_process_agree(factors):
    table, process = table_sampler(encode(factors), factors), ProcessSampler(encode, SIZES)
    for score in (factor_vae_score, beta_vae_score):
        results = [score(sampler, num_train=2000, num_eval=2000, batch_size=32).score for sampler in (table, process)]
        assert results[0] == pytest.approx(results[1], abs=0.03)


def test_perfect_and_shuffled(factors):
    perfect = table_sampler(factors, factors, ["shape", "x", "y"])
    for score in (factor_vae_score, beta_vae_score):
        result = score(perfect, **FEW)
        assert result.score == 1
        assert result.per_factor == {"shape": 1, "x": 1, "y": 1}
        scrambled = table_sampler(np.random.default_rng(1).permutation(factors), factors)
        # chance is 1/3, within four standard errors of 3,000 batches and the fit to 1,000
        assert score(scrambled, num_train=1000, num_eval=3000, batch_size=32).score == pytest.approx(1 / 3, abs=0.06)


def test_sign_scale_and_order_of_codes_leave_factor_vae_score_as_it_is(factors):
    codes = encode(factors)[:, :4]
    scores = [
        factor_vae_score(table_sampler(z, factors), seed=3, **FEW).score
        for z in (codes, codes * [-2.0, 4.0, -1.0, 8.0], codes[:, ::-1])
    ]
    assert scores[0] == scores[1] == scores[2]


def test_no_active_code_scores_zero(factors):
    result = factor_vae_score(table_sampler(np.ones((2000, 4)), factors), **FEW)
    assert result.score == 0
    assert not result.active.any()


def test_bad_samplers_are_refused(factors):
    with pytest.raises(ValueError, match="two values or more"):
        ProcessSampler(encode, (3, 1))
    with pytest.raises(ValueError, match="one for each"):
        ProcessSampler(encode, SIZES, names=["a"])
    with pytest.raises(ValueError, match="returned 3 codes for 10 rows"):
        ProcessSampler(lambda f: encode(f)[:3], SIZES).sample(10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="batch_size=1"):
        factor_vae_score(table_sampler(factors, factors), batch_size=1)
    with pytest.raises(ValueError, match="at least two"):
        beta_vae_score(table_sampler(factors, factors[:, :1]))


# ---- UDR


def slow_strength(matrix):
    columns = [max(column) ** 2 / sum(column) for column in matrix.T]
    rows = [max(row) ** 2 / sum(row) for row in matrix]
    return (np.mean(columns) + np.mean(rows)) / 2


@pytest.fixture(scope="module")
def models(factors):
    rng = np.random.default_rng(0)
    codes = [(factors / SIZES) @ rng.normal(size=(3, 4)) + 0.2 * rng.normal(size=(2000, 4)) for _ in range(3)]
    kl = [np.array([1.0, 2.0, 0.5, 1.0]), np.array([1.0, 0.001, 3.0, 1.0]), np.full(4, 0.2)]
    return codes, kl


@pytest.mark.parametrize("method", ["lasso", "spearman"])
def test_udr_is_the_reference(models, method):
    codes, kl = models
    standard = [(z - z.mean(0)) / z.std(0) * (k > 0.01) for z, k in zip(codes, kl, strict=True)]
    pairwise = np.zeros((3, 3))
    for i in range(3):
        for j in set(range(3)) - {i}:
            if method == "lasso":
                matrix = np.stack([np.abs(Lasso(alpha=0.1).fit(standard[i], y).coef_) for y in standard[j].T], axis=1)
                matrix = matrix[kl[i] > 0.01][:, kl[j] > 0.01]
            else:
                kept = [standard[m][:, kl[m] > 0.01] for m in (i, j)]
                matrix = np.abs([[spearmanr(a, b).statistic for b in kept[1].T] for a in kept[0].T])
            pairwise[i, j] = slow_strength(matrix)
    result = udr(codes, kl, method=method)
    np.testing.assert_allclose(result.pairwise, pairwise, atol=1e-9)
    np.testing.assert_allclose(
        result.scores, [np.median([pairwise[j, i] for j in range(3) if j != i]) for i in range(3)]
    )


def test_models_that_agree_up_to_order_and_sign(factors):
    codes = np.random.default_rng(0).permuted(np.tile(np.linspace(-1, 1, 2000), (4, 1)), axis=1).T
    others = [codes, -codes[:, ::-1], codes[:, [1, 0, 3, 2]] * [1, -3, 2, -1]]
    kl = [np.ones(4)] * 3
    # The penalty of 0.1 shrinks a coefficient of 1 to 0.9; the ranks of independent codes agree by chance, 1/sqrt(N)
    assert udr(others, kl).scores == pytest.approx(0.9, abs=0.002)
    assert udr(others, kl, method="spearman").scores == pytest.approx(1, abs=3 * 3 / np.sqrt(2000))
    turned = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    assert udr([codes, codes @ turned], kl[:2]).scores.max() < 0.7


def test_udr_of_unrelated_and_of_collapsed_models():
    rng = np.random.default_rng(0)
    codes = [rng.normal(size=(1000, 3)) for _ in range(2)]
    assert udr(codes, [np.ones(3)] * 2).scores == pytest.approx(0, abs=0.02)
    assert udr(codes, [np.zeros(3)] * 2).scores.tolist() == [0, 0]


def test_bad_models_are_refused(models):
    codes, kl = models
    with pytest.raises(ValueError, match="two or more"):
        udr(codes[:1], kl[:1])
    with pytest.raises(ValueError, match="the same images"):
        udr([codes[0], codes[1][:5]], kl[:2])
    with pytest.raises(ValueError, match="expected one for each"):
        udr(codes, [np.ones(2)] * 3)
    with pytest.raises(ValueError, match="'lasso' or 'spearman'"):
        udr(codes, kl, method="pearson")
