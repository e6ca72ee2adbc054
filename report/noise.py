"""The noise of the measurement in numbers: pure functions on groups of a gradient. docs/NOISE.md derives them."""

import numpy as np


def expected_cosine(relative):
    """Cosine of a gradient of many groups with its unbiased measurement, whose relative noise is given."""
    return (1 + relative) ** -0.5


def allocation_gain(variances):
    """Noise at equal shots over noise at S_k ~ sqrt(v_k), the same total. variances: v_k at one shot, (groups,)."""
    return float(np.mean(variances) / np.mean(np.sqrt(variances)) ** 2)


def inverse_batch_noise(products):
    """(1 / b, its standard error): |G|^2 over the variance of a minibatch's gradient.

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
