"""Statistics of a study: pure functions on arrays.

Accuracies and their differences are fractions: 0.01 is one point. Differences are paired, one for each seed.
"""

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

ALPHA, POWER = 0.05, 0.8
EQUIVALENCE_MARGIN = 0.01  # differences smaller than one point do not matter, stated before any run
SMALLEST_N = 6  # pairs from which on a sign-flip test can reach p < ALPHA: with five, p is at least 2 / 2^5 = 0.0625
LARGEST_N = 1000  # seeds that plans look at


def spread(values):
    """Mean, standard deviation (n - 1 in the denominator) and Student's 95% interval of the mean.

    values: floats, shape (n,). Returns (mean, deviation, (low, high)); (mean, None, None) for n = 1.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    deviation = float(values.std(ddof=1))
    half = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * deviation / np.sqrt(len(values))
    return mean, deviation, (mean - half, mean + half)


def paired(differences, margin=EQUIVALENCE_MARGIN, resolution=0.0):
    """Tests of paired differences, a dict: n, mean, deviation, p, p_flip, p_equal; all but n and mean None for n = 1.

    p: of Student's test that the mean is 0, two-sided. p_flip: of the sign-flip test of the same, exact for
    differences that are symmetric about 0. p_equal: of two one-sided Student's tests that the mean lies outside of
    ±margin; small means equivalent. Student's tests and interval assume normal differences: with few seeds, of which
    one in five fails by far more than the others scatter, they err at several times their rate.

    differences: floats, shape (n,). resolution: the weight of one evaluated example, 1 / examples. The deviation that
    Student's tests use is no smaller than this: less scatter is what rounding leaves, and zeros prove nothing.

    Source: D. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 657 (1987), for the one-sided tests.
    """
    scatter = mean_and_scatter(differences, resolution)
    n, mean, deviation = scatter.values()
    if n < 2:
        return scatter | dict.fromkeys(("p", "p_flip", "p_equal"))
    error = deviation / np.sqrt(n)
    return scatter | {
        "p": float(2 * stats.t.sf(abs(mean) / error, n - 1)),
        "p_flip": sign_flip_p(differences, resolution),
        "p_equal": float(stats.t.sf((margin - abs(mean)) / error, n - 1)),
    }


def mean_and_scatter(differences, resolution):
    """n, mean and deviation of paired differences, see `paired`, a dict."""
    mean, deviation, _ = spread(differences)
    return {
        "n": len(differences),
        "mean": mean,
        "deviation": None if deviation is None else max(deviation, resolution, 1e-12),
    }


def student_interval(result, alpha):
    """Student's interval (low, high) of the mean at level 1 - alpha from what `paired` or `mean_and_scatter` returned;
    None for n = 1."""
    if result["n"] < 2:
        return None
    error = result["deviation"] / np.sqrt(result["n"])
    return tuple(float(end) for end in stats.t.interval(1 - alpha, result["n"] - 1, loc=result["mean"], scale=error))


def sign_flip_p(differences, resolution=0.0):
    """Two-sided p of a sign-flip permutation test, exact: the share of all 2^n flips whose sum is as large.

    differences: floats, shape (n,), n >= 2. resolution: see `paired`. Differences that are multiples of it, as far as
    the nine digits of stored accuracies tell, are counted as whole numbers. Others: above n = 13, 10,000 drawn flips.
    """
    values = np.round(differences, 12)
    counts = np.rint(values / resolution).astype(int) if resolution else values
    if resolution and np.allclose(values / resolution, counts, rtol=0, atol=0.01):
        chances = np.ones(1)  # of the sums -total, ..., total of the flips so far
        for count in np.abs(counts):
            chances = (np.pad(chances, (0, 2 * count)) + np.pad(chances, (2 * count, 0))) / 2
        sums = np.arange(len(chances)) - len(chances) // 2
        return float(chances[np.abs(sums) >= abs(counts.sum())].sum())
    flips = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", vectorized=True, n_resamples=10_000, rng=0
    )
    return float(flips.pvalue)


def adjusted(p_values, method="holm"):
    """The p-values of one family, corrected, a list. method: as statsmodels' multipletests names it."""
    return [float(p) for p in multipletests(p_values, method=method)[1]] if p_values else []


def smallest_effect(deviation, n, alpha=ALPHA):
    """The smallest true mean that Student's two-sided test at alpha finds with 80% power, given the deviation; n >= 2.

    The power of the side on which the effect lies: the other adds less than alpha / 2, and statsmodels' two-sided
    power is NaN for some small n.
    """
    plan = {"nobs": n, "alpha": alpha / 2, "power": POWER, "alternative": "larger"}
    return float(deviation * TTestPower().solve_power(effect_size=None, **plan))


def seeds_to_decide(mean, deviation, margin=EQUIVALENCE_MARGIN, alpha=ALPHA):
    """Seeds, 6 at least, with which the tests decide with 80% power if mean and deviation are the true ones.

    Either Student's two-sided test finds the difference, or, where it lies within the margin, both one-sided tests do;
    these get a power of 90% each for 80% together. That is enough, and more than enough where either may well decide.
    None if that takes more than 1000 seeds.
    """
    sizes = np.arange(SMALLEST_N, LARGEST_N + 1)

    def found(effect, level, power):
        return TTestPower().power(effect / deviation, sizes, level, alternative="larger") >= power

    decided = found(abs(mean), alpha / 2, POWER) | found(max(margin - abs(mean), 0), alpha, (1 + POWER) / 2)
    return int(sizes[decided.argmax()]) if decided.any() else None


def discordant(margins, base_margins):
    """(gained, lost, p): predictions that are correct in the first alone, in the second alone, exact McNemar's p.

    margins: floats, shape (examples,), above 0 where a prediction is correct; of the same examples in both.
    Source: Q. McNemar, Psychometrika 12, 153 (1947).
    """
    mine, theirs = np.asarray(margins) > 0, np.asarray(base_margins) > 0
    gained, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    return gained, lost, float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def smallest_discordant_effect(gained, lost, examples, alpha=ALPHA):
    """The smallest difference of two accuracies that exact McNemar's test at alpha finds with 80% power, where as many
    predictions differ as differed here; None where these are too few to find any."""
    differing = gained + lost
    least = int(stats.binom.isf(alpha / 2, differing, 0.5)) + 1  # gained, to reject
    if least > differing:
        return None
    chance = stats.beta.ppf(POWER, least, differing - least + 1)  # with which so many are gained with 80%
    return float((2 * chance - 1) * differing / examples)


def recovered_fraction(values, frozen, classical, resolution=0.0):
    """(fraction, interval) of the headroom that a rule recovers, (rule - frozen) / (classical - frozen), of the means.

    values, frozen, classical: accuracies, floats, shape (n,), paired by seed. resolution: see `paired`, the least
    deviation of gain and of headroom. The 95% interval is Fieller's for paired means; None where n = 1
    or the headroom's own interval reaches 0: it has no bounds then.

    Source: E. Fieller, Journal of the Royal Statistical Society B 16, 175 (1954).
    """
    gain, headroom = np.subtract(values, frozen), np.subtract(classical, frozen)
    n, top, bottom = len(gain), gain.mean(), headroom.mean()
    if n < 2:
        return (float(top / bottom) if bottom else None), None
    t_squared = stats.t.ppf(1 - ALPHA / 2, n - 1) ** 2
    (top_variance, covariance), (_, variance) = np.cov(gain, headroom) / n
    top_variance, variance = np.maximum((top_variance, variance), resolution**2 / n)
    a = bottom**2 - t_squared * variance
    if a <= 1e-12:
        return (float(top / bottom) if bottom else None), None
    b, c = top * bottom - t_squared * covariance, top**2 - t_squared * top_variance
    root = np.sqrt(max(b**2 - a * c, 0.0))
    return float(top / bottom), (float((b - root) / a), float((b + root) / a))
