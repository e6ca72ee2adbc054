"""The Aer engine: many small circuits as one state vector of qiskit-aer, and the shots drawn from it.

devices.py has the other engine, with the same `measure` and `block`.
"""

import itertools
import math
import threading
import weakref

import numpy as np
from qiskit.circuit.library import CXGate
from qiskit.quantum_info import Operator
from qiskit_aer import AerSimulator
from qiskit_aer.quantum_info.states.aer_state import AerState

from quantum_circuits import linear_angle, minus_z
from update_rules import RULES, independent_shots, joint_shots

# Groups that share one random stream of the shots: part of what a seed means, so never change it.
STREAM_GROUPS = 2**9
# Rotation -> gate from the eigenbasis of Z to that of its axis; rz and rzz need none.
EIGENBASES = {
    "rx": np.array([[1, 1], [1, -1]]) / math.sqrt(2),
    "ry": np.array([[1, 1], [1j, -1j]]) / math.sqrt(2),
}


class AerBackend:
    """Aer's statevector simulator with the batch as an address register and the data as phases of its state vector.

    m extra qubits in uniform superposition index a block of 2^m groups; they are the lowest qubits, data qubit i is
    qubit m + i. A rotation exp(-i a P / 2) about a Pauli P is a diagonal between fixed gates to the eigenbasis of P and
    back. Aer applies every fixed gate, to a whole block at once; the diagonals, whose angles differ from group to
    group, are multiplied into its state vector, an array lent by numpy, in one go for a layer of rotations. What needs
    no simulation of every group: the gates before any data, alike in all of them, Aer applies once; and a qubit that no
    gate has joined to others yet has a state of its own, which is written down.

    |amplitude|^2, one column per address, is every group's exact distribution, from which the shots are drawn: what
    measuring gives, without Aer's own counting, circuit by circuit.
    """

    name = "aer"

    def __init__(self, ansatz, rule="quantum", block=None, device="CPU"):
        """rule: a name in update_rules.RULES that measures. device: "CPU" or "GPU".

        block: groups simulated at once, STREAM_GROUPS times a power of two; a matter of speed alone, not of results.
        Raises ValueError where the installed Aer does not have the device.
        """
        available = AerSimulator().available_devices()
        if device not in available:
            raise ValueError(
                f"AER_DEVICE = {device!r}: the installed qiskit-aer has {', '.join(available)} alone; "
                "the package qiskit-aer-gpu, for Linux with CUDA, brings GPU"
            )
        self.ansatz, self.rule, self.device = ansatz, RULES[rule], device
        self.draw, self.draws_shots = self.rule.draw, self.rule.draws_shots
        if self.draw is joint_shots and all(len(instruction.qubits) == 1 for instruction in ansatz.circuit.data):
            self.draw = independent_shots  # the same law where no gate joins qubits, in a sixth of the time
        self.eigenvalues = minus_z(ansatz.circuit.num_qubits)
        # Measured as the fastest for 5 to 7 qubits.
        self.block = block or STREAM_GROUPS * min(4, max(1, 2**7 // len(self.eigenvalues)))
        self.lent = device == "CPU"  # Aer computes in numpy's array itself; a GPU takes a copy and gives it back
        gates, self.entering, self.layers = compile_batched(ansatz)
        self.initial_state = np.eye(len(self.eigenvalues), 1, dtype=complex)
        apply_gates(self.new_state(), self.initial_state, gates, lent=False)
        self.lock, self.register = threading.Lock(), self.new_register()

    def probabilities(self, x):
        """Exact outcome distributions, float64 (groups, 2^n), for x in [-1, 1], float64 (groups, n)."""
        with self.lock:
            blocks = [self.simulate(x[first : first + self.block]) for first in range(0, len(x), self.block)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def simulate(self, x):
        """`probabilities` of at most one block of groups; in memory, an outcome's groups lie next to each other."""
        groups, n = x.shape
        sines = np.zeros((n, self.block))
        sines[:, :groups] = self.ansatz.encoding_range * x.T
        states, amplitudes, diagonal = self.register
        # Amplitudes lack the factor of the superposition: each column is a state of norm 1.
        amplitudes[:] = self.initial_state
        for qubit, (matrix, angle, gates) in enumerate(self.entering):
            zero, one = matrix[:, :1] + matrix[:, 1:] * turn(sines, *angle)
            add_qubit(amplitudes, qubit, one, zero)
            apply_gates(states[qubit], amplitudes[: 2 ** (qubit + 1)], gates, self.lent)
        for angles, gates in self.layers:
            diagonal[0] = 1
            for qubits, angle in angles.items():
                if len(qubits) == 1:
                    add_qubit(diagonal, *qubits, turn(sines, *angle))
                else:
                    diagonal[self.eigenvalues[:, qubits].prod(axis=1) < 0] *= turn(sines, *angle)
            amplitudes *= diagonal
            apply_gates(states[-1], amplitudes, gates, self.lent)
        parts = amplitudes.view(float).reshape(2**n, self.block, 2)
        parts *= parts
        distributions = parts[:, :groups, 0] + parts[:, :groups, 1]
        return distributions.T

    def new_state(self):
        # One thread: Aer's OpenMP threads would spin against torch's, and a block of this size fits a core's cache.
        return AerState(method="statevector", device=self.device, fusion_enable=False, max_parallel_threads=1)

    def new_register(self):
        """(states, amplitudes, diagonal): AerStates, the array that they compute in on a CPU, and one for phases.

        Arrays are complex (2^n, block). states[-1] has all qubits; where they enter one by one, states[i] has the first
        i + 1. Lent once and written anew for each block: Aer leaks 64 bytes whenever a state is initialized. One is
        enough for all threads: Aer's calls hold the interpreter lock.
        """
        amplitudes, diagonal = np.zeros((2, len(self.initial_state), self.block), dtype=complex)
        states = [self.new_state() for _ in self.entering or [None]]
        for index, state in enumerate(reversed(states) if self.lent else ()):
            state.initialize(amplitudes[: len(amplitudes) >> index].reshape(-1), copy=False)
            weakref.finalize(self, state.move_to_ndarray)  # taken back before Aer would free what is not its own
        return states, amplitudes, diagonal

    def measure(self, x, shots, seed, first=0):
        """(means, circuits, shots): e = (ones - zeros) / shots, float64 (groups, n), and what was run for them.

        x: float64 (groups, n) in [-1, 1]. shots: per group, int, or int64 (groups,). seed: tuple of ints.
        first: the first group's place in the update, a multiple of STREAM_GROUPS; every STREAM_GROUPS groups draw their
        shots from a random stream of their own.
        """
        distributions, shots = self.probabilities(x), np.broadcast_to(shots, len(x))
        means = np.empty_like(x)
        for start in range(0, len(x), STREAM_GROUPS):
            rows = slice(start, start + STREAM_GROUPS)
            generator = np.random.default_rng(np.random.SeedSequence((*seed, (first + start) // STREAM_GROUPS)))
            means[rows] = self.draw(distributions[rows], self.eigenvalues, shots[rows], generator)
        return means, len(x), int(shots.sum()) if self.draws_shots else 0


def apply_gates(state, amplitudes, gates, lent):
    """Let Aer apply fixed gates (qubits, matrix or CXGate) to amplitudes, complex (2^n, 2^m), in place.

    state: AerState. lent: it computes in this very array; otherwise a copy goes there and back.
    """
    address_qubits = amplitudes.shape[1].bit_length() - 1
    if not lent:
        state.initialize(amplitudes.reshape(-1), copy=True)
    try:
        for qubits, gate in gates:
            data = [address_qubits + qubit for qubit in qubits]
            state.apply_cx(*data) if gate is CXGate else state.apply_unitary(data, gate)
        state.flush()
        if not lent:
            amplitudes[:] = state.move_to_ndarray().reshape(amplitudes.shape)
    finally:
        if not lent:
            state.close()
            state.renew()


def add_qubit(products, qubit, one, zero=None):
    """Products over qubits, complex (2^n, groups), row by outcome: the factor of one more qubit, above those so far.

    one, zero: complex (groups,), the factor where its bit is one, and where it is zero; None is 1.
    """
    below, above = products[: 2**qubit], products[2**qubit : 2 ** (qubit + 1)]
    np.multiply(below, one, out=above)
    if zero is not None:
        below *= zero


def turn(sines, constant, slopes):
    """e^(ia), complex (groups,), a = constant + slopes @ theta, sines = sin(theta), float64 (n, groups).

    Without arcsin where a is theta_i or theta_i / 2: cos(theta / 2) = sqrt((1 + cos(theta)) / 2), sin(theta / 2) =
    sin(theta) / (2 cos(theta / 2)). Entry by entry: no result may depend on the size of a block, and the rounding of a
    matrix product does.
    """
    terms = [(slope, sine) for slope, sine in zip(slopes, sines, strict=True) if slope]
    if constant or len(terms) != 1 or terms[0][0] not in (1, 0.5):
        return np.exp(1j * sum((slope * np.arcsin(sine) for slope, sine in terms), np.full(sines.shape[1], constant)))
    ((slope, sine),) = terms
    cosine = np.sqrt((1 - sine) * (1 + sine))
    if slope == 0.5:
        cosine = np.sqrt((1 + cosine) / 2)
        sine = sine / (2 * cosine)
    return cosine + 1j * sine


def compile_batched(ansatz):
    """(start, entering, layers): fixed gates, which are (qubits, matrix or CXGate), and rotations between them.

    start: the gates before any data. layers: of (angles, gates): first diag(1, e^(ia)) on each qubit, or on the parity
    of two, with angles {qubits: (constant, slopes)}, single qubits first, a = constant + slopes @ theta; then gates.
    entering: where data comes before the first gate that joins qubits, what replaces start and the first layer, for
    each qubit (matrix, (constant, slopes), gates): its state is matrix @ (1, e^(ia)), and gates join it to those below.
    """
    n = ansatz.circuit.num_qubits
    slots, depth = [], [0] * n  # gates and angles by turns, and the slot that each qubit has reached

    def reach(qubits, odd):
        """The earliest slot, of gates or of angles (odd), that is open to all these qubits."""
        index = max(depth[qubit] for qubit in qubits)
        index += (index + odd) % 2
        while len(slots) <= index:
            slots.append({(qubit,): (0.0, np.zeros(n)) for qubit in range(n)} if len(slots) % 2 else [])
        for qubit in qubits:
            depth[qubit] = index
        return slots[index]

    for instruction in ansatz.circuit.data:
        qubits = tuple(ansatz.circuit.find_bit(qubit).index for qubit in instruction.qubits)
        gate = instruction.operation
        if not instruction.is_parameterized():
            reach(qubits, odd=0).append((qubits, CXGate if gate.base_class is CXGate else Operator(gate).data))
            continue
        constant, slopes = linear_angle(gate, ansatz.angles)
        basis = EIGENBASES.get(gate.name)
        if basis is not None:
            reach(qubits, odd=0).append((qubits, basis.conj().T))
        angles = reach(qubits, odd=1)
        before = angles.get(qubits, (0.0, 0.0))  # angles about the same axis add up
        angles[qubits] = before[0] + constant, before[1] + slopes
        if basis is not None:
            reach(qubits, odd=0).append((qubits, basis))
    layers = list(itertools.zip_longest(slots[1::2], slots[2::2], fillvalue=[]))
    joins = [any(len(qubits) > 1 for qubits in (slot if index % 2 else dict(slot))) for index, slot in enumerate(slots)]
    if not any(joins) or joins[0] or joins[1]:
        return slots[0], [], layers

    matrices, gates = [np.eye(2, 1, dtype=complex) for _ in range(n)], [[] for _ in range(n)]
    for (qubit,), gate in slots[0]:
        matrices[qubit] = gate @ matrices[qubit]
    matrices = [np.diag(matrix[:, 0]) for matrix in matrices]
    highest, joined = list(range(n)), set()  # the highest qubit that each one has been joined with
    for qubits, gate in slots[2]:
        if len(qubits) == 1 and not joined.issuperset(qubits):
            matrices[qubits[0]] = gate @ matrices[qubits[0]]
            continue
        joined.update(qubits)
        for qubit in qubits:
            highest[qubit] = max(highest[other] for other in qubits)
        gates[highest[qubits[0]]].append((qubits, gate))
    return [], [(matrices[q], slots[1][q,], gates[q]) for q in range(n)], layers[1:]
