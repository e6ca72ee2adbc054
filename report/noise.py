"""The noise of the measurement in numbers: pure functions on groups of a gradient. docs/NOISE.md derives them.

groups: float64 (groups, n). response: c with -<Z_i> = c_i x_i, a float or float64 (n,). "Relative" is over |g|^2.
"""

import numpy as np
from scipy import integrate, stats


def one_shot_variance(groups, response, scale=None):
    """Variance of every group's measured gradient at one shot, summed over its weights, float64 (groups,).

    sum_i s^2 (1 / c_i^2 - x_i^2); at S shots it is S times smaller. scale: s of all groups; None is each group's own.
    """
    s = np.abs(groups).max(axis=1, keepdims=True) if scale is None else scale
    return (s**2 / np.asarray(response) ** 2 - groups**2).sum(axis=1)


def relative_noise(groups, response, shots, scale=None):
    """Expected |measured - g|^2 / |g|^2 of a whole gradient."""
    return float(one_shot_variance(groups, response, scale).sum() / (groups**2).sum() / shots)


def gaussian_relative_noise(num_qubits, response):
    """The same at one shot for many groups of independent Gaussian entries: E[s^2] / c^2 - 1. response: float."""
    largest = integrate.quad(lambda m: 2 * m * (1 - (2 * stats.norm.cdf(m) - 1) ** num_qubits), 0, np.inf)[0]
    return largest / response**2 - 1


def expected_cosine(relative):
    """Cosine of a gradient of many groups with its unbiased measurement, whose relative noise is given."""
    return (1 + relative) ** -0.5


def parity_shots(one_shot, batch_noise):
    """Shots at which the shot noise is as large as the minibatch's. one_shot: relative noise of one shot.

    batch_noise: tr(covariance of an example's gradient) / batch size / |G|^2, the gradient noise scale over the batch.
    """
    return one_shot * (1 + 1 / batch_noise)


def allocation_gain(variances):
    """Noise at equal shots over noise at S_k ~ sqrt(v_k), the same total. variances: v_k at one shot, (groups,)."""
    return float(np.mean(variances) / np.mean(np.sqrt(variances)) ** 2)


def inverse_batch_noise(products):
    """(1 / b, its standard error): |G|^2 over the variance of a minibatch's gradient; b: batch_noise of parity_shots.

    products: inner products of the gradients of independent minibatches, float64 (batches, batches), at least 3.
    Both parts are unbiased: the variance from the scatter of the batches, |G|^2 = |mean|^2 - variance / batches. The
    error is the jackknife's over batches. 1 / b rather than b, because |G|^2 may be as small as its own error.

    Source: McCandlish et al., 1812.06162, appendix A.1 (B_simple = b times the batch size).
    """

    def ratio(gram):
        number = len(gram)
        variance = (np.trace(gram) - gram.sum() / number) / (number - 1)
        return (gram.sum() / number**2 - variance / number) / variance

    number = len(products)
    left_out = [ratio(np.delete(np.delete(products, m, axis=0), m, axis=1)) for m in range(number)]
    error = np.sqrt((number - 1) / number * np.square(left_out - np.mean(left_out)).sum())
    return float(ratio(products)), float(error)
