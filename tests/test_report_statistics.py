"""Statistics against scipy, statsmodels, enumeration, textbook numbers, and their error rates by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from report import statistics
from report.statistics import (
    adjusted,
    discordant,
    paired,
    recovered_fraction,
    seeds_to_decide,
    sign_flip_p,
    smallest_discordant_effect,
    smallest_effect,
    spread,
    student_interval,
)

DIFFERENCES = [0.02, 0.01, 0.03, -0.005, 0.015]


def within(count, repetitions, rate, deviations=4):
    """Whether a count of that many repetitions fits a rate, up to so many binomial standard deviations."""
    return abs(count / repetitions - rate) <= deviations * np.sqrt(rate * (1 - rate) / repetitions)


def test_student_interval_against_scipy_and_the_limit_of_one():
    values = [0.7, 0.72, 0.69, 0.75]
    mean, deviation, (low, high) = spread(values)
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    t = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((t.low, t.high))
    assert spread([0.5]) == (0.5, None, None)


def test_paired_differences_against_scipy_and_statsmodels():
    result = paired(DIFFERENCES, margin=0.02)
    t = stats.ttest_1samp(DIFFERENCES, 0)
    assert result["p"] == pytest.approx(t.pvalue) and result["n"] == 5
    assert student_interval(result, 0.01) == pytest.approx(tuple(t.confidence_interval(0.99)))
    assert result["p_equal"] == pytest.approx(DescrStatsW(DIFFERENCES).ttost_mean(-0.02, 0.02)[0])
    mirrored = paired(np.negative(DIFFERENCES), margin=0.02)
    assert (mirrored["p"], mirrored["p_equal"]) == pytest.approx((result["p"], result["p_equal"]))
    single = paired([0.1])
    assert (single["n"], single["mean"], single["p"], student_interval(single, 0.05)) == (1, 0.1, None, None)


def test_scatter_below_the_weight_of_one_example_proves_nothing():
    assert paired([0.0] * 3, resolution=1 / 50)["p_equal"] > 0.1  # one of 50 sentences is twice the margin
    assert paired([0.0] * 3, resolution=1 / 872)["p_equal"] < 0.01
    assert paired([0.3 - 0.2, 0.2 - 0.1])["p"] < 1e-9 and paired([0.0, 0.0])["p"] == 1
    assert paired(DIFFERENCES, resolution=0.001) == paired(DIFFERENCES)


def test_sign_flip_p_is_the_count_of_all_flips():
    flips = np.array(list(itertools.product([1, -1], repeat=5))) * DIFFERENCES
    one_sided = np.mean(flips.mean(axis=1) >= np.mean(DIFFERENCES) - 1e-12)
    assert sign_flip_p(DIFFERENCES) == pytest.approx(2 * one_sided) and sign_flip_p([0.0, 0.0]) == 1
    assert sign_flip_p([0.1, 0.11, 0.12, 0.1, 0.09]) == 2 / 2**5 > 0.05 >= sign_flip_p([0.1] * statistics.SMALLEST_N)
    counts = np.array([8, -1, 1, 9, 4, -1, 10, 8])
    flips = np.array(list(itertools.product([1, -1], repeat=8))) @ counts
    stored = np.round((200 + counts) / 300, 9) - np.round(200 / 300, 9)  # as accuracies of 300 examples are
    assert sign_flip_p(stored, 1 / 300) == np.mean(abs(flips) >= counts.sum()) > statistics.ALPHA
    assert sign_flip_p(DIFFERENCES * 4) == sign_flip_p(DIFFERENCES * 4)  # drawn with a seed of its own
    assert sign_flip_p(DIFFERENCES * 4, 0.005) == pytest.approx(sign_flip_p(DIFFERENCES * 4), abs=0.003)  # and all
    assert sign_flip_p([0.01] * 40, 0.01) == 2 / 2**40


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_the_truth_at_their_rate(n):
    draw, repetitions = np.random.default_rng(n), 3000
    samples = draw.normal(0.3, 1, (repetitions, n))
    plain = [spread(sample)[2] for sample in samples]
    assert within(sum(low <= 0.3 <= high for low, high in plain), repetitions, 0.95)
    wide = [student_interval({"n": n, "mean": s.mean(), "deviation": s.std(ddof=1)}, 0.05 / 8) for s in samples]
    assert within(sum(low <= 0.3 <= high for low, high in wide), repetitions, 1 - 0.05 / 8)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_fiellers_interval_covers_the_true_fraction_at_its_rate(n):
    draw, repetitions = np.random.default_rng(n), 2000
    shared, own = draw.normal(0, 0.02, (repetitions, 1, n)), draw.normal(0, 0.02, (repetitions, 3, n))
    rule, frozen, classical = np.moveaxis(shared + own + np.array([0.66, 0.5, 0.7])[:, None], 1, 0)
    found = [recovered_fraction(*sample)[1] for sample in zip(rule, frozen, classical, strict=True)]
    bounded = [interval for interval in found if interval]
    # Where the set has no bounds it is everything, or nearly: those samples count as covered.
    covered = repetitions - len(bounded) + sum(low <= 0.8 <= high for low, high in bounded)
    assert len(bounded) > 0.9 * repetitions and within(covered, repetitions, 0.95)


def test_fiellers_ends_are_where_students_test_just_rejects():
    frozen, classical = np.array([0.5, 0.52, 0.49, 0.51]), np.array([0.7, 0.69, 0.71, 0.73])
    rule = np.array([0.66, 0.62, 0.67, 0.7])
    fraction, ends = recovered_fraction(rule, frozen, classical)
    assert (
        fraction == pytest.approx((rule - frozen).mean() / (classical - frozen).mean()) and ends[0] < fraction < ends[1]
    )
    for end in ends:
        assert stats.ttest_1samp(rule - frozen - end * (classical - frozen), 0).pvalue == pytest.approx(0.05)
    assert (
        recovered_fraction(frozen, frozen, classical)[0] == 0
        and recovered_fraction(classical, frozen, classical)[0] == 1
    )
    assert recovered_fraction([0.6, 0.7], [0.5, 0.7], [0.7, 0.6])[1] is None  # a headroom that may be 0
    assert recovered_fraction([0.6], [0.5], [0.7]) == (pytest.approx(0.5), None)
    assert recovered_fraction([0.6, 0.6], [0.5, 0.5], [0.5, 0.5]) == (None, None)


def test_two_one_sided_tests_err_at_their_rate_on_the_margin(monkeypatch):
    monkeypatch.setattr(statistics, "sign_flip_p", lambda *_: 1.0)  # slow, and not what is tested
    draw, repetitions = np.random.default_rng(0), 3000
    for n in (3, 10):
        samples = draw.normal(0.01, 0.002, (repetitions, n))
        assert within(sum(paired(sample)["p_equal"] < 0.05 for sample in samples), repetitions, 0.05)


def test_mcnemars_test_errs_at_most_at_its_rate():
    for differing in range(1, 30):
        outcomes = [
            ([1] * gained + [-1] * (differing - gained), [-1] * gained + [1] * (differing - gained))
            for gained in range(differing + 1)
        ]
        chances = stats.binom.pmf(np.arange(differing + 1), differing, 0.5)
        rejected = [discordant(*outcome)[2] < 0.05 for outcome in outcomes]
        assert chances[rejected].sum() <= 0.05
    assert rejected[0] and rejected[-1]


def test_discordant_predictions_are_counted():
    assert discordant([1, 2, -1, 3, 0], [-1, -2, 1, 3, -1]) == (2, 1, 1.0)
    assert discordant([1.0], [2.0]) == (0, 0, 1.0)
    gained, lost, p = discordant([1] * 8 + [5], [-1] * 8 + [5])
    assert (gained, lost) == (8, 0) and p == pytest.approx(2 / 2**8)


@pytest.mark.parametrize("differing", [6, 7, 10, 60, 200])
def test_the_effect_of_discordant_predictions_has_80_percent_power(differing):
    examples = 872
    effect = smallest_discordant_effect(differing, 0, examples)
    chance = 0.5 + effect * examples / differing / 2
    counts = np.arange(differing + 1)
    rejected = np.array([stats.binomtest(int(count), differing).pvalue < 0.05 for count in counts])
    assert stats.binom.pmf(counts, differing, chance)[rejected].sum() == pytest.approx(0.8, abs=1e-3)
    assert effect < differing / examples


def test_few_discordant_predictions_can_show_no_effect():
    assert [smallest_discordant_effect(differing, 0, 50) for differing in range(6)] == [None] * 6
    assert smallest_discordant_effect(6, 0, 50) and smallest_discordant_effect(6, 0, 50, alpha=0.01) is None


@pytest.mark.parametrize("n", [2, 3, 5, 10, 20])
def test_the_smallest_effect_is_found_in_80_percent_of_studies(n):
    draw, repetitions = np.random.default_rng(n), 20_000
    for alpha in (0.05, 0.05 / 11):
        effect = smallest_effect(2.0, n, alpha)
        p = stats.ttest_1samp(draw.normal(effect, 2, (repetitions, n)), 0, axis=1).pvalue
        assert within((p < alpha).sum(), repetitions, 0.8)


def test_the_seeds_that_decide_are_the_textbooks_and_are_enough():
    assert seeds_to_decide(0.5, 1, margin=0.1) == 34  # Cohen's d of 0.5, paired
    assert TTestPower().power(0.5, 34, 0.05) >= 0.8 > TTestPower().power(0.5, 33, 0.05)
    n = seeds_to_decide(0, 0.01, margin=0.01)
    samples = np.random.default_rng(0).normal(0, 0.01, (20_000, n))
    errors = samples.std(axis=1, ddof=1) / np.sqrt(n)
    shown = stats.t.sf((0.01 - np.abs(samples.mean(axis=1))) / errors, n - 1) < 0.05
    assert 0.8 <= shown.mean() < 0.9
    assert seeds_to_decide(0.009, 0.01) == seeds_to_decide(0.009, 0.01, margin=1e-9)  # a difference is easier to find
    assert seeds_to_decide(0.005, 1) is None and seeds_to_decide(0.5, 1, 0.1, 0.05 / 10) > 34


def test_correction_is_the_textbook_procedure():
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted([0.01, 0.5], "bonferroni") == pytest.approx([0.02, 1.0]) and adjusted([]) == []
