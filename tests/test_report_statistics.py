"""Statistics against scipy, enumeration and textbook numbers."""

import itertools

import numpy as np
import pytest
from scipy import stats

from report.statistics import half_width, holm, paired, spread


def test_student_interval_against_scipy_and_the_limit_of_one():
    values = [0.7, 0.72, 0.69, 0.75]
    mean, deviation, (low, high) = spread(values)
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    t = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((t.low, t.high))
    assert spread([0.5]) == (0.5, None, None)


def test_sign_flip_p_is_the_count_of_all_flips():
    differences = np.array([0.02, 0.01, 0.03, -0.005, 0.015])
    flips = np.array(list(itertools.product([1, -1], repeat=5))) * differences
    one_sided = np.mean(flips.mean(axis=1) >= differences.mean() - 1e-12)
    mean, (low, high), p = paired(differences)
    assert mean == pytest.approx(differences.mean()) and low < mean < high
    assert p == pytest.approx(2 * one_sided)
    assert paired(differences) == (mean, (low, high), p)  # the bootstrap has a seed of its own
    assert paired([0.1]) == (0.1, None, None)
    assert paired([0.0, 0.0, 0.0]) == (0.0, (0.0, 0.0), 1.0)


def test_bootstrap_interval_covers_the_truth_at_its_rate():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        _, (low, high), _ = paired(draw.normal(0.3, 1, 20))
        covered += low <= 0.3 <= high
    assert 0.85 <= covered / 150 <= 0.99  # percentile intervals of 20 values cover a little less than 95%


def test_holm_is_the_textbook_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.5, 0.9]) == [None, 1.0, 1.0] and holm([]) == []


def test_half_width_of_an_accuracy_is_1_96_binomial_standard_errors():
    assert half_width(0.7, 100) == pytest.approx(1.96 * np.sqrt(0.7 * 0.3 / 100))
    assert half_width(0.7, 400) == pytest.approx(half_width(0.7, 100) / 2) and half_width(1.0, 50) == 0
