"""The formulas of docs/NOISE.md against exact states, the real update and numerical optimisation."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, make_backend, random_groups, update_of
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import Statevector
from scipy import integrate, optimize, stats

import quantum_circuits as qc
from report import noise

PHI = math.pi / 4
RESPONSE = {"graph": 0.5, "product": 1.0}
DOCUMENT = (ROOT / "docs" / "NOISE.md").read_text(encoding="utf-8")


def gaussian_groups(rows, columns=5, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def measured(groups, name, shots, seed=0, **options):
    """The measured gradient of groups, float64 (groups, n), by the real update."""
    backend = make_backend(name, groups.shape[1])
    update, _ = update_of(
        torch.from_numpy(groups), backend, learning_rate=1.0, shots=shots, seed=(15, seed, 0), **options
    )
    return update.numpy()


def decoded_covariance(ansatz, x):
    """Exact covariance of R^-1 e at one shot."""
    return ansatz.inverse @ qc.noise_covariance(qc.outcome_probabilities(ansatz, x)) @ ansatz.inverse.T


def one_shot_variance(groups, response, scale=None):
    """sum_i s^2 (1 / c_i^2 - x_i^2) of every group, float64 (groups,). scale: s of all; None is each group's own."""
    s = np.abs(groups).max(axis=1, keepdims=True) if scale is None else scale
    return (s**2 / response**2 - groups**2).sum(axis=1)


def relative_noise(groups, response, shots, scale=None):
    """Expected |measured - g|^2 / |g|^2."""
    return one_shot_variance(groups, response, scale).sum() / (groups**2).sum() / shots


def gaussian_relative_noise(num_qubits, response):
    """The same at one shot for many groups of independent Gaussian entries: E[s^2] / c^2 - 1."""
    largest = integrate.quad(lambda m: 2 * m * (1 - (2 * stats.norm.cdf(m) - 1) ** num_qubits), 0, np.inf)[0]
    return largest / response**2 - 1


def is_unbiased(ansatz, xs):
    means = np.array([qc.outcome_probabilities(ansatz, x) for x in xs]) @ qc.minus_z(xs.shape[1])
    return np.abs(means @ ansatz.inverse.T - xs).max() < 1e-9


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


# --- 1. One shot, and the bound


@pytest.mark.parametrize("name", qc.CIRCUITS)
@pytest.mark.parametrize("num_qubits", [1, 2, 3, 5])
def test_no_unbiased_circuit_of_the_table_beats_the_bound(name, num_qubits):
    ansatz, xs = qc.build_ansatz(name, num_qubits, PHI), random_groups(20, num_qubits)
    assert is_unbiased(ansatz, xs) == (name != "chain")
    if name == "chain":
        return
    response = np.diag(ansatz.response)
    np.testing.assert_allclose(ansatz.response, np.diag(response), atol=1e-12)
    for x in xs:
        variance = np.diag(decoded_covariance(ansatz, x))
        np.testing.assert_allclose(variance, 1 / response**2 - x**2, atol=1e-9)
        assert np.all(variance >= 1 - x**2 - 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_no_random_unbiased_circuit_beats_the_bound(seed):
    """Any state of equal |amplitudes| (H, then random phases on one, two and three qubits), then the encoding.

    <Z_i> = 0 for all of them, so they are unbiased; their response may have either sign.
    """
    rng, n = np.random.default_rng(seed), 4
    circuit, angles = QuantumCircuit(n), ParameterVector("θ", n)
    circuit.h(range(n))
    for a in range(n):
        circuit.p(rng.uniform(-0.5, 0.5), a)
        for b in range(a):
            circuit.rzz(rng.uniform(-1, 1), a, b)
    circuit.mcp(rng.uniform(-math.pi, math.pi), [0, 1], 2)
    circuit.mcp(rng.uniform(-math.pi, math.pi), [1, 2], 3)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
    response = qc.response_matrix(circuit, angles, 1.0)
    ansatz = qc.Ansatz(circuit, angles, 1.0, response, np.linalg.inv(response))
    xs = random_groups(10, n, seed)
    assert is_unbiased(ansatz, xs) and qc.meyer_wallach(ansatz, xs[2]) > 0.1
    for x in xs:
        covariance = decoded_covariance(ansatz, x)
        np.testing.assert_allclose(np.diag(covariance), 1 / np.diag(response) ** 2 - x**2, rtol=1e-9, atol=1e-9)
        assert np.all(np.diag(covariance) >= 1 - x**2)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 1e-3  # covariances are what did move


def test_a_mixing_decoder_is_outside_of_the_bound():
    """Means (x_0 +- x_1) / 2, outcomes always opposite at x = 0: no noise for one weight, 4 for the other."""
    inverse = np.linalg.inv([[0.5, 0.5], [0.5, -0.5]])
    opposite = qc.noise_covariance(np.array([0, 0.5, 0.5, 0]))
    np.testing.assert_allclose(np.diag(inverse @ opposite @ inverse.T), [0, 4], atol=1e-12)


def information(ansatz, x):
    """Fisher information of all bits of one shot about the angles, float64 (n, n); derivatives by parameter shift."""

    def probabilities(angles):
        return Statevector(
            ansatz.circuit.assign_parameters(dict(zip(ansatz.angles, angles, strict=True)))
        ).probabilities()

    angles = np.arcsin(x)
    shifts = np.eye(len(x)) * math.pi / 2
    slopes = np.array([probabilities(angles + shift) - probabilities(angles - shift) for shift in shifts]) / 2
    return slopes / probabilities(angles) @ slopes.T


def test_no_decoder_of_all_bits_beats_the_bound_but_one_needs_fewer_shots_of_graph():
    """The Cramer-Rao bound of the joint outcomes, d theta / dx = 1 / sqrt(1 - x^2), for 60 Gaussian groups of 5."""
    groups = gaussian_groups(60, seed=12)
    s = np.abs(groups).max(axis=1, keepdims=True)
    best = {"graph": [], "product": []}
    for name, found in best.items():
        ansatz = qc.build_ansatz(name, 5, PHI)
        for x in (1 - 1e-9) * groups / s:
            found.append((1 - x**2) * np.diag(np.linalg.inv(information(ansatz, x))))
    x = groups / s
    np.testing.assert_allclose(best["product"], 1 - x**2, atol=1e-6)
    assert np.all(best["graph"] > 1 - x**2 - 1e-6) and np.all(best["graph"] < 4 - x**2)
    part = (s**2 * best["graph"]).sum() / one_shot_variance(groups, RESPONSE["graph"]).sum()
    assert gaussian_relative_noise(5, RESPONSE["graph"]) * part == pytest.approx(3.8, abs=0.15)


# --- 2. The price of graph's angle


@pytest.mark.parametrize("phi", [0.0, 0.4, PHI, 1.2])
def test_response_of_graph_by_group_size(phi):
    for n, power in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)):
        expected = np.eye(n) * math.cos(phi) ** power
        np.testing.assert_allclose(qc.build_ansatz("graph", n, phi).response, expected, atol=1e-12)


def test_relative_noise_of_gaussian_groups():
    """The integral against the table of the document, and sums over 200,000 groups within 5 standard errors."""
    table = re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", DOCUMENT, re.MULTILINE)
    assert [int(row[0]) for row in table] == [1, 2, 3, 4, 5, 6]
    for row in table:
        n = int(row[0])
        response = math.cos(PHI) ** min(n - 1, 2)
        one, other = (gaussian_relative_noise(n, c) for c in (1.0, response))
        for said, value in zip(row[1:], (one + 1, one, other), strict=True):
            assert float(said) == pytest.approx(value, abs=0.0051 if value < 5 else 0.051)
        groups = gaussian_groups(200_000, n)
        variances = one_shot_variance(groups, response)
        error = 5 * (variances - other * (groups**2).sum(axis=1)).std() / math.sqrt(len(groups)) / n
        assert relative_noise(groups, response, 1) == pytest.approx(other, abs=error + 1e-9)


@pytest.mark.parametrize("name", RESPONSE)
@pytest.mark.parametrize("shots", [1, 10, 1000])
def test_relative_noise_of_the_real_update(name, shots):
    groups = gaussian_groups(20_000)
    error = measured(groups, name, shots) - groups
    expected = relative_noise(groups, RESPONSE[name], shots)
    spread = (error**2).sum(axis=1).std() * math.sqrt(len(groups)) / (groups**2).sum()
    assert (error**2).sum() / (groups**2).sum() == pytest.approx(expected, abs=5 * spread)


@pytest.mark.parametrize(("name", "one_shot"), [("graph", 0.300), ("product", 0.600)])
def test_cosine_is_predicted_from_the_relative_noise(name, one_shot):
    groups = gaussian_groups(40_000)
    for shots in (1, 10, 100):
        predicted = noise.expected_cosine(gaussian_relative_noise(5, RESPONSE[name]) / shots)
        assert cosine(measured(groups, name, shots), groups) == pytest.approx(predicted, abs=0.01)
    assert noise.expected_cosine(gaussian_relative_noise(5, RESPONSE[name])) == pytest.approx(one_shot, abs=0.0006)


# --- 3. Covariances, and what enters the loss


@pytest.mark.parametrize("num_qubits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("phi", [0.3, PHI, 1.2])
def test_covariances_of_graph_are_the_closed_form(num_qubits, phi):
    ansatz = qc.build_ansatz("graph", num_qubits, phi)
    factor = np.zeros((num_qubits, num_qubits))
    for a, b in qc.ring(num_qubits):
        factor[a, b] = factor[b, a] = math.tan(phi) ** 2
    if num_qubits == 4:
        factor[[0, 1, 2, 3], [2, 3, 0, 1]] = math.tan(phi) ** 4
    for x in random_groups(10, num_qubits):
        covariance = decoded_covariance(ansatz, x)
        away = ~np.eye(num_qubits, dtype=bool)
        np.testing.assert_allclose(covariance[away], (factor * np.outer(x, x))[away], atol=1e-8)


def test_expected_change_of_a_quadratic_loss():
    """Summed over all outcomes of one shot with their exact probabilities; the covariances' part by itself, too."""
    rng, rate, ansatz = np.random.default_rng(4), 0.1, qc.build_ansatz("graph", 5, PHI)
    gradient = rng.standard_normal(5)
    root = rng.standard_normal((5, 5))
    hessian = root @ root.T
    scale = np.abs(gradient).max()
    probabilities = qc.outcome_probabilities(ansatz, gradient / scale)
    steps = -rate * scale * qc.minus_z(5) @ ansatz.inverse.T
    changes = steps @ gradient + 0.5 * np.einsum("ki,ij,kj->k", steps, hessian, steps)
    sigma = scale**2 * decoded_covariance(ansatz, gradient / scale)
    noiseless = -rate * gradient @ gradient + 0.5 * rate**2 * gradient @ hessian @ gradient
    assert probabilities @ changes == pytest.approx(noiseless + 0.5 * rate**2 * np.trace(hessian @ sigma), abs=1e-12)
    edges = sum(2 * hessian[a, b] * gradient[a] * gradient[b] for a, b in qc.ring(5))
    off_diagonal = np.trace(hessian @ (sigma - np.diag(np.diag(sigma))))
    assert off_diagonal == pytest.approx(math.tan(PHI) ** 2 * edges, abs=1e-12)


# --- 4. Minibatch noise


@pytest.mark.parametrize("batch_noise", [3.0, 0.794])
def test_parity_with_minibatch_noise(batch_noise):
    """Gradients of 10 batches around a true one, measured by product with 1, 2 and 4 shots: noises add up.

    They are equal at S = a (1 + 1/b), here 4 for the second b. 3%: the scatter of 10 batches of 50,000 weights is well
    below.
    """
    true = gaussian_groups(10_000)
    size = (true**2).sum()
    one_shot = gaussian_relative_noise(5, 1.0)
    for shots in (1, 2, 4):
        total, shot = [], []
        for batch in range(10):
            gradient = true + math.sqrt(batch_noise) * gaussian_groups(10_000, seed=100 + batch)
            estimate = measured(gradient, "product", shots, seed=batch)
            total.append(((estimate - true) ** 2).sum() / size)
            shot.append(((estimate - gradient) ** 2).sum() / size)
        assert np.mean(shot) == pytest.approx(one_shot * (1 + batch_noise) / shots, rel=0.03)
        assert np.mean(total) == pytest.approx(batch_noise + np.mean(shot), rel=0.03)
    if batch_noise < 1:
        assert one_shot * (1 + 1 / batch_noise) == pytest.approx(4, abs=0.01)
        assert np.mean(shot) == pytest.approx(batch_noise, rel=0.03)


def test_inverse_batch_noise_and_its_error_are_right():
    """200 times 12 gradients of 2,000 weights, 1/b = 0.5: mean within 5 standard errors, error within a third."""
    draw = np.random.default_rng(11)
    true = draw.standard_normal(2000)
    found = []
    for _ in range(200):
        gradients = true + math.sqrt(2) * draw.standard_normal((12, 2000))
        found.append(noise.inverse_batch_noise(gradients @ gradients.T))
    ratios, errors = np.array(found).T
    assert ratios.mean() == pytest.approx(0.5, abs=5 * ratios.std() / math.sqrt(200))
    assert errors.mean() == pytest.approx(ratios.std(), rel=0.33)


# --- 5. Allocation


def test_neyman_allocation_is_what_an_optimiser_finds():
    variances = np.random.default_rng(6).lognormal(0, 1, 12)
    result = optimize.minimize(
        lambda shots: (variances / shots).sum(),
        np.full(12, 10.0),
        jac=lambda shots: -variances / shots**2,
        bounds=[(0.01, None)] * 12,
        constraints={"type": "eq", "fun": lambda shots: shots.sum() - 120, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    best = 120 * np.sqrt(variances) / np.sqrt(variances).sum()
    np.testing.assert_allclose(result.x, best, rtol=1e-3)
    gain = (variances / 10).sum() / (variances / best).sum()
    assert noise.allocation_gain(variances) == pytest.approx(gain) and gain > 1


def test_gain_of_allocation_for_gaussian_and_for_spread_groups():
    groups = gaussian_groups(400_000)
    for name, expected in (("product", 1.16), ("graph", 1.13)):
        variances = one_shot_variance(groups, RESPONSE[name])
        gain = noise.allocation_gain(variances)
        assert gain == pytest.approx(expected, abs=0.005)
        sizes = np.random.default_rng(7).lognormal(0, 0.6, len(groups))
        assert noise.allocation_gain(variances * sizes**2) == pytest.approx(gain * math.exp(0.36), rel=0.02)


def test_a_sampled_group_is_unbiased_with_the_stated_variance():
    """Exactly, over all outcomes of one shot and of two: measured with probability p and weighted 1 / p."""
    ansatz, p = qc.build_ansatz("graph", 5, PHI), 0.3
    gradient = np.array([0.7, -2.0, 0.1, 1.1, -0.4])
    probabilities = qc.outcome_probabilities(ansatz, gradient / 2)
    estimates = 2 * qc.minus_z(5) @ ansatz.inverse.T / p
    np.testing.assert_allclose(p * probabilities @ estimates, gradient, atol=1e-12)
    variance = p * probabilities @ (estimates**2).sum(axis=1) - gradient @ gradient
    (one_shot,) = one_shot_variance(gradient[None], 0.5)
    assert variance == pytest.approx(one_shot / p + gradient @ gradient * (1 / p - 1))
    assert variance == pytest.approx(5 * 2**2 / 0.5**2 / p - gradient @ gradient)  # so p ~ s is the best there is
    pairs = (estimates[:, None] + estimates) / 2  # the mean of two shots
    variance = p * np.einsum("a,b,abi,abi->", probabilities, probabilities, pairs, pairs) - gradient @ gradient
    assert variance == pytest.approx(one_shot / (2 * p) + gradient @ gradient * (1 / p - 1))


def test_allocation_below_one_shot_is_what_an_optimiser_finds():
    """The rule with the threshold at one shot, S_k = clip to [sqrt(v), sqrt(v + |g|^2)] / lambda, against SLSQP."""
    groups = gaussian_groups(40, seed=8) * np.random.default_rng(9).lognormal(0, 1, (40, 1))
    variances, squares = one_shot_variance(groups, 1.0), (groups**2).sum(axis=1)
    moments, total = variances + squares, 40.0

    def allocated(rate):
        return np.clip(1.0, np.sqrt(variances) / rate, np.sqrt(moments) / rate)

    def variance(shots):
        return np.where(shots >= 1, variances / shots, moments / shots - squares).sum()

    best = allocated(optimize.brentq(lambda rate: allocated(rate).sum() - total, 1e-3, 1e3))
    assert (best > 1).any() and (best < 1).any() and (best == 1).any()
    result = optimize.minimize(
        lambda shots: variance(shots) / variance(best),
        np.full(40, 1.0),
        bounds=[(0.01, None)] * 40,
        constraints={"type": "eq", "fun": lambda shots: shots.sum() - total},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert variance(best) <= variance(result.x) * (1 + 1e-9)
    assert variance(result.x) == pytest.approx(variance(best), rel=0.01)


def test_whole_shots_cost_an_eighth_at_most():
    """floor or ceil, drawn with mean S: E[1 / m] S is largest half-way between 1 and 2."""
    shots = np.arange(1, 30, 0.01)
    low = np.floor(shots + 1e-9)
    inflation = shots * ((1 - (shots - low)) / low + (shots - low) / (low + 1))
    assert inflation.max() == pytest.approx(1.125) and shots[inflation.argmax()] == pytest.approx(1.5)


# --- 6. Bits


def test_bits_of_a_count():
    counts = stats.binom(1000, 0.5)
    assert counts.entropy() / math.log(2) == pytest.approx(6.03, abs=0.01)
    for shots in (1, 10, 1000):
        for one in (0.5, 0.6, 0.95):
            assert stats.binom(shots, one).entropy() / math.log(2) <= math.log2(shots + 1) + 1e-12


def steps_per_sign(one_shot, shots, n=5):
    largest = gaussian_relative_noise(n, 1.0) + 1
    return math.sqrt((n - 1) / n * largest * shots / (6 * one_shot))


@pytest.mark.parametrize(("name", "steps"), [("graph", 6.05), ("product", 14.44)])
def test_levels_of_stochastic_rounding_with_the_same_variance(name, steps):
    """The formula, and the variance of rounding the groups themselves to grids on either side of it."""
    one_shot, groups = gaussian_relative_noise(5, RESPONSE[name]), gaussian_groups(100_000)
    assert steps_per_sign(one_shot, 1000) == pytest.approx(steps, abs=0.01)
    scale = np.abs(groups).max(axis=1, keepdims=True)

    def rounding(k):
        part = groups / scale * k % 1
        return ((scale / k) ** 2 * part * (1 - part)).sum() / (groups**2).sum()

    assert rounding(math.floor(steps)) > one_shot / 1000 > rounding(math.ceil(steps))


def test_one_shot_of_product_is_stochastic_sign():
    """The values are s and -s, and each weight's P(s) is (1 + g / s) / 2, exactly; weights are independent."""
    backend, xs = make_backend("product"), random_groups(50, 5)
    expected = np.ones((50, 1))
    for qubit in range(5):
        one = (1 + xs[:, [qubit]]) / 2
        expected = np.hstack([expected * (1 - one), expected * one])
    np.testing.assert_allclose(backend.probabilities(xs), expected, atol=1e-12)
    groups = np.tile([1.5, -3.0, 0.3, 2.4, -0.6], (20_480, 1))
    estimate = measured(groups, "product", 1)
    np.testing.assert_allclose(np.abs(estimate), 3.0, rtol=1e-12)
    one = (1 + groups[0] / 3) / 2
    assert np.all(np.abs((estimate > 0).mean(axis=0) - one) <= 5 * np.sqrt(one * (1 - one) / len(groups)))


def test_ternary_rounding_has_less_noise_than_one_shot():
    """TernGrad: s sign(g) with probability |g| / s, otherwise 0: variance s |g| - g^2, against s^2 - g^2."""
    groups = gaussian_groups(200_000)
    scale = np.abs(groups).max(axis=1, keepdims=True)
    drawn = np.random.default_rng(3).random(groups.shape) < np.abs(groups) / scale
    ternary = np.where(drawn, scale * np.sign(groups), 0)
    relative = (scale * np.abs(groups) - groups**2).sum() / (groups**2).sum()
    assert ((ternary - groups) ** 2).sum() / (groups**2).sum() == pytest.approx(relative, rel=0.01)
    assert relative == pytest.approx(0.37, abs=0.005)


# --- 7. Amplitude estimation


def test_information_of_amplified_circuits():
    """Grover steps of the encoding: P(one) = sin^2(N a), Fisher information N^2 / (1 - x^2), N = 2j + 1 for j steps."""
    for x in (-0.7, 0.2, 0.9):

        def state_after(steps, x=x):
            angle = math.asin(math.sqrt((1 + x) / 2))
            rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            good = np.diag([1.0, -1.0])  # flips the sign of "one"
            step = -rotation @ np.diag([-1.0, 1.0]) @ rotation.T @ good
            return np.linalg.matrix_power(step, steps) @ rotation[:, 0]

        for steps in (0, 1, 3):
            applications, small = 2 * steps + 1, 1e-6
            one = state_after(steps)[1] ** 2
            assert one == pytest.approx(math.sin(applications * math.asin(math.sqrt((1 + x) / 2))) ** 2)
            slope = (state_after(steps, x + small)[1] ** 2 - state_after(steps, x - small)[1] ** 2) / (2 * small)
            assert slope**2 / (one * (1 - one)) == pytest.approx(applications**2 / (1 - x**2), rel=1e-5)


def queries(shots):
    """M of amplitude estimation with the error of so many shots at the same confidence, to leading order."""
    return 2 * math.pi * math.sqrt(shots) / stats.norm.ppf((1 + 8 / math.pi**2) / 2)


def test_error_of_amplitude_estimation():
    """The exact distribution of its outcomes: within the bound with probability 8 / pi^2 at least."""
    size = 64
    outcomes = np.arange(size)
    for a in np.random.default_rng(2).uniform(0.05, 0.95, 40):
        phase = math.asin(math.sqrt(a)) / math.pi
        away = np.stack([outcomes / size - phase, outcomes / size + phase])
        law = (np.sin(size * math.pi * away) / (size * np.sin(math.pi * away))) ** 2
        law = law.mean(axis=0)
        assert law.sum() == pytest.approx(1)
        error = np.abs(np.sin(math.pi * outcomes / size) ** 2 - a)
        within = error <= 2 * math.pi * math.sqrt(a * (1 - a)) / size + (math.pi / size) ** 2
        assert law[within].sum() >= 8 / math.pi**2


@pytest.mark.parametrize(("shots", "textbook", "ideal"), [(10, 0.068, 0.63), (1000, 0.66, 6.3)])
def test_cost_at_which_amplitude_estimation_wins(shots, textbook, ideal):
    assert queries(1) == pytest.approx(4.8, abs=0.05)
    assert shots / (5 * (2 * queries(shots) - 1)) == pytest.approx(textbook, rel=0.02)
    assert math.sqrt(shots) / 5 == pytest.approx(ideal, rel=0.02)


# --- 8. The classical scale


@pytest.mark.parametrize("name", RESPONSE)
def test_one_shot_tells_signs_and_the_scale_tells_sizes(name):
    groups = gaussian_groups(2000)
    estimate = measured(groups, name, 1)
    sizes = np.abs(groups).max(axis=1, keepdims=True) / RESPONSE[name]
    np.testing.assert_allclose(np.abs(estimate), np.broadcast_to(sizes, estimate.shape), rtol=1e-12)
    single = groups.reshape(-1, 1)
    np.testing.assert_allclose(measured(single, name, 1), single, rtol=1e-12)  # n = 1: the gradient itself


def test_cosine_of_the_classical_sign_with_the_same_scale():
    groups = gaussian_groups(200_000)
    scale = np.abs(groups).max(axis=1, keepdims=True)
    assert cosine(scale * np.sign(groups), groups) == pytest.approx(0.82, abs=0.005)


@pytest.mark.parametrize("name", RESPONSE)
def test_noise_with_the_scale_of_the_tensor(name):
    """The exact factor, and the real update within 5 standard errors."""
    groups, c, shots = gaussian_groups(20_000), RESPONSE[name], 10
    groups[7, 3] = 20.0
    ratio = 20.0 / math.sqrt((groups**2).mean())
    by_group = relative_noise(groups, c, shots)
    by_tensor = relative_noise(groups, c, shots, scale=20.0)
    assert by_tensor == pytest.approx((ratio**2 / c**2 - 1) / shots)
    spread = (np.abs(groups).max(axis=1) ** 2).mean() / (groups**2).mean()
    assert by_tensor / by_group == pytest.approx((ratio**2 - c**2) / (spread - c**2))
    error = measured(groups, name, shots, normalization="tensor") - groups
    scatter = (error**2).sum(axis=1).std() * math.sqrt(len(groups)) / (groups**2).sum()
    assert (error**2).sum() / (groups**2).sum() == pytest.approx(by_tensor, abs=5 * scatter)


# --- The document


def test_the_document_and_these_tests_name_each_other():
    named = set(re.findall(r"\btest_\w+", DOCUMENT)) - {"test_noise"}
    tests = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    assert named == tests
