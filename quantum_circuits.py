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
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Barrier, Gate, ParameterVector
from qiskit.quantum_info import Statevector, partial_trace

from shot_allocation import allocate, draw_whole, inclusion_chances

# With fewer shots the circuits take most of the time, and threads would only wait for each other's interpreter lock.
THREADED_SHOTS = 32
# A circuit that answers more weakly, or less evenly, than this multiplies the shot noise a thousandfold: refused.
SMALLEST_RESPONSE = 1e-3
LARGEST_CONDITION = 1e3
ROTATIONS = ("rx", "ry", "rz", "rzz")  # gates that may carry data


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
# At theta = 0 the rotation must change <Z> to first order: RY on |+> does; RX or RZ on |+> and RY on |0> do not.
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
    if not 0 < encoding_range <= 1:
        raise ValueError(f"CIRCUIT = {name!r} has the encoding range {encoding_range}: must be above 0 and at most 1")
    angles = ParameterVector("θ", num_qubits)
    circuit = function(angles, entangling_angle)
    if wrong := what_cannot_be_batched(circuit, angles):
        raise ValueError(f"CIRCUIT = {name!r}{wrong}")
    where = f"CIRCUIT = {name!r} with NUM_QUBITS = {num_qubits}"
    if circuit != function(angles, entangling_angle + 1):
        where += f" and ENTANGLING_ANGLE = {entangling_angle:.6g}"
    try:
        response = response_matrix(circuit, angles, encoding_range)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if wrong := what_cannot_be_inverted(response):
        raise ValueError(f"{where}: {wrong}")
    return Ansatz(circuit, angles, encoding_range, response, np.linalg.inv(response))


def what_cannot_be_batched(circuit, angles):
    """What is wrong with the form of what a circuit function has returned, to follow its name; "" where nothing is."""
    if not isinstance(circuit, QuantumCircuit):
        return f": its function returns {circuit!r}: must return a QuantumCircuit"
    if circuit.num_qubits != len(angles) or circuit.num_clbits:
        return (
            f" has {circuit.num_qubits} qubits and {circuit.num_clbits} classical bits: "
            f"must have NUM_QUBITS = {len(angles)} and none, it is measured for you"
        )
    if foreign := circuit.parameters - set(angles):
        names = ", ".join(sorted(parameter.name for parameter in foreign))
        return f" has a parameter of its own, {names}: must have the angles given alone, and numbers"
    for operation in (instruction.operation for instruction in circuit.data):
        if not isinstance(operation, Gate | Barrier):
            return f" holds {operation.name}: must hold gates alone"
    return ""


def what_cannot_be_inverted(response):
    """Why a response matrix R is refused: the qubits and angles that do nothing, else its singular values; or ""."""
    singular = np.linalg.svd(response, compute_uv=False)
    if singular[-1] >= SMALLEST_RESPONSE and singular[0] <= LARGEST_CONDITION * singular[-1]:
        return ""
    silent, unread = ((np.abs(response).max(axis=axis) < SMALLEST_RESPONSE).nonzero()[0] for axis in (1, 0))
    if len(silent):
        who = f"qubits {', '.join(map(str, silent))} do" if len(silent) > 1 else f"qubit {silent[0]} does"
        return (
            f"{who} not answer to the data: an encoding needs an axis that the rotation moves and no other gate takes "
            "away; start from |+>, by H, and rotate by RY"
        )
    if len(unread):
        return f"angle{'s' * (len(unread) > 1)} {', '.join(map(str, unread))} reach no qubit: each must rotate one"
    return (
        f"its response cannot be inverted, the singular values are {singular[0]:.2g} to {singular[-1]:.2g}; "
        f"the smallest must be {SMALLEST_RESPONSE:g} at least, the condition number {LARGEST_CONDITION:g} at most"
    )


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
    if operation.name not in ROTATIONS:
        raise ValueError(f"gate {operation.name!r} carries an angle: must be one of {', '.join(ROTATIONS)}")
    angle = operation.params[0]
    used = dict.fromkeys(angle.parameters, 0.0)
    try:
        constant = float(angle.bind(used))
        slopes = [float(angle.gradient(parameter)) if parameter in used else 0.0 for parameter in angles]
    except TypeError:
        raise ValueError(f"angle {angle} of a gate {operation.name}: must be a linear function of theta") from None
    return constant, np.array(slopes)


def minus_z(num_qubits):
    """Eigenvalues of -Z_i for every outcome, float64 (2^n, n): +1 where bit i of it is one, else -1."""
    return 2.0 * (np.arange(2**num_qubits)[:, None] >> np.arange(num_qubits) & 1) - 1.0


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


# --- Measuring a gradient ---------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What an update took: entries of the weight measured, circuits run, shots measured, and seconds of wall time.

    equal_noise, optimal_noise: see shot_allocation.Allocation, of the whole weight; 0 where shots are not allocated.
    """

    entries: int
    circuits: int
    shots: int
    seconds: float
    equal_noise: float = 0.0
    optimal_noise: float = 0.0


def encode(values, scale=None):
    """(x, s): x = g / s in [-1, 1], float64 (groups, n), and s, float64 (groups, 1).

    values: groups of the gradient, float64 (groups, n). s is max |g| of each group, or `scale` for all of them.
    """
    scale = scale_of(values, scale)
    return values / np.where(scale > 0, scale, 1.0), scale


def scale_of(values, scale=None):
    """s, float64 (groups, 1), see `encode`."""
    if scale is None:
        scale = np.abs(values).max(axis=1, keepdims=True)
    return np.broadcast_to(scale, (len(values), 1))


def decode(means, scale, inverse):
    """The measured gradient s R^-1 e, float64 (groups, n). means: e (groups, n). A group with s = 0 gets zeros."""
    return np.where(scale > 0, scale * np.einsum("ij,gj->gi", inverse, means), 0.0)


def largest_groups(gradients, num_qubits, most):
    """The `most` groups of largest norm among several gradients: for each an int64 tensor of its groups, ascending.

    Where not every group can be measured, these are worth a device's time; that the others get nothing is a bias.
    """
    norms = [as_groups(gradient.detach().double().cpu(), num_qubits).norm(dim=1) for gradient in gradients]
    best = torch.argsort(torch.cat(norms), descending=True, stable=True)[:most]
    return by_tensor(best.sort().values, norms)


def sampled_groups(gradients, num_qubits, most, seed):
    """(groups, factors): `most` groups among several gradients, drawn with chances p in proportion to max |g|.

    groups: for each gradient an int64 tensor, ascending.  factors: 1 / p for each of them, float64 tensors; estimates
    times these have the gradient as their mean.  seed: (run seed, step), ints.
    """
    groups = [as_groups(gradient.detach().double().cpu(), num_qubits) for gradient in gradients]
    scales = [values.abs().amax(dim=1) for values in groups]
    chances = inclusion_chances(torch.cat(scales).numpy(), most)
    # A stream of its own: no other seed is six numbers long.
    drawn = draw_whole(chances, np.random.default_rng(np.random.SeedSequence((*seed, 0, 0, 0, 1))))
    chosen = torch.from_numpy(drawn).nonzero()[:, 0]
    groups = by_tensor(chosen, scales)
    factors = (1 / torch.from_numpy(chances)[chosen]).split([len(rows) for rows in groups])
    return groups, list(factors)


def by_tensor(places, parts):
    """Ascending places among several tensors end to end, as a list of places within each of them."""
    ends = np.cumsum([0, *map(len, parts)])
    return [places[(places >= a) & (places < b)] - a for a, b in itertools.pairwise(ends.tolist())]


def as_groups(gradient, num_qubits):
    """A tensor as groups of num_qubits entries, (groups, num_qubits), the tail padded with zeros."""
    flat = gradient.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % num_qubits)).view(-1, num_qubits)


def quantum_parameter_update(
    gradient,
    backend,
    *,
    learning_rate,
    shots,
    seed,
    normalization="group",
    allocation="equal",
    groups=None,
    factors=None,
    share=(0, 1),
    transform=None,
):
    """The update of one weight tensor, learning_rate * (gradient as measured), to be subtracted from the weights.

    gradient: torch tensor, any shape, floating dtype and device; left untouched.
    backend: engine that measures the circuits, e.g. aer_engine.AerBackend(build_ansatz("graph", 5, math.pi / 4)).
    learning_rate: float; 1.0 returns the measured gradient itself.
    shots: measurements per circuit, a whole number from 1; with allocation "optimal" their mean, any positive number.
    seed: (run seed, step, tensor index), ints in 0 .. 2^32 - 1: no two draws of a run may share it.
    normalization: "group" or "tensor", the max |g| that scales the encoding.
    allocation: "equal", or "optimal": the same total, spent where it takes most noise away (shot_allocation.py).
    groups: the groups to measure, int64 tensor, each once; the others count as 0. None is all of them.
    factors: of the updates of `groups`, float64 tensor, such as 1 / chance of being chosen. None is 1.
    share: (which, of), ints: measure only this part of them, so that the updates of all shares add up to the whole one.
    transform: function that makes something else of the measured gradient, see update_rules.Rule.

    Returns (update, Usage of the share); update has the shape, dtype and device of gradient and is a function of the
    arguments alone.
    Raises FloatingPointError for a gradient or update that is not finite, ValueError for other bad arguments.
    """
    started = time.perf_counter()
    if not gradient.is_floating_point():
        raise ValueError(f"gradient has dtype {gradient.dtype}: must be a floating point dtype")
    if normalization not in ("group", "tensor"):
        raise ValueError(f"NORMALIZATION = {normalization!r}: must be one of group, tensor")
    if allocation not in ("equal", "optimal"):
        raise ValueError(f"SHOT_ALLOCATION = {allocation!r}: must be one of equal, optimal")
    if backend.draws_shots and (not shots > 0 or (allocation == "equal" and shots != int(shots))):
        raise ValueError(f"SHOTS = {shots!r}: must be positive, and with equal shots a whole number")
    if backend.draws_shots and allocation == "equal":
        shots = int(shots)
    flat = gradient.detach().reshape(-1).cpu()
    if not torch.isfinite(flat).all():
        raise FloatingPointError("the gradient is not finite")
    ansatz, n = backend.ansatz, backend.ansatz.circuit.num_qubits
    scale = float(flat.abs().max()) if normalization == "tensor" and flat.numel() else None
    all_groups = as_groups(flat, n)
    chosen = all_groups if groups is None else all_groups[groups]
    shots_of_groups, noise = None, ()
    if allocation == "optimal" and backend.draws_shots:
        values = np.asfortranarray(chosen.double().numpy())
        spent = allocate(values, scale_of(values, scale), ansatz.inverse, shots, seed)
        places, shots_of_groups, noise = torch.from_numpy(spent.groups), spent.shots, spent[-2:]
        spread = torch.from_numpy(spent.factors)
        factors = spread if factors is None else spread * factors[places]
        groups = places if groups is None else groups[places]
        chosen = chosen[places]
    measured = torch.zeros_like(chosen)
    num_padded, which, of = all_groups.numel() - flat.numel(), *share
    blocks = range(which * backend.block, len(chosen), of * backend.block)

    def measure_block(first):
        """Measure and decode the block that begins at place `first`; returns entries, circuits and shots measured."""
        rows = slice(first, min(first + backend.block, len(chosen)))
        x, scales = encode(np.asfortranarray(chosen[rows].double().numpy()), scale)
        taken = shots if shots_of_groups is None else shots_of_groups[rows]
        means, *used = backend.measure(x, taken, seed, first)
        if factors is not None:
            scales = scales * factors[rows, None].numpy()
        decoded = decode(means, scales, ansatz.inverse)
        if transform is not None:
            decoded = transform(decoded, scales)
        measured[rows] = torch.from_numpy(learning_rate * decoded).to(measured.dtype)
        last = len(all_groups) - 1  # the group that is padded
        padded = rows.stop > last if groups is None else bool((groups[rows] == last).any())
        return len(x) * n - num_padded * padded, *used

    if len(blocks) == 1 or shots < THREADED_SHOTS:
        used = [measure_block(first) for first in blocks]  # no thread, so that Ctrl-C ends the wait for a device's job
    else:
        # Threads: drawing the shots leaves the interpreter free to simulate the next block.
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
            used = list(threads.map(measure_block, blocks))
    if not torch.isfinite(measured).all():
        raise FloatingPointError(f"the update is not finite in {gradient.dtype}")
    update = measured if groups is None else torch.zeros_like(all_groups).index_copy_(0, groups, measured)
    update = update.reshape(-1)[: flat.numel()].reshape(gradient.shape).to(gradient.device)
    entries, circuits, taken = map(sum, zip(*used, strict=True)) if used else (0, 0, 0)
    return update, Usage(entries, circuits, taken, time.perf_counter() - started, *noise)


# --- What the circuits are: `python quantum_circuits.py` --------------------------------------------------------------


def describe(name, ansatz, shots):
    """Lines of text about a circuit: what is drawn, how it answers, how it is entangled, and what it costs."""
    n = ansatz.circuit.num_qubits
    uniform = np.random.default_rng(0).uniform(-1, 1, (100, n))
    entanglement = np.mean([meyer_wallach(ansatz, x) for x in uniform])
    probabilities = np.array([outcome_probabilities(ansatz, x) for x in uniform])
    covariances, means = map(noise_covariance, probabilities), probabilities @ minus_z(n)
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
        f"  cost             a 768 x 768 weight: {circuits:,} circuits, {circuits * shots:,.0f} shots per step\n"
    )


if __name__ == "__main__":
    import os
    import sys
    from pathlib import Path

    from harness import command_line, files

    def main(command):
        settings = command.runs[0]
        folder = Path(os.path.expanduser(settings.results_dir)) / "circuits"
        folder.mkdir(parents=True, exist_ok=True)
        refused = 0
        for name in CIRCUITS:
            try:
                circuit = CIRCUITS[name][0](ParameterVector("θ", settings.num_qubits), settings.entangling_angle)
                if isinstance(circuit, QuantumCircuit):
                    figure = circuit.draw("mpl", fold=-1)
                    files.write_atomically(folder / f"{name}.png", lambda path, f=figure: f.savefig(path, dpi=150))
                ansatz = build_ansatz(name, settings.num_qubits, settings.entangling_angle)
                print(describe(name, ansatz, settings.shots))
            except Exception as error:  # a function that a user has added may raise any kind
                if command.debug:
                    raise
                print(f"{name}: {command_line.exit_message(error)[0]}\n")
                refused += 1
        print(f"drawings in {folder}; the one that trains: {folder / settings.circuit}.png")
        return 2 if refused else 0

    command_line.run_as_script(main, command_line.parse_or_exit(sys.argv[1:]))
