"""How the rules draw their shots: the distribution, its correlations, few shots and many."""

import math

import numpy as np
import pytest
import torch
from conftest import end_weights, make_backend, only_run, run_training, update_of
from safetensors.torch import load_file
from scipy import stats

import config
import quantum_circuits as qc
import update_rules
from aer_engine import STREAM_GROUPS, AerBackend

PHI = math.pi / 4


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


def test_groups_of_different_shots_take_the_first_of_their_uniforms():
    shots, z = np.repeat([33, 64, 65, 200, 255], 12), qc.minus_z(4)
    probabilities = np.random.default_rng(0).dirichlet(np.full(16, 0.3), 60)
    fast = update_rules.joint_shots(probabilities, z, shots, np.random.default_rng(1))
    uniforms = np.random.default_rng(1).random((255, 60))
    expected = [
        z[np.searchsorted(np.cumsum(p)[:-1], u[:s], side="right")].mean(axis=0)
        for p, u, s in zip(probabilities, uniforms.T, shots, strict=True)
    ]
    np.testing.assert_allclose(fast, expected, rtol=0, atol=1e-12)


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
    outer = np.outer(np.diag(sigma), np.diag(sigma))
    squares = (qc.minus_z(5) - exact @ qc.minus_z(5)) ** 2
    fourth = np.einsum("k,ki,kj->ij", exact, squares, squares) - shots**2 * (outer + 2 * sigma**2)  # cumulant, one shot
    error = np.sqrt((outer + sigma**2 + fourth / shots**3) / groups)
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


# --- A rule of one's own


def sign(measured, scale):
    """The sign of the measured gradient, times its group's max |g|."""
    return scale * np.sign(measured)


def add_sign(monkeypatch):
    """What a user adds: one row (config has read the table when it was imported) and one function."""
    row = update_rules.Rule(update_rules.joint_shots, "quantum_optimizer", "#56B4E9", "the sizes within a group", sign)
    monkeypatch.setitem(update_rules.RULES, "sign", row)
    monkeypatch.setitem(config._LIMITS, "UPDATE_RULE", ("one of", *update_rules.RULES))


def test_a_rule_may_work_on_the_measured_gradient(monkeypatch, tiny_flags, tiny_model, tmp_path):
    """One step: the weights of a group move by the same size, learning rate * max |g|, up or down."""
    add_sign(monkeypatch)
    flags = ["--update_rule", "sign", "--train_size", "4", "--quantum_learning_rate", "0.5", "--shots", "1001"]
    assert run_training([*tiny_flags, *flags]) == 0
    start, end = load_file(tiny_model / "model.safetensors"), end_weights(only_run(tmp_path / "results"))
    for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
        key = f"transformer.layer.0.attention.{name}.weight"
        moved = (end[f"distilbert.{key}"] - start[key]).flatten()[:255].reshape(-1, 5)
        sizes = moved.abs().max(dim=1, keepdim=True).values
        assert (sizes > 0).all() and torch.allclose(moved.abs(), sizes.expand(-1, 5), rtol=1e-3, atol=1e-7)
        assert 50 < (moved > 0).sum() < 205


def test_a_rule_of_ones_own_is_reported_like_the_others(monkeypatch):
    add_sign(monkeypatch)
    settings = config.load(["--update_rule", "sign"])
    assert {"shots", "circuit"} <= config.settings_that_affect_result(settings._asdict()).keys()
    assert config.load(["--update_rule", "sign", "--backend", "generic:5"]).backend == "generic:5"


@pytest.mark.parametrize("allocation", ["equal", "optimal"])
def test_the_sign_is_that_of_the_measured_gradient(allocation):
    gradient = torch.randn(3000, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    arguments = {"learning_rate": 1.0, "shots": 0.5 if allocation == "optimal" else 3, "seed": (1, 2, 3)}
    arguments |= {"allocation": allocation}
    measured, _ = qc.quantum_parameter_update(gradient, make_backend(), **arguments)
    signs, _ = qc.quantum_parameter_update(gradient, make_backend(), transform=sign, **arguments)
    assert torch.equal(signs.sign(), measured.sign())


def test_one_shot_of_product_is_its_own_sign():
    """R^-1 e is +1 or -1; the factors of groups that are measured by chance reach the rule's function, too."""
    gradient = torch.randn(3000, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for shots, allocation in ((1, "equal"), (0.2, "optimal")):
        arguments = {"learning_rate": 1.0, "shots": shots, "seed": (1, 2, 3), "allocation": allocation}
        measured, signs = (
            qc.quantum_parameter_update(gradient, make_backend("product"), transform=transform, **arguments)[0]
            for transform in (None, sign)
        )
        assert torch.allclose(signs, measured, rtol=1e-12, atol=0)
