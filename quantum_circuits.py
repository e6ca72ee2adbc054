"""The quantum update: gradient -> rotation angles -> circuits -> measured gradient -> update of the weights.

A gradient g is cut into groups of n weights, one circuit of n qubits each. With s = max |g| of the group:

    encode    x = g / s in [-1, 1],   theta = arcsin(r x)                 (radians, r = encoding range of the circuit)
    measure   e_i = (ones_i - zeros_i) / shots                            an unbiased estimate of -<Z_i>
    decode    estimate = s R^-1 e,    R = d(-<Z>)/dx at x = 0             response matrix
    update    learning_rate * estimate

For the `graph` circuit -<Z_i> = x_i cos(phi)^deg(i) exactly, for every x in [-1, 1], so R is diagonal and
E[update] = learning_rate * g: a stochastic gradient step whose only error is shot noise, with
Var(estimate_i) = s^2 (R^-1 Sigma(x) R^-T)_ii / shots. `python quantum_circuits.py` shows all of this per circuit.

Bit order is little-endian throughout: qubit i is bit i of an outcome and carries weight i of its group.
"""

import itertools
import math
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import CXGate
from qiskit.quantum_info import Operator, Statevector, partial_trace
from qiskit_aer import AerSimulator
from qiskit_aer.quantum_info.states.aer_state import AerState

from update_rules import RULES, independent_shots, joint_shots

# Groups that share one random stream of the shots: part of what a seed means, so never change it.
STREAM_GROUPS = 2**9
# A circuit that answers more weakly, or less evenly, than this multiplies the shot noise a thousandfold: refused.
SMALLEST_RESPONSE = 1e-3
LARGEST_CONDITION = 1e3
# Rotation -> gate from the eigenbasis of Z to that of its axis; None where that is Z itself.
EIGENBASES = {
    "rx": np.array([[1, 1], [1, -1]]) / math.sqrt(2),
    "ry": np.array([[1, 1], [1j, -1j]]) / math.sqrt(2),
    "rz": None,
    "rzz": None,
}


# --- Circuits. Each is a function (angles, entangling_angle) -> QuantumCircuit, without measurements. -----------------


def graph(angles, entangling_angle):
    """Superposition, a ring of RZZ(phi), then the encoding RY(theta_i): a weighted graph state, read off one axis.

    RZZ commutes with Z and turns <X_i> = 1 of the |+> state into cos(phi)^deg(i) (weighted graph states: Hein et al.,
    quant-ph/0602096); RY(theta) measures -Z as X sin(theta) - Z cos(theta). Hence
    -<Z_i> = sin(theta_i) cos(phi)^deg(i), whatever the other angles are.
    """
    circuit = QuantumCircuit(len(angles), name="graph")
    circuit.h(circuit.qubits)
    for a, b in ring(len(angles)):
        circuit.rzz(entangling_angle, a, b)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
    return circuit


def product(angles, entangling_angle):
    """`graph` without its entangler: the control that keeps the noise independent. -<Z_i> = sin(theta_i)."""
    circuit = QuantumCircuit(len(angles), name="product")
    circuit.h(circuit.qubits)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
    return circuit


def chain(angles, entangling_angle):
    """H, RY(theta), a chain of CX, RY(theta / 2): data re-uploading (Perez-Salinas et al., Quantum 4, 226, 2020).

    With c, s for cos, sin of theta and c_n = 1:
    -<Z_j> = sin(theta_j / 2) c_j c_j+1 + (-1)^j cos(theta_j / 2) s_0 ... s_j.
    Linear near 0 only: up to |s| = 0.4 every sign is right, but the size is biased, see `describe`.
    """
    circuit = QuantumCircuit(len(angles), name="chain")
    circuit.h(circuit.qubits)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
    for qubit in range(len(angles) - 1):
        circuit.cx(qubit, qubit + 1)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle / 2, qubit)
    return circuit


def literal(angles, entangling_angle):
    """H, a chain of CX, RY(theta): the method as its words are often coded.

    CX maps |++> to itself, so the CX gates do nothing and the state is a product: nothing is entangled.
    """
    circuit = QuantumCircuit(len(angles), name="literal")
    circuit.h(circuit.qubits)
    for qubit in range(len(angles) - 1):
        circuit.cx(qubit, qubit + 1)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
    return circuit


# Name -> (function, encoding range r: the largest |sin(theta)| used). To add a circuit, add its function and a row.
CIRCUITS = {"graph": (graph, 1.0), "product": (product, 1.0), "chain": (chain, 0.4), "literal": (literal, 1.0)}


def ring(num_qubits):
    """Edges of a ring: one for 2 qubits, none for 1."""
    if num_qubits < 3:
        return [(0, 1)] if num_qubits == 2 else []
    return [(qubit, (qubit + 1) % num_qubits) for qubit in range(num_qubits)]


class Ansatz(NamedTuple):
    """A circuit ready for use. n is the number of qubits.

    circuit: QuantumCircuit with n angle parameters `angles` (ParameterVector, radians), no measurements.
    encoding_range: r of theta = arcsin(r x).  response: R, float64 (n, n).  inverse: R^-1, float64 (n, n).
    """

    circuit: QuantumCircuit
    angles: ParameterVector
    encoding_range: float
    response: np.ndarray
    inverse: np.ndarray

    def theta(self, x):
        """Rotation angles of the encoding, radians, for x in [-1, 1]."""
        return np.arcsin(self.encoding_range * np.asarray(x, dtype=np.float64))


def build_ansatz(name, num_qubits, entangling_angle):
    """The circuit `name` on num_qubits qubits; entangling_angle in radians, for circuits that use it.

    Raises ValueError for an unknown name, a circuit that cannot be batched, and a response that cannot be inverted.
    """
    if name not in CIRCUITS:
        raise ValueError(f"CIRCUIT = {name!r}: must be one of {', '.join(CIRCUITS)}")
    function, encoding_range = CIRCUITS[name]
    angles = ParameterVector("θ", num_qubits)
    circuit = function(angles, entangling_angle)
    if circuit.num_qubits != num_qubits or circuit.num_clbits:
        raise ValueError(
            f"CIRCUIT = {name!r} has {circuit.num_qubits} qubits and {circuit.num_clbits} classical bits: "
            f"must have NUM_QUBITS = {num_qubits} and none, it is measured for you"
        )
    response = response_matrix(circuit, angles, encoding_range)
    singular = np.linalg.svd(response, compute_uv=False)
    if singular[-1] < SMALLEST_RESPONSE or singular[0] > LARGEST_CONDITION * singular[-1]:
        raise ValueError(
            f"CIRCUIT = {name!r} with NUM_QUBITS = {num_qubits} and ENTANGLING_ANGLE = {entangling_angle:.6g}: "
            f"its response cannot be inverted, the singular values are {singular[0]:.2g} to {singular[-1]:.2g}; "
            f"the smallest must be {SMALLEST_RESPONSE:g} at least, the condition number {LARGEST_CONDITION:g} at most"
        )
    return Ansatz(circuit, angles, encoding_range, response, np.linalg.inv(response))


def response_matrix(circuit, angles, encoding_range):
    """R_ij = d(-<Z_i>)/dx_j at x = 0, float64 (n, n), from exact states by the parameter-shift rule.

    Every gate that carries data is a rotation exp(-i a P / 2), so the derivative with respect to its own angle a is
    (f(a + pi/2) - f(a - pi/2)) / 2 (Mitarai et al., PRA 98, 032309, 2018; Schuld et al., PRA 99, 032331, 2019), and the
    chain rule adds da/dtheta_j and dtheta/dx = encoding_range at 0.
    """
    response = np.zeros((len(angles), len(angles)))
    for position, instruction in enumerate(circuit.data):
        if not instruction.is_parameterized():
            continue
        constant, slopes = linear_angle(instruction.operation, angles)
        means = []
        for shift in (math.pi / 2, -math.pi / 2):
            shifted = circuit.copy_empty_like()
            for index, other in enumerate(circuit.data):
                operation = other.operation
                if index == position:
                    operation = type(operation)(constant + shift)
                shifted.append(operation, other.qubits)
            state = Statevector(shifted.assign_parameters(dict.fromkeys(shifted.parameters, 0.0)))
            means.append(state.probabilities() @ minus_z(len(angles)))
        response += np.outer((means[0] - means[1]) / 2, slopes) * encoding_range
    return response


def linear_angle(operation, angles):
    """(constant, slopes): the angle of a rotation as constant + slopes @ theta; ValueError where it is not one."""
    if operation.name not in EIGENBASES:
        raise ValueError(f"gate {operation.name!r} carries an angle: must be one of {', '.join(EIGENBASES)}")
    angle = operation.params[0]
    used = dict.fromkeys(angle.parameters, 0.0)
    try:
        constant = float(angle.bind(used))
        slopes = [float(angle.gradient(parameter)) if parameter in used else 0.0 for parameter in angles]
    except TypeError:
        raise ValueError(f"angle {angle} of a gate {operation.name}: must be a linear function of theta") from None
    return constant, np.array(slopes)


def outcome_bits(num_qubits):
    """Bits of every outcome, uint8 (2^n, n), little-endian: column i is qubit i."""
    return ((np.arange(2**num_qubits)[:, None] >> np.arange(num_qubits)) & 1).astype(np.uint8)


def minus_z(num_qubits):
    """Eigenvalues of -Z_i for every outcome, float64 (2^n, n): +1 where bit i is one, -1 where it is zero."""
    return 2.0 * outcome_bits(num_qubits) - 1.0


def outcome_probabilities(ansatz, x):
    """Exact distribution of the outcomes for one group x, float64 (n,), by qiskit's Statevector: float64 (2^n,)."""
    return Statevector(ansatz.circuit.assign_parameters({ansatz.angles: ansatz.theta(x)})).probabilities()


def noise_covariance(probabilities):
    """Sigma(x): covariance of the -Z_i in one shot, float64 (n, n), from the outcome distribution (2^n,)."""
    eigenvalues = minus_z(int(math.log2(len(probabilities))))
    centred = eigenvalues - probabilities @ eigenvalues
    return (centred * probabilities[:, None]).T @ centred


def meyer_wallach(ansatz, x):
    """Global entanglement Q in [0, 1] of the state for group x (Meyer & Wallach, J. Math. Phys. 43, 4273, 2002).

    Q = 2 (1 - mean purity of the single-qubit states) (Brennen, QIC 3, 619, 2003); 0 exactly for product states.
    """
    state = Statevector(ansatz.circuit.assign_parameters({ansatz.angles: ansatz.theta(x)}))
    n = state.num_qubits
    purities = [partial_trace(state, [q for q in range(n) if q != kept]).purity().real for kept in range(n)]
    return 2 * (1 - float(np.mean(purities)))


def num_groups(numel, num_qubits):
    """Groups, each a circuit of its own, that a weight with numel entries is cut into."""
    return -(-numel // num_qubits)


# --- The Aer engine ---------------------------------------------------------------------------------------------------


class AerBackend:
    """Aer's statevector simulator with the batch as an address register and the data as phases of its state vector.

    m extra qubits in uniform superposition index a block of 2^m groups; they are the lowest qubits, data qubit i is
    qubit m + i. A rotation exp(-i a P / 2) about a Pauli P is a diagonal between fixed gates to the eigenbasis of P and
    back. Aer applies every fixed gate, to a whole block at once; the diagonals, whose angles differ from group to
    group, are multiplied into its state vector, an array lent by numpy, in one go for a layer of rotations. What needs
    no simulation of every group: the gates before any data, alike in all of them, Aer applies once; and a qubit that no
    gate has joined to others yet has a state of its own, which is written down.

    |amplitude|^2, one column per address, is every group's exact distribution, from which the shots are drawn: what
    measuring gives, at a hundredth of the cost of Aer's own counts.
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
        self.draw = self.rule.draw
        if self.draw is joint_shots and all(len(instruction.qubits) == 1 for instruction in ansatz.circuit.data):
            self.draw = independent_shots  # the same law where no gate joins qubits, in a sixth of the time
        self.eigenvalues = minus_z(ansatz.circuit.num_qubits)
        self.block = block or STREAM_GROUPS * min(4, max(1, 2**7 // len(self.eigenvalues)))  # of 2^16 amplitudes or so
        self.lent = device == "CPU"  # Aer computes in numpy's array itself; a GPU takes a copy and gives it back
        gates, self.entering, self.layers = compile_batched(ansatz)
        self.start = np.eye(len(self.eigenvalues), 1, dtype=complex)
        apply_gates(self.new_state(), self.start, gates, lent=False)
        self.registers = []  # that no thread is using at the moment

    def probabilities(self, x):
        """Exact outcome distributions, float64 (groups, 2^n), for x in [-1, 1], float64 (groups, n)."""
        blocks = [self.simulate(x[first : first + self.block]) for first in range(0, len(x), self.block)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def simulate(self, x):
        """`probabilities` of at most one block of groups; in memory, an outcome's groups lie next to each other."""
        groups, n = x.shape
        sines = np.zeros((n, self.block))
        sines[:, :groups] = self.ansatz.encoding_range * x.T
        try:  # taken out while in use: what an exception leaves half done is not used again
            states, amplitudes, diagonal = self.registers.pop()
        except IndexError:
            states, amplitudes, diagonal = self.new_register()
        # Amplitudes lack the factor of the superposition: each column is a state of norm 1.
        amplitudes[:] = self.start
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
        self.registers.append((states, amplitudes, diagonal))
        return distributions.T

    def new_state(self):
        # One thread: Aer's OpenMP threads would spin against torch's, and a block of this size fits a core's cache.
        return AerState(method="statevector", device=self.device, fusion_enable=False, max_parallel_threads=1)

    def new_register(self):
        """(states, amplitudes, diagonal): AerStates, the array that they compute in on a CPU, and one for phases.

        Arrays are complex (2^n, block). states[-1] has all qubits; where they enter one by one, states[i] has the first
        i + 1. Lent once and written anew for each block: Aer leaks 64 bytes whenever a state is initialized.
        """
        amplitudes, diagonal = np.zeros((2, len(self.start), self.block), dtype=complex)
        states = [self.new_state() for _ in self.entering or [None]]
        for index, state in enumerate(reversed(states) if self.lent else ()):
            state.initialize(amplitudes[: len(amplitudes) >> index].reshape(-1), copy=False)
            weakref.finalize(self, state.move_to_ndarray)  # taken back before Aer would free what is not its own
        return states, amplitudes, diagonal

    def measure(self, x, shots, seed, first=0):
        """(means, circuits, shots): e = (ones - zeros) / shots, float64 (groups, n), and what was run for them.

        x: float64 (groups, n) in [-1, 1]. seed: tuple of ints. first: the first group's place in the update, a
        multiple of STREAM_GROUPS; every STREAM_GROUPS groups draw their shots from a random stream of their own.
        """
        distributions = self.probabilities(x)
        means = np.empty_like(x)
        for start in range(0, len(x), STREAM_GROUPS):
            rows = slice(start, start + STREAM_GROUPS)
            generator = np.random.default_rng(np.random.SeedSequence((*seed, (first + start) // STREAM_GROUPS)))
            means[rows] = self.draw(distributions[rows], self.eigenvalues, shots, generator)
        return means, len(x), len(x) * shots * self.rule.draws_shots


def apply_gates(state, amplitudes, gates, lent):
    """Let Aer apply fixed gates (qubits, matrix or CXGate) to amplitudes, complex (2^n, 2^m), in place.

    state: AerState. lent: it computes in this very array; otherwise a copy goes there and back.
    """
    address_qubits = amplitudes.shape[1].bit_length() - 1
    if not lent:
        state.initialize(amplitudes.reshape(-1), copy=True)
    for qubits, gate in gates:
        data = [address_qubits + qubit for qubit in qubits]
        state.apply_cx(*data) if gate is CXGate else state.apply_unitary(data, gate)
    state.flush()
    if not lent:
        amplitudes[:] = state.move_to_ndarray().reshape(amplitudes.shape)
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
        basis = EIGENBASES[gate.name]
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


# --- The update rule --------------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What an update took: entries of the weight measured, circuits run, shots measured, and seconds of wall time."""

    entries: int
    circuits: int
    shots: int
    seconds: float


def encode(values, scale=None):
    """(x, s): x = g / s in [-1, 1], float64 (groups, n), and s, float64 (groups, 1).

    values: groups of the gradient, float64 (groups, n). s is max |g| of each group, or `scale` for all of them.
    """
    if scale is None:
        scale = np.abs(values).max(axis=1, keepdims=True)
    scale = np.broadcast_to(scale, (len(values), 1))
    return values / np.where(scale > 0, scale, 1.0), scale


def decode(means, scale, inverse):
    """The measured gradient s R^-1 e, float64 (groups, n). means: e (groups, n). A group with s = 0 gets zeros."""
    return np.where(scale > 0, scale * np.einsum("ij,gj->gi", inverse, means), 0.0)


def largest_groups(gradients, num_qubits, most):
    """The `most` groups of largest norm among several gradients: for each an int64 tensor of its groups, ascending.

    Where not every group can be measured, these are the ones worth a device's time.
    """
    norms = [as_groups(gradient.detach().float().cpu(), num_qubits).norm(dim=1) for gradient in gradients]
    owner = torch.repeat_interleave(torch.arange(len(norms)), torch.tensor([len(norm) for norm in norms]))
    index = torch.cat([torch.arange(len(norm)) for norm in norms])
    best = torch.argsort(torch.cat(norms), descending=True, stable=True)[:most]
    return [index[best[owner[best] == which]].sort().values for which in range(len(norms))]


def as_groups(gradient, num_qubits):
    """A tensor as groups of num_qubits entries, (groups, num_qubits), the tail padded with zeros."""
    flat = gradient.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % num_qubits)).view(-1, num_qubits)


def quantum_parameter_update(
    gradient, backend, *, learning_rate, shots, seed, normalization="group", groups=None, share=(0, 1)
):
    """The update of one weight tensor, learning_rate * (gradient as measured), to be subtracted from the weights.

    gradient: torch tensor, any shape, floating dtype and device; left untouched.
    backend: engine that measures the circuits, e.g. AerBackend(build_ansatz("graph", 5, math.pi / 4)).
    learning_rate: float; 1.0 returns the measured gradient itself.  shots: int, measurements per circuit.
    seed: (run seed, step, tensor index), ints in 0 .. 2^32 - 1: no two draws of a run may share it.
    normalization: "group" or "tensor", the max |g| that scales the encoding.
    groups: the groups to measure, int64 tensor, ascending; the others get no update. None is all of them.
    share: (which, of), ints: measure only this part of them, so that the updates of all shares add up to the whole one.

    Returns (update, Usage of the share); update has the shape, dtype and device of gradient and is a function of the
    arguments alone.
    Raises FloatingPointError for a gradient or update that is not finite, ValueError for other bad arguments.
    """
    started = time.perf_counter()
    if not gradient.is_floating_point():
        raise ValueError(f"gradient has dtype {gradient.dtype}: must be a floating point dtype")
    if normalization not in ("group", "tensor"):
        raise ValueError(f"NORMALIZATION = {normalization!r}: must be one of group, tensor")
    flat = gradient.detach().reshape(-1).cpu()
    if not torch.isfinite(flat).all():
        raise FloatingPointError("the gradient is not finite")
    ansatz, n = backend.ansatz, backend.ansatz.circuit.num_qubits
    scale = float(flat.abs().max()) if normalization == "tensor" and flat.numel() else None
    gradient_groups = as_groups(flat, n)
    update = torch.zeros_like(gradient_groups)
    measured = len(gradient_groups) if groups is None else len(groups)
    which, of = share
    blocks = range(which * backend.block, measured, of * backend.block)

    def measure_block(first):
        """Measure and decode the block that begins with group `first`; returns circuits, shots and groups measured."""
        rows = slice(first, min(first + backend.block, measured))
        rows = rows if groups is None else groups[rows]
        x, scales = encode(np.asfortranarray(gradient_groups[rows].double().numpy()), scale)
        means, circuits, taken = backend.measure(x, shots, seed, first)
        update[rows] = torch.from_numpy(learning_rate * decode(means, scales, ansatz.inverse)).to(update.dtype)
        return circuits, taken, len(x)

    if len(blocks) == 1:
        used = [measure_block(blocks[0])]  # without a thread, so that Ctrl-C ends the wait for a device's job
    else:
        # Threads: drawing the shots, half of the work, leaves the interpreter free to simulate the next block.
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
            used = list(threads.map(measure_block, blocks))
    if not torch.isfinite(update).all():
        raise FloatingPointError(f"the update is not finite in {gradient.dtype}")
    update = update.reshape(-1)[: flat.numel()].reshape(gradient.shape).to(gradient.device)
    circuits, taken, rows = map(sum, zip(*used, strict=True)) if used else (0, 0, 0)
    to_the_end = bool(blocks) and blocks[-1] + backend.block >= measured  # the share has the last of the groups
    padded = to_the_end and (groups is None or int(groups[-1]) == len(gradient_groups) - 1)
    entries = rows * n - (gradient_groups.numel() - flat.numel() if padded else 0)
    return update, Usage(entries, circuits, taken, time.perf_counter() - started)


# --- What the circuits are: `python quantum_circuits.py` --------------------------------------------------------------


def describe(name, ansatz, shots):
    """Lines of text about a circuit: what is drawn, how it answers, how it is entangled, and what it costs."""
    n = ansatz.circuit.num_qubits
    uniform = np.random.default_rng(0).uniform(-1, 1, (100, n))
    entanglement = np.mean([meyer_wallach(ansatz, x) for x in uniform])
    covariances = [noise_covariance(outcome_probabilities(ansatz, x)) for x in uniform]
    means = np.array([outcome_probabilities(ansatz, x) for x in uniform]) @ minus_z(n)
    bias = np.sqrt(np.mean((means @ ansatz.inverse.T - uniform) ** 2))
    spread = np.sqrt(np.mean([np.diag(ansatz.inverse @ c @ ansatz.inverse.T) for c in covariances]) / shots)
    native = transpile(ansatz.circuit, basis_gates=["cx", "rz", "sx", "x"], seed_transpiler=0, optimization_level=1)
    circuits = num_groups(768 * 768, n)
    indent = "  response R       "
    response = np.array2string(np.round(ansatz.response, 9) + 0.0, precision=3, prefix=indent)
    half = noise_covariance(outcome_probabilities(ansatz, np.full(n, 0.5)))
    covariance = np.array2string(np.round(half, 3) + 0.0, precision=3, prefix=indent)
    return (
        f"{name}: {n} qubits\n"
        f"  response R       {response}\n"
        f"  condition        {np.linalg.cond(ansatz.response):.3g}, encoding range {ansatz.encoding_range}\n"
        f"  entanglement     Meyer-Wallach Q = {entanglement:.3f}, mean over 100 random groups\n"
        f"  bias             {bias:.3f} max |g| per weight, root mean square over uniform x\n"
        f"  shot noise       {spread:.3f} max |g| per weight, root mean square, at {shots} shots\n"
        f"  covariance       {covariance} per shot, at x = 0.5\n"
        f"  depth            {native.depth()}, {native.count_ops().get('cx', 0)} CX, as rz, sx, x and cx gates\n"
        f"  cost             a 768 x 768 weight: {circuits:,} circuits, {circuits * shots:,} shots per step\n"
    )


if __name__ == "__main__":
    import sys
    from pathlib import Path

    from harness import command_line, files

    def main(command):
        settings = command.runs[0]
        folder = Path(settings.results_dir) / "circuits"
        for name in CIRCUITS:
            ansatz = build_ansatz(name, settings.num_qubits, settings.entangling_angle)
            folder.mkdir(parents=True, exist_ok=True)
            print(describe(name, ansatz, settings.shots))
            figure = ansatz.circuit.draw("mpl", fold=-1)
            files.write_atomically(folder / f"{name}.png", lambda path, figure=figure: figure.savefig(path, dpi=150))
        print(f"drawings: {folder}")

    command_line.run_as_script(main, command_line.parse_or_exit(sys.argv[1:]))
