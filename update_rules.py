"""What the selected attention weights get, one row for each UPDATE_RULE: used by config, engine, loop and report.

A rule that measures has a function that draws the measured means of the circuits, and it may have one that makes
something else of the gradient decoded from them. To add a rule, write its function and its row.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Up to here inverting the cumulative distribution is faster than a multinomial draw, and a count fits 8 bits.
FEW_SHOTS = 255


def joint_shots(probabilities, eigenvalues, shots, generator):
    """Means e, float64 (groups, n), of shots from each group's distribution, as measuring all qubits draws them.

    probabilities: float64 (groups, 2^n), little-endian outcomes. eigenvalues: of -Z_i, float64 (2^n, n), +1 or -1.
    shots: per group, from 1, int or int64 (groups,). Where few of the groups have far more than the others, all take
    the time of those. generator: numpy.random.Generator.
    """
    shots = np.asarray(shots)
    most, fewest, per_group = int(shots.max()), int(shots.min()), shots.reshape(-1, 1)
    if most > FEW_SHOTS:
        return generator.multinomial(shots, probabilities.clip(max=1)) @ eigenvalues / per_group
    # Inversion: outcome k where a uniform number in [0, 1) lies between P(outcome < k) and P(outcome <= k).
    cumulative, half = probabilities.T.copy(), 1
    while half < len(cumulative):  # running sums over 2, 4, 8, ... outcomes
        pairs = cumulative.reshape(-1, 2, half, len(probabilities))
        pairs[:, 1] += pairs[:, 0, -1:]
        half *= 2
    beyond = 0  # how many shots have an outcome above k, (2^n - 1, groups); 32 shots at a time stay in the cache
    for first in range(0, most, 32):
        uniform = generator.random((min(32, most - first), 1, len(probabilities)))
        if fewest < first + len(uniform):
            uniform[np.arange(first, first + len(uniform))[:, None, None] >= shots] = -1  # no shot, so above no k
        beyond = beyond + (uniform >= cumulative[:-1]).view("uint8").sum(axis=0, dtype="uint8")
    return eigenvalues[0] + beyond.T @ (eigenvalues[1:] - eigenvalues[:-1]) / per_group


def independent_shots(probabilities, eigenvalues, shots, generator):
    """Means as those of joint_shots, whose arguments it takes, with each qubit's count drawn by itself from its own
    distribution: every qubit alone behaves as there, no two are correlated."""
    ones = ((1 + probabilities @ eigenvalues) / 2).clip(0, 1)
    per_group = np.reshape(shots, (-1, 1))
    return 2 * generator.binomial(per_group, ones) / per_group - 1


def exact_means(probabilities, eigenvalues, shots, generator):
    """Expectation values of -Z_i, float64 (groups, n): the means of joint_shots with infinitely many shots."""
    return probabilities @ eigenvalues


class Rule(NamedTuple):
    """What a rule is.

    draw: function (probabilities, eigenvalues, shots, generator) -> means, see joint_shots; None: no circuits run.
    stepped_by: what steps the selected weights: "quantum_optimizer" (QUANTUM_OPTIMIZER), "adamw", "nothing".
    colour: in every figure. isolates: what comparing `quantum` with this rule isolates.
    transform: function (measured, scale) -> what takes the measured gradient's place, float64 (groups, n); None: the
    measured gradient does. measured: s R^-1 e, float64 (groups, n). scale: s, float64 (groups, 1). Where chance decides
    which groups are measured, both come divided by that chance.
    """

    draw: Callable | None
    stepped_by: str
    colour: str
    isolates: str
    transform: Callable | None = None

    @property
    def measures(self):
        """Whether the rule sends gradients through circuits."""
        return self.draw is not None

    @property
    def draws_shots(self):
        """Whether the result depends on a number of shots."""
        return self.measures and self.draw is not exact_means


# Okabe & Ito's colour-blind safe colours; what is classical is black everywhere.
RULES = {
    "quantum": Rule(joint_shots, "quantum_optimizer", "#0072B2", ""),
    "independent": Rule(independent_shots, "quantum_optimizer", "#D55E00", "the correlations that entanglement makes"),
    "exact": Rule(exact_means, "quantum_optimizer", "#009E73", "the shot noise"),
    "gradient": Rule(None, "quantum_optimizer", "#E69F00", "the circuits"),
    "classical": Rule(None, "adamw", "#000000", "circuits and optimizer together"),
    "frozen": Rule(None, "nothing", "#CC79A7", "whether those weights matter"),
}
