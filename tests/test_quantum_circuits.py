"""Circuits and the update against closed forms, moments and limits."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, exact_means, make_backend, random_groups, update_of
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

import quantum_circuits as qc
from aer_engine import AerBackend

PHI = math.pi / 4


# --- Expectations


@pytest.mark.parametrize("num_qubits", range(1, 7))
@pytest.mark.parametrize("phi", [0.0, 0.3, PHI, 1.4])
def test_graph_means_are_the_closed_form(num_qubits, phi):
    degree = np.zeros(num_qubits)
    for edge in qc.ring(num_qubits):
        degree[list(edge)] += 1
    x = random_groups(40, num_qubits)
    expected = x * math.cos(phi) ** degree
    np.testing.assert_allclose(exact_means(make_backend("graph", num_qubits, phi), x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_qubits", range(1, 7))
@pytest.mark.parametrize("name", ["product", "literal"])
def test_product_states_answer_with_x_itself(name, num_qubits):
    x = random_groups(40, num_qubits)
    np.testing.assert_allclose(exact_means(make_backend(name, num_qubits), x), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("num_qubits", "edges"), [(1, 0), (2, 1), (3, 3), (5, 5)])
def test_ring_has_no_double_edges(num_qubits, edges):
    assert len({frozenset(edge) for edge in qc.ring(num_qubits)}) == len(qc.ring(num_qubits)) == edges


# --- Response, entanglement, noise


def test_a_response_that_is_not_diagonal_is_decoded(monkeypatch):
    def mixed(angles, _):
        circuit = QuantumCircuit(3)
        circuit.h(circuit.qubits)
        circuit.ry(angles[0], 0)
        circuit.ry(angles[1] + 0.5 * angles[0], 1)
        circuit.ry(angles[2] - 0.25 * angles[0], 2)
        return circuit

    monkeypatch.setitem(qc.CIRCUITS, "mixed", (mixed, 0.1))  # a small range: nearly linear
    gradient = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    update, _ = update_of(gradient, AerBackend(qc.build_ansatz("mixed", 3, 0.0), "exact"), learning_rate=1.0)
    torch.testing.assert_close(update, gradient, rtol=0, atol=5e-3)


def test_response_of_graph_and_chain():
    np.testing.assert_allclose(qc.build_ansatz("graph", 5, 0.6).response, np.eye(5) * math.cos(0.6) ** 2, atol=1e-12)
    expected = 0.4 * np.diag([1.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(qc.build_ansatz("chain", 4, 0.6).response, expected, atol=1e-12)


@pytest.mark.parametrize("num_qubits", range(1, 7))
def test_chain_means_are_the_closed_form_of_its_docstring(num_qubits):
    """Signs included: negative angles, and the (-1)^j."""
    ansatz = qc.build_ansatz("chain", num_qubits, PHI)
    x = np.random.default_rng(5).uniform(-1, 1, (60, num_qubits))
    x[:20] = -np.abs(x[:20])
    theta = np.arcsin(0.4 * x)
    sines, cosines = np.sin(theta), np.cos(theta)
    following = np.hstack([cosines[:, 1:], np.ones((60, 1))])
    expected = np.sin(theta / 2) * cosines * following
    expected += (-1.0) ** np.arange(num_qubits) * np.cos(theta / 2) * np.cumprod(sines, axis=1)
    exact = np.array([qc.outcome_probabilities(ansatz, row) for row in x]) @ qc.minus_z(num_qubits)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-12)
    assert (expected[:, 0] < 0).any()  # where the size of <Z_0> alone would be something else


@pytest.mark.parametrize("num_qubits", [2, 3, 5])
def test_every_sign_of_chain_is_right_over_its_encoding_range(num_qubits):
    x = random_groups(500, num_qubits)
    x[:250] = np.sign(x[:250])  # corners, where the products of sines are largest
    means = exact_means(make_backend("chain", num_qubits), x)
    assert np.all(np.sign(means) == np.sign(x))


def encoded(gate="ry", start=True, end=True, extra=lambda circuit, angles: None):
    """A circuit function: H on every qubit if `start`, the gate with every angle but the last unless `end`, extra."""

    def function(angles, _):
        circuit = QuantumCircuit(len(angles))
        if start:
            circuit.h(circuit.qubits)
        for qubit, angle in enumerate(angles if end else angles[:-1]):
            getattr(circuit, gate)(angle, qubit)
        extra(circuit, angles)
        return circuit

    return function


def repeat_first(angles, _):
    circuit = QuantumCircuit(len(angles))
    circuit.h(circuit.qubits)
    for qubit in range(len(angles)):
        circuit.ry(angles[0], qubit)
    return circuit


REFUSED = {
    "from zero": (encoded(start=False), "qubits 0, 1, 2 do not answer to the data: an encoding needs an axis"),
    "rx on plus": (encoded("rx"), r"0, 1, 2 do not answer .* start from \|\+>, by H, and rotate by RY"),
    "rz on plus": (encoded("rz"), "qubits 0, 1, 2 do not answer"),
    "one forgotten": (encoded(end=False), "qubit 2 does not answer"),
    "read on x": (encoded(extra=lambda circuit, _: circuit.h(1)), "qubit 1 does not answer"),
    "one angle": (repeat_first, "angles 1, 2 reach no qubit"),
    "sums": (
        lambda angles, _: encoded()([sum(angles[1:], angles[0])] * 3, _),
        "cannot be inverted, the singular values are 3 to 0; the smallest must be 0.001",
    ),
    "phase gate": (encoded("p"), "gate 'p' carries an angle: must be one of rx, ry, rz, rzz"),
    "square": (lambda angles, _: encoded()([angle * angle for angle in angles], _), "must be a linear function of th"),
    "nothing": (lambda angles, _: None, "its function returns None: must return a QuantumCircuit"),
    "own parameter": (
        encoded(extra=lambda circuit, angles: circuit.rx(Parameter("w") + angles[0], 0)),
        "has a parameter of its own, w: must have the angles given alone, and numbers",
    ),
    "reset": (encoded(extra=lambda circuit, _: circuit.reset(0)), "holds reset: must hold gates alone"),
    "measured": (encoded(extra=lambda circuit, _: circuit.measure_all()), "3 qubits and 3 classical bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_circuits_that_cannot_be_decoded_are_refused(monkeypatch, name):
    """In one line that names the circuit and no setting that the circuit does not use."""
    function, message = REFUSED[name]
    monkeypatch.setitem(qc.CIRCUITS, name, (function, 1.0))
    with pytest.raises(ValueError, match=f"^CIRCUIT = '{name}'.*{message}") as refused:
        qc.build_ansatz(name, 3, 0.1)
    assert "ENTANGLING_ANGLE" not in str(refused.value) and "\n" not in str(refused.value)


def test_other_circuits_that_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"CIRCUIT = 'graph' .* ENTANGLING_ANGLE = 1\.5708: qubits 0, 1, 2 do not"):
        qc.build_ansatz("graph", 3, math.pi / 2 - 1e-6)
    with pytest.raises(ValueError, match="CIRCUIT = 'spiral': must be one of graph, product, chain, literal"):
        qc.build_ansatz("spiral", 3, 0.1)
    for encoding_range in (0, 1.5, math.nan):
        monkeypatch.setitem(qc.CIRCUITS, "wide", (qc.product, encoding_range))
        message = f"CIRCUIT = 'wide' has the encoding range {encoding_range}: must be above 0 and at most 1"
        with pytest.raises(ValueError, match=message):
            qc.build_ansatz("wide", 3, 0.1)


def test_the_program_draws_a_circuit_that_it_refuses_and_goes_on(tmp_path):
    """In a copy of the module with three more rows, as a user's."""
    code = (ROOT / "quantum_circuits.py").read_text(encoding="utf-8")
    rows = 'CIRCUITS = {"wide": (product, 1.5), "none": (lambda *_: None, 1.0), "bad": (lambda *_: 1 / 0, 1.0), "graph"'
    (tmp_path / "quantum_circuits.py").write_text(code.replace('CIRCUITS = {"graph"', rows), encoding="utf-8")
    command = [sys.executable, "quantum_circuits.py", "--results_dir", str(tmp_path / "results"), "--num_qubits", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "wide: error: CIRCUIT = 'wide' has the encoding range 1.5" in done.stdout
    assert "none: error: CIRCUIT = 'none': its function returns None" in done.stdout
    assert "bad: error: ZeroDivisionError: division by zero" in done.stdout
    assert "graph: 2 qubits" in done.stdout and "literal: 2 qubits" in done.stdout
    drawn = {path.stem for path in (tmp_path / "results" / "circuits").iterdir()}
    assert drawn == {"wide", "graph", "product", "chain", "literal"}


def test_entanglement_of_each_circuit():
    rng = np.random.default_rng(3)
    for x in rng.uniform(-1, 1, (10, 5)):
        for name in ("product", "literal"):
            assert abs(qc.meyer_wallach(qc.build_ansatz(name, 5, PHI), x)) < 1e-12
        # <X_i> = cos(phi)^2 is the only non-zero Bloch component, so Q = 1 - cos(phi)^4, whatever x is.
        assert qc.meyer_wallach(qc.build_ansatz("graph", 5, PHI), x) == pytest.approx(1 - math.cos(PHI) ** 4)
        assert qc.meyer_wallach(qc.build_ansatz("chain", 5, PHI), x) > 1e-3


@pytest.mark.parametrize("phi", [0.0, 0.5, PHI, 1.2])
def test_update_is_unbiased_and_its_covariance_is_sigma(phi):
    """E[update] = lr g within 5 standard errors, Cov = s^2 R^-1 Sigma R^-T / shots, at 20,000 shots."""
    shots, repeats, n, learning_rate = 20_000, 20_480, 5, 0.1
    group = torch.tensor([1.2, -1.1, 1.3, -2.0, 1.1], dtype=torch.float64)
    backend = make_backend("graph", n, phi)
    updates, _ = update_of(group.repeat(repeats), backend, learning_rate=learning_rate, shots=shots)
    updates = updates.reshape(repeats, n).numpy()
    scale = float(group.abs().max())
    sigma = qc.noise_covariance(qc.outcome_probabilities(backend.ansatz, group.numpy() / scale))
    inverse = backend.ansatz.inverse
    covariance = (learning_rate * scale) ** 2 * inverse @ sigma @ inverse.T / shots
    variance = np.diag(covariance)
    assert np.all(
        np.abs(updates.mean(axis=0) - learning_rate * group.numpy()) <= 5 * np.sqrt(variance / repeats) + 1e-12
    )
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / repeats)  # of a sample covariance (Wishart)
    assert np.all(np.abs(np.cov(updates.T) - covariance) <= 5 * error + 1e-18)
    if phi:  # the correlations that the entangler makes are seen, far above their own error
        away = ~np.eye(n, dtype=bool)
        assert np.abs(np.cov(updates.T)[away] / error[away]).max() > 8


def test_update_of_product_is_unbiased_for_random_gradients():
    shots, gradient = 20_000, torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    update, _ = update_of(gradient, make_backend("product"), learning_rate=1.0, shots=shots)
    scale = gradient.reshape(-1, 5).abs().max(dim=1, keepdim=True).values.expand(-1, 5).reshape(-1)
    noise = scale * torch.sqrt((1 - (gradient / scale) ** 2) / shots)
    pulls = ((update - gradient)[noise > 0] / noise[noise > 0]).numpy()
    assert abs(pulls.mean()) < 5 / math.sqrt(len(pulls))
    assert pulls.std() == pytest.approx(1, abs=5 / math.sqrt(2 * len(pulls)))
    assert torch.allclose(update[noise == 0], gradient[noise == 0])  # the largest of a group is certain: x = +-1


def test_noise_of_graph_is_correlated_and_of_product_is_not():
    x = np.full(5, 0.6)
    correlated = qc.noise_covariance(qc.outcome_probabilities(qc.build_ansatz("graph", 5, PHI), x))
    alone = qc.noise_covariance(qc.outcome_probabilities(qc.build_ansatz("product", 5, PHI), x))
    assert np.abs(correlated - np.diag(np.diag(correlated))).max() > 0.05
    np.testing.assert_allclose(alone, np.diag(1 - x**2), atol=1e-12)


def test_many_shots_give_the_gradient_back():
    gradient = torch.randn(203, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    update, _ = update_of(gradient, learning_rate=1.0, shots=10**7)
    assert torch.allclose(update, gradient, rtol=0, atol=5 * 2 * 3 / math.sqrt(10**7))


def test_tensor_normalization_is_unbiased_and_noisier_for_small_entries():
    shots = 20_000
    gradient = torch.cat([torch.full((5,), 4.0), torch.full((995,), 0.01)]).double()
    by_tensor, _ = update_of(gradient, learning_rate=1.0, shots=shots, normalization="tensor")
    by_group, _ = update_of(gradient, learning_rate=1.0, shots=shots, normalization="group")
    noise = (by_tensor - gradient)[5:].numpy()
    assert abs(noise.mean()) <= 5 * noise.std() / math.sqrt(len(noise))
    assert noise.std() == pytest.approx(4 * 2 / math.sqrt(shots), rel=0.2)
    assert (by_group - gradient)[5:].abs().max() < noise.std()


# --- The door


def test_zero_gradient_gives_exactly_zero():
    update, _ = update_of(torch.zeros(37, 3))
    assert torch.count_nonzero(update) == 0
    mixed = torch.zeros(15)
    mixed[7] = 1.0
    update, _ = update_of(mixed)
    assert torch.count_nonzero(update[:5]) == torch.count_nonzero(update[10:]) == 0


@pytest.mark.parametrize("name", qc.CIRCUITS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_hot_gradient_moves_its_own_weight(name, sign):
    """Bit order: weight k of a group is qubit k, little-endian, with its sign."""
    shots, backend = 20_000, make_backend(name)
    for k in range(5):
        gradient = torch.zeros(5, dtype=torch.float64)
        gradient[k] = sign * 3.0
        update, _ = update_of(gradient, backend, learning_rate=1.0, shots=shots, seed=(1, 2, k))
        x = gradient.numpy() / 3.0
        expected = 3.0 * backend.ansatz.inverse @ (qc.outcome_probabilities(backend.ansatz, x) @ qc.minus_z(5))
        noise = 3.0 * np.linalg.norm(backend.ansatz.inverse, axis=1) / math.sqrt(shots)
        assert np.all(np.abs(update.numpy() - expected) <= 5 * noise)
        assert np.argmax(np.abs(update.numpy())) == k and float(update[k].sign()) == sign


@pytest.mark.parametrize("numel", [1, 4, 5, 6, 511, 2560, 2561, 7001])
def test_every_weight_is_covered(numel):
    gradient = torch.full((numel,), -0.5)
    update, cost = update_of(gradient)
    assert update.shape == gradient.shape and torch.all(update < 0)
    assert (cost.circuits, cost.shots) == (math.ceil(numel / 5), math.ceil(numel / 5) * 1000) and cost.seconds > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_memory_layouts(dtype):
    base = torch.randn(24, 31, generator=torch.Generator().manual_seed(3)).to(dtype)
    for gradient in (base, base.t(), base[::2, 1::3], base[:, :1].expand(24, 7)):
        before = gradient.clone()
        update, _ = update_of(gradient)
        again, _ = update_of(gradient.contiguous())
        assert torch.equal(gradient, before)
        assert (update.shape, update.dtype, update.device) == (gradient.shape, dtype, gradient.device)
        assert torch.equal(update, again)


def test_empty_and_scalar_gradients():
    update, cost = update_of(torch.zeros(0, 4))
    assert update.shape == (0, 4) and cost.circuits == 0
    update, _ = update_of(torch.tensor(-2.0))
    assert update.shape == () and update < 0


def test_gradients_at_the_ends_of_the_number_range():
    for gradient in (torch.tensor([1e-45, -1e-45, 0.0]), torch.tensor([3e38, -1e38]), torch.tensor([5e-324]).double()):
        update, _ = update_of(gradient)
        assert torch.isfinite(update).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradient_that_is_not_finite_is_an_error(bad):
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        update_of(torch.tensor([0.1, bad, 0.2]))


def test_update_that_overflows_is_an_error():
    with pytest.raises(FloatingPointError, match=r"update is not finite in torch\.float16"):
        update_of(torch.tensor([60000.0, 1.0], dtype=torch.float16), learning_rate=1000.0)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"torch\.int64: must be a floating point dtype"):
        update_of(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be one of group, tensor"):
        update_of(torch.ones(3), normalization="layer")


def test_torch_and_numpy_global_random_states_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    update_of(torch.ones(100))
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


def test_a_circuit_is_added_by_one_function_in_one_table(monkeypatch):
    def tilted(angles, entangling_angle):
        circuit = QuantumCircuit(len(angles))
        circuit.rx(math.pi / 2, range(len(angles)))
        for qubit, angle in enumerate(angles):
            circuit.rx(angle, qubit)
        return circuit

    monkeypatch.setitem(qc.CIRCUITS, "tilted", (tilted, 1.0))
    gradient = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    update, _ = update_of(gradient, make_backend("tilted", 3), learning_rate=1.0, shots=10**6)
    assert torch.allclose(update, gradient, atol=5e-3)


# --- Controls


def test_exact_chain_is_the_biased_mean_of_its_circuit():
    ansatz = qc.build_ansatz("chain", 5, PHI)
    x = np.array([1.0, -0.5, 0.25, 0.75, -1.0])
    update, _ = update_of(torch.from_numpy(x), AerBackend(ansatz, "exact"), learning_rate=1.0)
    expected = ansatz.inverse @ (qc.outcome_probabilities(ansatz, x) @ qc.minus_z(5))
    np.testing.assert_allclose(update.numpy(), expected, atol=1e-12)
