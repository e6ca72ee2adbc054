"""Where shots are spent: how many each group gets, and which groups are measured where not all can be.

A fixed total of shots makes the least noise with shots in proportion to the standard deviation of what one shot tells
(Neyman, J. R. Stat. Soc. 97, 558, 1934). A group whose share is below one shot is measured with that chance, by one
shot, and its estimate divided by the chance, so that the mean of every estimate stays what it was (Horvitz & Thompson,
JASA 47, 663, 1952; for shots, Rosalin: Arrasmith et al., 2004.06252).
"""

import math
from typing import NamedTuple

import numpy as np


class Allocation(NamedTuple):
    """The groups that get shots, of those offered, in order of their number of shots.

    groups: their places, int64 (chosen,).  shots: int64 (chosen,), from 1.  factors: float64 (chosen,), of each
    estimate, 1 / chance of being chosen, which keeps its mean.  equal_noise, optimal_noise: variance, summed over
    the groups, times the shots of each on average, spread equally and best; in the units of the gradient squared. The
    second is the limit of many shots: whole numbers, and groups without a shot, leave up to a tenth more.
    """

    groups: np.ndarray
    shots: np.ndarray
    factors: np.ndarray
    equal_noise: float
    optimal_noise: float


def allocate(values, scale, inverse, shots, seed):
    """The Allocation of `shots` per group on average, any positive number, to groups of a gradient.

    values: float64 (groups, n). scale: s, float64 (groups, 1). inverse: R^-1, float64 (n, n). seed: tuple of ints.
    Groups of scale 0 get none: their estimate is 0 anyway. The total is that of all groups, within less than one shot.
    """
    variance, second_moment = one_shot_moments(values, scale, inverse)
    expected = optimal_shots(variance, second_moment, shots * len(values))
    # A stream of its own: the shots themselves are drawn from (*seed, number of the stream).
    drawn = draw_whole(expected, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,))))
    chosen = np.flatnonzero(drawn)
    chosen = chosen[np.argsort(drawn[chosen].clip(max=2**16 - 1).astype(np.uint16), kind="stable")]  # 16 bits: faster
    factors = 1 / np.minimum(expected[chosen], 1)
    largest = float(scale.max(initial=0))  # noises of several weights are added up: in their own units
    unit = largest * largest
    equal, optimal = unit * variance.sum(), unit * np.sqrt(variance).sum() ** 2 / max(len(variance), 1)
    return Allocation(chosen, drawn[chosen], factors, float(equal), float(optimal))


def one_shot_moments(values, scale, inverse):
    """(v, m): variance and second moment of a group's estimate s R^-1 e from one shot, summed over its weights.

    Both float64 (groups,), in units of the largest s squared; arguments as in `allocate`. Each e_i is +1 or -1, so
    m = s^2 sum_ij (R^-1)_ij^2 and v = m - |g|^2, which is s^2 sum_i (1 / c_i^2 - x_i^2) for R = diag(c): exact for
    `graph`, `product` and `literal`. For a circuit that is biased, or whose R is not diagonal, it is an approximation,
    which costs a little of the gain and no bias: any positive numbers would do.
    """
    largest = scale.max(initial=0) or 1.0
    second_moment = (scale[:, 0] / largest) ** 2 * np.sum(inverse**2)
    scaled = values / largest
    variance = second_moment - np.einsum("gi,gi->g", scaled, scaled)
    variance[variance < 1e-9 * second_moment] = 0  # what rounding has left: the outcome is certain
    return variance, second_moment


def optimal_shots(variance, second_moment, total):
    """Shots for each group that minimise the noise of all of them together, float64 (groups,), of that sum.

    S shots leave v / S where S >= 1, and where S < 1 is the chance of one shot, m / S - |g|^2. So the best S is
    factor * sqrt(v) from 1 on, factor * sqrt(m) up to 1, and 1 between; the factor is what makes the total right.
    """
    most, least = np.sqrt(second_moment), np.sqrt(np.maximum(variance, 1e-12 * second_moment))
    if not most.any():
        return np.zeros_like(most)
    low, high, factor = 0.0, math.inf, total / most.sum()
    for _ in range(50):  # Newton's steps for the logarithms, in a bracket; 0.1% less is as good as the best
        shots = np.maximum(factor * least, np.minimum(factor * most, 1))
        spent = shots.sum()
        if 0.999 * total <= spent <= (1 + 1e-12) * total:  # not more: what is certain to be measured has to stay so
            break
        low, high = (factor, high) if spent < total else (low, factor)
        growing = shots[shots != 1].sum() / spent  # d log(spent) / d log(factor)
        factor *= (total / spent) ** (1 / max(growing, 0.1))
        if not low < factor < high:
            factor = math.sqrt(low * high)
    return shots * (total / spent)


def draw_whole(expected, generator):
    """Whole numbers next to the expected ones, below or above, whose means they are: int64, shape of expected.

    Systematic: one uniform number shifts the marks that the running sum passes, so that the sum is fixed, too, to less
    than one (Madow, Ann. Math. Stat. 20, 333, 1949).
    """
    return np.diff(np.floor(np.cumsum(expected) + generator.random()), prepend=0).astype(np.int64)


def inclusion_chances(sizes, most):
    """Chance of each group, float64, in proportion to its size and at most 1, of being among `most` of them.

    sizes: float64 (groups,), from 0. The chances add up to `most`, or to the number of sizes that are not 0.
    """
    chances, certain = np.zeros(len(sizes)), np.zeros(len(sizes), dtype=bool)
    if np.count_nonzero(sizes) <= most:
        return (sizes > 0).astype(float)
    while True:  # what would be more than certain is certain, and leaves the others fewer places
        left = ~certain
        chances[left] = (most - certain.sum()) * sizes[left] / sizes[left].sum()
        if not (chances > 1).any():
            return chances
        certain |= chances >= 1
        chances[certain] = 1
