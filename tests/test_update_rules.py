"""How the rules draw their shots: the distribution, its correlations, few shots and many."""

import math

import numpy as np
import pytest
import torch
from conftest import make_backend, update_of
from scipy import stats

import quantum_circuits as qc
import update_rules
from aer_engine import STREAM_GROUPS, AerBackend

PHI = math.pi / 4
MEASURING = [name for name, rule in update_rules.RULES.items() if rule.measures]


def assert_counts_follow(counts, law):
    """Chi-square test, refused at one in a million; what is expected less than ten times is one class."""
    rare = law * counts.sum() < 10
    seen, expected = ([*values[~rare], values[rare].sum()] for values in (counts, law * counts.sum()))
    if expected[-1] < 10:
        assert seen[-1] < 60
        seen, expected = seen[:-1], expected[:-1]
    statistic = sum((a - b) ** 2 / b for a, b in zip(seen, expected, strict=True))
    assert len(seen) == 1 or stats.chi2.sf(statistic, len(seen) - 1) > 1e-6


@pytest.mark.parametrize("shots", [1, 2, 31, update_rules.FEW_SHOTS])
def test_few_shots_are_the_outcomes_that_the_same_uniforms_pick(shots):
    """The slow reference: every shot by itself, the outcome whose share of [0, 1) holds the uniform number."""
    groups, z = 200, qc.minus_z(4)
    probabilities = np.random.default_rng(0).dirichlet(np.full(16, 0.3), groups)
    probabilities[0], probabilities[1] = np.eye(16)[0], np.eye(16)[15]  # certain outcomes
    fast = update_rules.joint_shots(probabilities, z, shots, np.random.default_rng(1))
    uniforms = np.random.default_rng(1).random((shots, groups))
    expected = [
        z[[np.searchsorted(np.cumsum(p)[:-1], u, side="right") for u in column]].mean(axis=0)
        for p, column in zip(probabilities, uniforms.T, strict=True)
    ]
    np.testing.assert_allclose(fast, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(fast[:2], [[-1.0] * 4, [1.0] * 4])


@pytest.mark.parametrize("shots", [1, 3, 10, 29, 30, 31, 255, 256])
@pytest.mark.parametrize("name", ["graph", "product"])
def test_draws_follow_the_distribution_at_any_number_of_shots(name, shots):
    """Counts of each qubit against the binomial law, outcomes of one shot against theirs, covariances of the means."""
    groups, x = 40_960, np.array([0.6, -0.3, 0.9, -0.9, 0.1])
    backend = make_backend(name)
    exact = qc.outcome_probabilities(backend.ansatz, x)
    means = np.concatenate([backend.measure(np.tile(x, (2048, 1)), shots, (i,))[0] for i in range(groups // 2048)])
    ones = np.rint((1 + means) * shots / 2).astype(int)
    np.testing.assert_allclose(2 * ones / shots - 1, means, rtol=0, atol=1e-12)
    for qubit, share in enumerate((1 + exact @ qc.minus_z(5)) / 2):
        law = stats.binom.pmf(np.arange(shots + 1), shots, share)
        assert_counts_follow(np.bincount(ones[:, qubit], minlength=shots + 1), law)
    if shots == 1:
        assert_counts_follow(np.bincount(ones @ 2 ** np.arange(5), minlength=32), exact)
    sigma = qc.noise_covariance(exact) / shots
    error = np.sqrt((np.outer(np.diag(sigma), np.diag(sigma)) + sigma**2) / groups)
    assert np.all(np.abs(np.cov(means.T) - sigma) <= 5 * error + 1e-12)


def test_independent_keeps_the_means_and_loses_the_correlations():
    shots, groups = 20_000, STREAM_GROUPS
    ansatz = qc.build_ansatz("graph", 5, PHI)
    x = np.full((groups, 5), 0.6)
    sigma = qc.noise_covariance(qc.outcome_probabilities(ansatz, np.full(5, 0.6)))
    sampled = {}
    for rule in ("quantum", "independent"):
        backend = AerBackend(ansatz, rule)
        e = np.concatenate([backend.measure(x, shots, (i,))[0] for i in range(40)])
        np.testing.assert_allclose(e.mean(axis=0), 0.3, atol=5 * math.sqrt((1 - 0.3**2) / shots / len(e)))
        sampled[rule] = np.cov(e.T) * shots
    variance = np.diag(sigma)
    error = np.sqrt((np.outer(variance, variance) + sigma**2) / (40 * groups))
    assert np.all(np.abs(sampled["quantum"] - sigma) <= 5 * error)
    assert np.all(np.abs(sampled["independent"] - np.diag(variance)) <= 5 * error)
    assert np.abs(sigma - np.diag(variance)).max() > 10 * error.max()  # so the two are told apart


@pytest.mark.parametrize("rule", ["quantum", "independent"])
def test_measured_rules_tend_to_exact_as_shots_grow(rule):
    gradient = torch.randn(3000, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    ansatz = qc.build_ansatz("graph", 5, PHI)
    exact, cost = update_of(gradient, AerBackend(ansatz, "exact"), learning_rate=1.0)
    assert torch.allclose(exact, gradient, rtol=0, atol=1e-12) and cost.shots == 0 and cost.circuits == 600
    errors = []
    for shots in (100, 10_000, 1_000_000):
        update, _ = update_of(gradient, AerBackend(ansatz, rule), learning_rate=1.0, shots=shots)
        errors.append((update - exact).norm().item() * math.sqrt(shots))
    assert max(errors) / min(errors) < 1.2  # the error falls with the square root of the shots
