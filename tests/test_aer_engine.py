"""The Aer engine against qiskit's Statevector and plain Aer runs; its random streams, threads, blocks, memory."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT, make_backend, random_groups, update_of
from qiskit import QuantumCircuit, transpile
from qiskit.quantum_info import Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.quantum_info.states.aer_state import AerState

import quantum_circuits as qc
import update_rules
from aer_engine import STREAM_GROUPS, AerBackend, turn

PHI = math.pi / 4
MEASURING = [name for name, rule in update_rules.RULES.items() if rule.measures]


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
    batched = AerBackend(ansatz).probabilities(x)
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
    np.testing.assert_allclose(AerBackend(ansatz).probabilities(x), single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_closed_forms_of_the_phases_are_those_of_the_angles(slope):
    sines = np.concatenate([np.linspace(-1, 1, 2001), np.nextafter([1.0, -1.0], 0), [1e-300, -0.0]])[None]
    expected = np.exp(1j * slope * np.arcsin(sines[0]))
    np.testing.assert_allclose(turn(sines, 0.0, np.array([slope])), expected, rtol=0, atol=4e-16)
    np.testing.assert_allclose(turn(sines, 1e-30, np.array([slope])), expected, rtol=0, atol=4e-16)  # the general way


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
    copying.register = copying.new_register()
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


def test_seeds_separate_runs_steps_tensors_and_chunks():
    gradient = torch.full((3 * STREAM_GROUPS * 5,), 0.3)
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
    alone, _ = update_of(gradient, AerBackend(ansatz, rule), seed=(9, 8, 7))
    alone_few, _ = update_of(gradient, AerBackend(ansatz, rule), seed=(9, 8, 7), shots=3)
    before = torch.get_num_threads()
    try:
        for threads, block in [(1, 512), (2, 512), (1, 1024), (2, 1024), (1, 2048), (2, 2048)]:
            torch.set_num_threads(threads)
            backend = AerBackend(ansatz, rule, block)
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["graph", "chain"])
def test_memory_does_not_grow_with_the_number_of_blocks(name):
    """Aer leaks 64 bytes whenever a state is initialized: 2 MB over these blocks, and gigabytes over a long run."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport numpy as np, quantum_circuits as q, aer_engine\n"
        f"backend = aer_engine.AerBackend(q.build_ansatz({name!r}, 2, 0.5), block=2)\n"
        "x, kilobytes = np.ones((600, 2)), []\n"
        "for step in range(101):\n"
        "    backend.probabilities(x)\n"
        "    status = open('/proc/self/status').read()\n"
        "    kilobytes.append(int(status.split('VmRSS:')[1].split()[0]))\n"
        "print(kilobytes[-1] - kilobytes[20])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 800, done.stderr
