"""What is said of a few seeds: against scipy, by hand, and where values are alike, tie or are missing."""

import itertools

import numpy as np
import pytest
from scipy import stats

from kdjax.analysis.statistics import bootstrap, effect_size, holm, paired_gain, rank_sum

RNG = np.random.default_rng(0)
HITS = np.array([3365, 3173, 3060])  # of 4,000 images


def shares(hits):
    """As studies have them: means in float32, kept as Python floats."""
    return [float(np.float32(hit) / np.float32(4000)) for hit in hits]


def test_statistics_know_what_scipy_knows():
    a, b = RNG.normal(1.0, 1.0, 8), RNG.normal(0.0, 1.0, 8)
    gain = paired_gain(a, b)
    np.testing.assert_allclose(gain["p"], stats.ttest_rel(a, b).pvalue, rtol=1e-9)
    for way in ("two-sided", "greater", "less"):
        found = rank_sum(a, b, way)
        assert found["p"] == stats.mannwhitneyu(a, b, alternative=way).pvalue
    np.testing.assert_allclose(found["better"], np.mean(a[:, None] > b[None]))
    low, high = bootstrap(RNG.normal(5.0, 1.0, 400))
    assert low < 5.0 < high and abs(high - low - 2 * 1.96 / 20) < 0.03, "as the normal theory has it"
    shifted = effect_size([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    np.testing.assert_allclose(shifted, 1.0 * (1 - 3 / (4 * 4 - 1)))  # 4 degrees of freedom


def test_equal_gains_are_equal_in_float32_too():
    gain = paired_gain(shares(HITS + 54), shares(HITS))
    assert (gain["sd"], gain["half_width"], gain["p"], gain["better"]) == (0.0, 0.0, None, 3)
    np.testing.assert_allclose(gain["mean"], 54 / 4000, rtol=1e-4)
    one = paired_gain(shares(HITS + np.array([54, 54, 55])), shares(HITS))
    assert one["sd"] > 0 and one["p"] < 0.01, "an image more is no rounding"


def test_what_is_within_rounding_is_no_gain():
    gain = paired_gain([0.9 + 1e-8, 0.8, 0.7], [0.9, 0.8 - 1e-8, 0.6])
    assert gain["better"] == 1 and gain["values"][:2] == [0.0, 0.0]


def test_gains_are_of_numbers_of_the_same_seeds():
    assert paired_gain(np.array([2, 3], np.uint8), np.array([3, 3], np.uint8))["values"] == [-1.0, 0.0]
    column = np.ones((2, 1))
    for values, baseline in (([1, 2, 3], [1.5]), ([1, 2], [1, 2, 3]), (column, column), ([], []), (1.0, 2.0)):
        with pytest.raises(ValueError, match="give one number a seed of each, of the same seeds"):
            paired_gain(values, baseline)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0], [-np.inf, np.inf, np.inf]], ids=str)
def test_a_diverged_seed_leaves_no_p(values):
    """Measures that do not exist for a condition are nan: the table still has its row."""
    for gain in (paired_gain(values, [1.0, 1.0, 1.0]), paired_gain(values, values)):
        assert gain["p"] is None and not np.isfinite(gain["mean"]) and np.isnan([gain["sd"], gain["half_width"]]).all()
    assert holm({"a": 0.02, "b": gain["p"]}) == {"a": 0.04, "b": 1.0}


def test_tests_without_p_belong_to_their_family():
    assert holm({"a": 0.03, "b": None, "c": None}) == {"a": 0.09, "b": 1.0, "c": 1.0}
    p = {"a": 0.01, "b": float("nan"), "c": 0.03, "d": None}
    for order in itertools.permutations(p):
        found = holm({name: p[name] for name in order})
        assert found == {"a": 0.04, "b": 1.0, "c": 0.09, "d": 1.0} and list(found) == list(order)


@pytest.mark.parametrize(
    ("values", "control", "least"),
    [([3, 5, 6, 7], [0, 1, 2, 3], 2 / 70), ([5] * 4, [1] * 4, 1 / 70), ([2.0, 2.0], [1.0], 1 / 3), ([4], [4], 1.0)],
)
def test_ranks_that_tie_have_exact_p(values, control, least):
    assert rank_sum(values, control, "greater")["p"] == pytest.approx(least)
    assert rank_sum(control, values, "less")["p"] == pytest.approx(least)
    assert rank_sum(values, control)["p"] == pytest.approx(min(1, 2 * least))
    assert rank_sum(values, control, "less")["p"] == pytest.approx(1.0)


def test_ranks_that_tie_are_as_scipy_permutes_them():
    every = stats.PermutationMethod(n_resamples=np.inf)
    for size, way in itertools.product(((4, 4), (3, 6)), ("two-sided", "greater", "less")):
        a, b = (RNG.integers(0, 5, n) for n in size)
        want = stats.mannwhitneyu(a, b, alternative=way, method=every).pvalue
        assert rank_sum(a, b, way)["p"] == pytest.approx(want, rel=1e-12)
    assert np.isnan(rank_sum([1.0, np.nan], [1.0, 2.0])["p"])
    many = RNG.integers(0, 5, (2, 30))
    assert rank_sum(*many)["p"] == stats.mannwhitneyu(*many).pvalue, "more ways to part them than can be tried"


def test_samples_without_spread_have_no_effect_size():
    assert np.isnan(effect_size([0.1 + 0.2, 0.3, 0.3], [0.7, 0.7, 0.7]))
    assert np.isnan(effect_size(shares(HITS + 54) - np.array(shares(HITS)) + 0.8, [0.5] * 3))
    assert np.isfinite(effect_size([0.3, 0.3, 0.3], [0.7, 0.7, 0.8])), "one of them has some"
    assert effect_size([1.0], [2.0, 3.0, 4.0]) == pytest.approx(-2 * (1 - 3 / 7)), "a single value has none to add"


def test_the_interval_of_alike_values_is_theirs():
    assert bootstrap([0.3, 0.3, 0.3]) == (0.3, 0.3)
    for few in ([0.3], []):
        with pytest.raises(ValueError, match="two or more numbers"):
            bootstrap(few)
