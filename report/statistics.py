"""Statistics of a study: pure functions on arrays."""

import numpy as np
from scipy import stats


def spread(values):
    """Mean, standard deviation (n - 1 in the denominator) and Student's 95% interval of the mean.

    values: floats, shape (n,). Returns (mean, deviation, (low, high)); (mean, None, None) for n = 1.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    deviation = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / np.sqrt(len(values))
    return mean, deviation, (mean - half, mean + half)


def paired(differences):
    """Mean of paired differences, its 95% bootstrap interval and the two-sided p of a sign-flip permutation test.

    differences: floats, shape (n,). Returns (mean, (low, high), p); (mean, None, None) for n = 1. The interval is the
    percentile bootstrap of the mean, 10,000 resamples with a fixed seed. The test enumerates all 2^n sign flips up to
    n = 13 and samples 10,000 of them beyond.
    """
    differences = np.asarray(differences, dtype=float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None, None
    if np.ptp(differences) == 0:
        interval = (mean, mean)
    else:
        drawn = stats.bootstrap((differences,), np.mean, n_resamples=10_000, method="percentile", rng=0)
        interval = (float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))
    flips = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=10_000, alternative="two-sided", rng=0
    )
    return mean, interval, float(flips.pvalue)


def holm(p_values):
    """Holm's step-down adjustment of a family of p-values, a list; None, for a test not made, stays None.

    Source: S. Holm, Scandinavian Journal of Statistics 6, 65 (1979).
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted, highest = [None] * len(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted


def half_width(accuracy, examples):
    """Half of the 95% interval (normal approximation of the binomial) of an accuracy measured on that many examples."""
    return 1.96 * np.sqrt(accuracy * (1 - accuracy) / examples)
