"""The update rule against closed forms, qiskit's Statevector, and plain Aer runs circuit by circuit."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT
from qiskit import QuantumCircuit, transpile
from qiskit.quantum_info import Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.quantum_info.states.aer_state import AerState
from scipy import stats

import quantum_circuits as qc
import update_rules

PHI = math.pi / 4
MEASURING = [name for name, rule in update_rules.RULES.items() if rule.measures]


def make_backend(name="graph", num_qubits=5, phi=PHI):
    return qc.AerBackend(qc.build_ansatz(name, num_qubits, phi))


def exact_means(backend, x):
    return backend.probabilities(x) @ qc.minus_z(x.shape[1])


def update_of(gradient, backend=None, *, learning_rate=0.01, shots=1000, seed=(0, 0, 0), normalization="group"):
    backend = backend or make_backend()
    return qc.quantum_parameter_update(
        gradient, backend, learning_rate=learning_rate, shots=shots, seed=seed, normalization=normalization
    )


def random_groups(rows, columns, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (rows, columns))
    x[0], x[1] = 1.0, -1.0  # the ends of the range, where arcsin is steepest
    return x


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


@pytest.mark.parametrize("name", qc.CIRCUITS)
@pytest.mark.parametrize("num_qubits", [1, 2, 3, 5, 6])
def test_batched_aer_agrees_with_statevector(name, num_qubits):
    backend = make_backend(name, num_qubits, 0.7)
    x = random_groups(12, num_qubits)
    batched = backend.probabilities(x)
    single = [qc.outcome_probabilities(backend.ansatz, row) for row in x]
    np.testing.assert_allclose(batched, single, rtol=0, atol=1e-12)


def test_batched_aer_agrees_with_statevector_for_every_gate_that_may_carry_data(monkeypatch):
    def mixed(angles, entangling_angle):
        circuit = QuantumCircuit(3)
        circuit.rx(0.4, 0)
        circuit.h([1, 2])
        circuit.rz(angles[0] / 3 + 0.2, 1)
        circuit.rzz(angles[0] - 2 * angles[1], 0, 2)
        circuit.cx(1, 2)
        circuit.rx(angles[1] + angles[2], 2)
        circuit.ry(angles[2], 0)
        circuit.ry(-angles[0], 1)
        circuit.ry(angles[1], 0)
        return circuit

    monkeypatch.setitem(qc.CIRCUITS, "mixed", (mixed, 0.5))
    angles = qc.ParameterVector("t", 3)
    circuit = mixed(angles, PHI)
    ansatz = qc.Ansatz(circuit, angles, 0.5, qc.response_matrix(circuit, angles, 0.5), np.eye(3))
    x = random_groups(20, 3)
    batched = qc.AerBackend(ansatz).probabilities(x)
    np.testing.assert_allclose(batched, [qc.outcome_probabilities(ansatz, row) for row in x], rtol=0, atol=1e-12)
    step = 1e-5
    shifts = [qc.outcome_probabilities(ansatz, s * step * np.eye(3)[j]) for j in range(3) for s in (1, -1)]
    means = (np.array(shifts) @ qc.minus_z(3)).reshape(3, 2, 3)
    np.testing.assert_allclose(ansatz.response, ((means[:, 0] - means[:, 1]) / (2 * step)).T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(40))
def test_batched_aer_agrees_with_statevector_for_random_circuits(seed):
    """Any order of fixed gates and rotations, any linear angles, gates across the register in both directions."""
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 5))
    angles, circuit = qc.ParameterVector("t", n), QuantumCircuit(n)
    for _ in range(draw.integers(1, 25)):
        gate = draw.choice(["h", "rx", "ry", "rz", "s", *(["cx", "rzz", "cz"] if n > 1 else [])])
        data = gate in ("rx", "ry", "rz", "rzz")
        combination = sum((int(k) * angle for k, angle in zip(draw.integers(-1, 3, n), angles, strict=True)), start=0)
        simple = angles[int(draw.integers(n))] / int(draw.integers(1, 3))
        angle = [combination / 3 + 0.2, simple, 0.7][draw.integers(3)]
        qubits = draw.choice(n, 2 if gate in ("cx", "cz", "rzz") else 1, replace=False)
        getattr(circuit, gate)(*([angle] if data else []), *map(int, qubits))
    ansatz = qc.Ansatz(circuit, angles, 0.9, None, np.eye(n))
    x, single = random_groups(6, n, seed), []
    for row in x:
        values = dict(zip(angles, ansatz.theta(row), strict=True))
        bound = circuit.assign_parameters({angle: values[angle] for angle in circuit.parameters})
        single.append(Statevector(bound).probabilities())
    np.testing.assert_allclose(qc.AerBackend(ansatz).probabilities(x), single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_closed_forms_of_the_phases_are_those_of_the_angles(slope):
    sines = np.concatenate([np.linspace(-1, 1, 2001), np.nextafter([1.0, -1.0], 0), [1e-300, -0.0]])[None]
    expected = np.exp(1j * slope * np.arcsin(sines[0]))
    np.testing.assert_allclose(qc.turn(sines, 0.0, np.array([slope])), expected, rtol=0, atol=4e-16)
    np.testing.assert_allclose(
        qc.turn(sines, 1e-30, np.array([slope])), expected, rtol=0, atol=4e-16
    )  # the general way


@pytest.mark.parametrize(("name", "gates"), [("graph", 5), ("product", 5), ("literal", 5), ("chain", 4 + 2 * 5)])
def test_aer_applies_the_fixed_gates_to_every_block(monkeypatch, name, gates):
    backend, applied = make_backend(name), []
    for kind in ("apply_unitary", "apply_cx"):
        real = getattr(AerState, kind)
        monkeypatch.setattr(AerState, kind, lambda *a, real=real: (applied.append(a), real(*a)))
    backend.probabilities(random_groups(3 * backend.block, 5))
    assert len(applied) == 3 * gates


@pytest.mark.parametrize("name", qc.CIRCUITS)
def test_an_engine_that_copies_there_and_back_gives_the_same_bits(name):
    """As on a GPU, which cannot compute in numpy's array."""
    copying, x = make_backend(name), random_groups(2100, 5)
    copying.lent = False
    np.testing.assert_array_equal(copying.probabilities(x), make_backend(name).probabilities(x))


@pytest.mark.parametrize("name", qc.CIRCUITS)
def test_engine_agrees_with_plain_aer_run_by_run(name):
    """Means and products of pairs, so that the correlations of the shots are compared too, not the qubits alone."""
    shots, groups = 20_000, 6
    backend = make_backend(name, 3)
    x = random_groups(groups, 3)
    x[2:] = [[0.6, 0.6, 0.6], [-0.6, 0.6, 0.7], [0.5, -0.7, 0.1], [0.0, 0.3, -0.9]]
    generator = np.random.default_rng(np.random.SeedSequence((1, 0)))
    counts = generator.multinomial(shots, backend.probabilities(x))
    measured, circuits, taken = backend.measure(x, shots, (1,))
    assert (circuits, taken) == (groups, groups * shots)
    z = qc.minus_z(3)
    pairs = np.stack([z[:, 0] * z[:, 1], z[:, 0] * z[:, 2], z[:, 1] * z[:, 2]], axis=1)
    simulator = AerSimulator()
    for row in range(groups):
        circuit = backend.ansatz.circuit.assign_parameters({backend.ansatz.angles: backend.ansatz.theta(x[row])})
        circuit.measure_all()
        plain = simulator.run(transpile(circuit, simulator), shots=shots, seed_simulator=7).result().get_counts()
        # qiskit prints the highest qubit first, so a key read as a binary number is our little-endian outcome
        plain = np.bincount([int(key, 2) for key in plain], weights=list(plain.values()), minlength=8)
        for observable in (z, pairs):
            mean = plain @ observable / shots
            error = 5 * np.sqrt(2 * (1 - mean**2) / shots) + 5 / shots
            assert np.all(np.abs(counts[row] @ observable / shots - mean) <= error)
        if name != "product":  # there each qubit is drawn by itself, which comes to the same, see below
            np.testing.assert_allclose(measured[row], counts[row] @ z / shots, atol=1e-12)


# --- Response, entanglement, noise


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


def test_circuits_that_cannot_be_decoded_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"CIRCUIT = 'graph' .* ENTANGLING_ANGLE = 1\.57.*response cannot be inverted"):
        qc.build_ansatz("graph", 3, math.pi / 2 - 1e-6)
    with pytest.raises(ValueError, match="CIRCUIT = 'spiral': must be one of graph, product, chain, literal"):
        qc.build_ansatz("spiral", 3, 0.1)
    for gate, match in (("u1", "must be one of rx, ry, rz, rzz"), ("square", "must be a linear function")):

        def bad(angles, _, gate=gate):
            circuit = QuantumCircuit(1)
            circuit.p(angles[0], 0) if gate == "u1" else circuit.ry(angles[0] * angles[0], 0)
            return circuit

        monkeypatch.setitem(qc.CIRCUITS, "bad", (bad, 1.0))
        with pytest.raises(ValueError, match=match):
            qc.build_ansatz("bad", 1, 0.1)


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


def test_seeds_separate_runs_steps_tensors_and_chunks():
    gradient = torch.full((3 * qc.STREAM_GROUPS * 5,), 0.3)
    gradient[::5] = 1.0
    seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    pieces = [piece for seed in seeds for piece in update_of(gradient, seed=seed)[0].reshape(3, -1)]
    for i, first in enumerate(pieces):
        for second in pieces[i + 1 :]:
            assert (first == second).float().mean() < 0.3  # 1000 shots: equal counts now and then, by chance


@pytest.mark.parametrize("rule", MEASURING)
@pytest.mark.parametrize("name", qc.CIRCUITS)
def test_same_seed_same_bits_whatever_the_threads_and_blocks(name, rule):
    ansatz = qc.build_ansatz(name, 5, PHI)
    gradient = torch.randn(12_003, generator=torch.Generator().manual_seed(4))  # 5 random streams, the last cut short
    alone, _ = update_of(gradient, qc.AerBackend(ansatz, rule), seed=(9, 8, 7))
    alone_few, _ = update_of(gradient, qc.AerBackend(ansatz, rule), seed=(9, 8, 7), shots=3)
    before = torch.get_num_threads()
    try:
        for threads, block in [(1, 512), (2, 512), (1, 1024), (2, 1024), (1, 2048), (2, 2048)]:
            torch.set_num_threads(threads)
            backend = qc.AerBackend(ansatz, rule, block)
            for few, expected in ((1000, alone), (3, alone_few)):
                update, _ = update_of(gradient, backend, seed=(9, 8, 7), shots=few)
                assert torch.equal(update, expected), (threads, block, few)
    finally:
        torch.set_num_threads(before)


def test_one_backend_serves_several_callers_at_once():
    backend = make_backend()
    gradient = torch.randn(9000, generator=torch.Generator().manual_seed(4))
    alone, _ = update_of(gradient, backend, seed=(9, 8, 7))
    with ThreadPoolExecutor(2) as pool:
        for update, _ in pool.map(lambda _: update_of(gradient, backend, seed=(9, 8, 7)), range(4)):
            assert torch.equal(update, alone)


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


# --- Few shots, drawn by inversion


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


def assert_counts_follow(counts, law):
    """Chi-square test, refused at one in a million; what is expected less than ten times is one class."""
    rare = law * counts.sum() < 10
    seen, expected = ([*values[~rare], values[rare].sum()] for values in (counts, law * counts.sum()))
    if expected[-1] < 10:
        assert seen[-1] < 60
        seen, expected = seen[:-1], expected[:-1]
    statistic = sum((a - b) ** 2 / b for a, b in zip(seen, expected, strict=True))
    assert len(seen) == 1 or stats.chi2.sf(statistic, len(seen) - 1) > 1e-6


# --- Controls


def test_independent_keeps_the_means_and_loses_the_correlations():
    shots, groups = 20_000, qc.STREAM_GROUPS
    ansatz = qc.build_ansatz("graph", 5, PHI)
    x = np.full((groups, 5), 0.6)
    sigma = qc.noise_covariance(qc.outcome_probabilities(ansatz, np.full(5, 0.6)))
    sampled = {}
    for rule in ("quantum", "independent"):
        backend = qc.AerBackend(ansatz, rule)
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
    exact, cost = update_of(gradient, qc.AerBackend(ansatz, "exact"), learning_rate=1.0)
    assert torch.allclose(exact, gradient, rtol=0, atol=1e-12) and cost.shots == 0 and cost.circuits == 600
    errors = []
    for shots in (100, 10_000, 1_000_000):
        update, _ = update_of(gradient, qc.AerBackend(ansatz, rule), learning_rate=1.0, shots=shots)
        errors.append((update - exact).norm().item() * math.sqrt(shots))
    assert max(errors) / min(errors) < 1.2  # the error falls with the square root of the shots


def test_exact_chain_is_the_biased_mean_of_its_circuit():
    ansatz = qc.build_ansatz("chain", 5, PHI)
    x = np.array([1.0, -0.5, 0.25, 0.75, -1.0])
    update, _ = update_of(torch.from_numpy(x), qc.AerBackend(ansatz, "exact"), learning_rate=1.0)
    expected = ansatz.inverse @ (qc.outcome_probabilities(ansatz, x) @ qc.minus_z(5))
    np.testing.assert_allclose(update.numpy(), expected, atol=1e-12)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["graph", "chain"])
def test_memory_does_not_grow_with_the_number_of_blocks(name):
    """Aer leaks 64 bytes whenever a state is initialized: 2 MB over these blocks, and gigabytes over a long run."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport numpy as np, quantum_circuits as q\n"
        f"backend = q.AerBackend(q.build_ansatz({name!r}, 2, 0.5), block=2)\n"
        "x, kilobytes = np.ones((600, 2)), []\n"
        "for step in range(101):\n"
        "    backend.probabilities(x)\n"
        "    status = open('/proc/self/status').read()\n"
        "    kilobytes.append(int(status.split('VmRSS:')[1].split()[0]))\n"
        "print(kilobytes[-1] - kilobytes[20])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 800, done.stderr
