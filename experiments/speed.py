"""How fast the circuits of an update are measured, here and elsewhere: `python experiments/speed.py`.

Workload W: 131,072 groups of 5 weights, `graph`; W2: the same with `chain`; 1000 shots each, -<Z> of every qubit
wanted. All contestants are timed in turn in one process and checked against exact states. Prints tables and writes
benchmark.json, benchmark.png and scaling.png into RESULTS_DIR/benchmark/. Peers: tests/benchmark_requirements.txt.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as train.py does: spinning threads starve whatever else runs
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import importlib.util
import json
import math
import platform
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from qiskit import transpile
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2
from tqdm import tqdm

import config
import quantum_circuits as qc
from report import figures
from update_rules import RULES

GROUPS, QUBITS, SHOTS, PHI = 2**17, 5, 1000, math.pi / 4
REPEATS = 5
OUR_COLOUR = RULES["quantum"].colour
WORKLOADS = {"W": "graph", "W2": "chain"}
CHECKED = 200  # groups whose exact means qiskit's Statevector gives
PEER_BLOCK = (
    2**13
)  # groups a peer simulates at once: the fastest of 2^11 to 2^17 for PennyLane, within 10% for the others


class Contestant(NamedTuple):
    """measure(theta), theta float32 (groups, n), radians, returns e (groups, n). groups: how many of W it is given."""

    name: str
    measure: object
    groups: int = GROUPS
    package: str = "qiskit-aer"


def main(argv):
    settings = config.load(argv)
    folder = Path(os.path.expanduser(settings.results_dir)) / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    scaling = measure_scaling()
    tables = {name: run_workload(name, circuit) for name, circuit in WORKLOADS.items()}
    content = {
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "groups": GROUPS,
        "qubits": QUBITS,
        "shots": SHOTS,
        "repeats": REPEATS,
        "workloads": tables,
        "scaling": scaling,
    }
    text = json.dumps(content, indent=2) + "\n"
    config.write_atomically(folder / "benchmark.json", lambda path: path.write_text(text, encoding="utf-8"))
    save_bars(folder / "benchmark.png", tables)
    save_scaling(folder / "scaling.png", scaling)
    for name, rows in tables.items():
        print_table(name, rows)
    print(f"memory beyond gradient and update, {scaling['largest']:,} weights: {scaling['memory_mb']:.0f} MB")
    print(f"files: {folder}")


# --- The workloads ----------------------------------------------------------------------------------------------------


def run_workload(name, circuit):
    """Rows of a workload's table: every contestant timed REPEATS times, in turn, after a warm-up that is checked."""
    ansatz = qc.build_ansatz(circuit, QUBITS, PHI)
    x = np.random.default_rng(0).uniform(-1, 1, (GROUPS, QUBITS)).astype(np.float32)
    x[np.arange(GROUPS), np.arange(GROUPS) % QUBITS] = 1.0  # the largest entry of a group, so that x is g / max |g|
    theta = np.arcsin(np.float32(ansatz.encoding_range) * x)
    exact = np.array([qc.outcome_probabilities(ansatz, row) @ qc.minus_z(QUBITS) for row in x[:CHECKED]])
    contestants, missing = all_contestants(circuit, ansatz, x)
    seconds = {contestant.name: [] for contestant in contestants}
    compile_seconds = {}
    with tqdm(total=len(contestants) * (REPEATS + 1), desc=name, dynamic_ncols=True) as bar:
        for repeat in range(REPEATS + 1):
            for contestant in contestants:
                bar.set_postfix_str(contestant.name)
                started = time.perf_counter()
                means = contestant.measure(theta[: contestant.groups])
                took = time.perf_counter() - started
                if repeat:
                    seconds[contestant.name].append(took)
                else:
                    compile_seconds[contestant.name] = took
                check(contestant.name, means, exact)
                bar.update()
    medians = {c.name: float(np.median(seconds[c.name])) * GROUPS / c.groups for c in contestants}
    ours = medians[contestants[0].name]
    rows = [
        {
            "name": c.name,
            "version": version(c.package),
            "seconds": medians[c.name],
            "ratio": medians[c.name] / ours,
            "first_call_seconds": compile_seconds[c.name],
            "all_seconds": [round(value * GROUPS / c.groups, 4) for value in seconds[c.name]],
            "measured_groups": c.groups,
        }
        for c in contestants
    ]
    return rows + [{"name": peer, "missing": "not installed"} for peer in missing]


def check(name, means, exact):
    """Means within 5 standard errors of the exact ones, and scattered by as much as the shots say, not less."""
    rows = min(len(means), CHECKED)
    error = np.sqrt((1 - exact[:rows] ** 2) / SHOTS) + 1 / SHOTS
    residuals = (np.asarray(means[:rows], dtype=np.float64) - exact[:rows]) / error
    scatter = math.sqrt(np.mean(residuals**2))
    if not (np.abs(residuals).max() < 5 and (rows < 20 or 0.8 < scatter < 1.1)):
        raise SystemExit(
            f"{name}: wrong, up to {np.abs(residuals).max():.1f} standard errors off, scatter {scatter:.2f}"
        )


# --- The contestants --------------------------------------------------------------------------------------------------


def all_contestants(circuit, ansatz, x):
    """(contestants, names of those not installed), ours first."""
    backend = qc.AerBackend(ansatz)
    gradient = torch.from_numpy(x)

    def ours(theta):
        """The whole update, encoding and decoding included."""
        update, _ = qc.quantum_parameter_update(gradient, backend, learning_rate=1.0, shots=SHOTS, seed=(0, 0, 0))
        return update[:CHECKED].double().numpy() @ ansatz.response.T

    found = [
        Contestant("this repository, Aer", ours),
        Contestant("Aer, transpile + run per circuit", per_circuit(ansatz), groups=16),
        Contestant("Aer, parameter_binds at run time", parameter_binds(ansatz), groups=1024),
        Contestant("Aer, SamplerV2, one broadcast PUB", broadcast_pub(ansatz), groups=1024),
        Contestant("numpy statevector (floor)", shots_streamed(numpy_probabilities(circuit, ansatz)), package="numpy"),
    ]
    peers = [
        ("PennyLane default.qubit", "pennylane", pennylane_probabilities),
        ("TensorCircuit-NG on JAX", "tensorcircuit-ng", tensorcircuit_probabilities),
    ]
    missing = []
    for name, package, build in peers:
        if importlib.util.find_spec(package.removesuffix("-ng")) is None:
            missing.append(name)
        else:
            probabilities = build(circuit)
            found.append(Contestant(name, shots_at_once(probabilities), package=package))
            found.append(Contestant(f"{name}, our streaming", shots_streamed(probabilities), package=package))
    return found, missing


def draw(probabilities, seed):
    """Means of SHOTS drawn from probabilities, float (groups, 2^n), little-endian, by numpy."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    return np.random.default_rng(seed).multinomial(SHOTS, probabilities) @ qc.minus_z(QUBITS) / SHOTS


def shots_at_once(probabilities):
    """A peer as its manual has it: one call for all groups, then numpy draws the shots."""
    return lambda theta: draw(probabilities(theta), 0)


def shots_streamed(probabilities):
    """A peer in place of Aer in our own loop: blocks, their shots drawn on two threads during the next block."""

    def measure(theta):
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            blocks = [theta[first : first + PEER_BLOCK] for first in range(0, len(theta), PEER_BLOCK)]
            return np.concatenate(list(threads.map(draw, map(probabilities, blocks), range(len(blocks)))))

    return measure


def measured(ansatz):
    circuit = ansatz.circuit.copy()
    circuit.measure_all()
    return circuit


def means_of_counts(counts):
    """e of one circuit from its counts; qiskit prints the highest qubit first."""
    outcomes = np.bincount([int(key, 2) for key in counts], weights=list(counts.values()), minlength=2**QUBITS)
    return outcomes @ qc.minus_z(QUBITS) / SHOTS


def per_circuit(ansatz):
    simulator, circuit = AerSimulator(), measured(ansatz)

    def measure(theta):
        means = []
        for row in theta:
            bound = transpile(circuit.assign_parameters({ansatz.angles: row.astype(float)}), simulator)
            means.append(means_of_counts(simulator.run(bound, shots=SHOTS).result().get_counts()))
        return np.array(means)

    return measure


def parameter_binds(ansatz):
    simulator = AerSimulator(runtime_parameter_bind_enable=True)
    circuit = transpile(measured(ansatz), simulator)

    def measure(theta):
        binds = {angle: column.astype(float).tolist() for angle, column in zip(ansatz.angles, theta.T, strict=True)}
        result = simulator.run(circuit, parameter_binds=[binds], shots=SHOTS).result()
        return np.array([means_of_counts(counts) for counts in result.get_counts()])

    return measure


def broadcast_pub(ansatz):
    sampler = SamplerV2()
    circuit = transpile(measured(ansatz), AerSimulator())

    def measure(theta):
        order = [list(ansatz.angles).index(parameter) for parameter in circuit.parameters]
        bits = sampler.run([(circuit, theta[:, order].astype(float))], shots=SHOTS).result()[0].data.meas
        return 2 * bits.to_bool_array(order="little").mean(axis=1) - 1

    return measure


def numpy_probabilities(circuit, ansatz):
    """The floor: states as complex64 (2, ..., 2, groups), qubit i on axis n - 1 - i."""
    start = qc.compile_batched(ansatz)[0].astype(np.complex64).reshape((2,) * QUBITS + (1,))

    def rotate(state, angles):
        for qubit, angle in enumerate(angles):
            cosine, sine = np.cos(angle / 2), np.sin(angle / 2)
            state = np.moveaxis(state, QUBITS - 1 - qubit, 0)
            state = np.stack([cosine * state[0] - sine * state[1], sine * state[0] + cosine * state[1]])
            state = np.moveaxis(state, 0, QUBITS - 1 - qubit)
        return state

    def probabilities(theta):
        angles = np.ascontiguousarray(theta.T)
        state = rotate(np.broadcast_to(start, start.shape[:-1] + angles.shape[1:]), angles)
        if circuit == "chain":
            for control in range(QUBITS - 1):
                at_one = [slice(None)] * QUBITS
                at_one[QUBITS - 1 - control] = 1
                flipped = np.flip(
                    state[tuple(at_one)], QUBITS - 2 - control
                )  # the axis of control is gone, target's is not
                state = state.copy()
                state[tuple(at_one)] = flipped
            state = rotate(state, angles / 2)
        return (state.real**2 + state.imag**2).reshape(2**QUBITS, -1).T

    return probabilities


def pennylane_probabilities(circuit):
    import pennylane as qml

    @qml.qnode(qml.device("default.qubit", wires=QUBITS))
    def probabilities(theta):
        for qubit in range(QUBITS):
            qml.Hadamard(qubit)
        if circuit == "graph":
            for edge in qc.ring(QUBITS):
                qml.IsingZZ(PHI, edge)
        for qubit in range(QUBITS):
            qml.RY(theta[:, qubit], qubit)
        if circuit == "chain":
            for qubit in range(QUBITS - 1):
                qml.CNOT([qubit, qubit + 1])
            for qubit in range(QUBITS):
                qml.RY(theta[:, qubit] / 2, qubit)
        return qml.probs(wires=list(reversed(range(QUBITS))))  # its first wire is the highest bit

    return probabilities


def tensorcircuit_probabilities(circuit):
    import jax
    import tensorcircuit

    tensorcircuit.set_backend("jax")

    def one(theta):
        state = tensorcircuit.Circuit(QUBITS)
        at = [QUBITS - 1 - qubit for qubit in range(QUBITS)]  # its first qubit is the highest bit
        for qubit in at:
            state.h(qubit)
        if circuit == "graph":
            for a, b in qc.ring(QUBITS):
                state.rzz(at[a], at[b], theta=PHI)
        for qubit in range(QUBITS):
            state.ry(at[qubit], theta=theta[qubit])
        if circuit == "chain":
            for qubit in range(QUBITS - 1):
                state.cnot(at[qubit], at[qubit + 1])
            for qubit in range(QUBITS):
                state.ry(at[qubit], theta=theta[qubit] / 2)
        return state.probability()

    return jax.jit(jax.vmap(one))


# --- Scaling ----------------------------------------------------------------------------------------------------------


def measure_scaling():
    """Seconds of an update against weights (5 qubits) and against qubits (a million weights), and its memory."""

    def seconds(weights, qubits):
        gradient = torch.randn(weights, generator=torch.Generator().manual_seed(0))
        backend = qc.AerBackend(qc.build_ansatz("graph", qubits, PHI))
        runs = [
            qc.quantum_parameter_update(gradient, backend, learning_rate=1.0, shots=SHOTS, seed=(0, 0, 0))[1].seconds
            for _ in range(3)
        ]
        return float(np.median(runs))

    by_weights, by_qubits = {}, {}
    seconds(10**5, QUBITS)  # warm up, so that memory counts the update alone
    with tqdm(total=11, desc="scaling", dynamic_ncols=True) as bar:
        for qubits in range(2, 9):
            by_qubits[qubits] = seconds(10**6, qubits)
            bar.update()
        for weights in (10**4, 10**5, 10**6, 10**7):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            by_weights[weights] = seconds(weights, QUBITS)
            bar.update()
    # Linux counts ru_maxrss in KiB. Gradient and update are 4 bytes per weight each.
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - 8 * weights
    return {"by_weights": by_weights, "by_qubits": by_qubits, "largest": weights, "memory_mb": max(grown, 0) / 1e6}


# --- Output -----------------------------------------------------------------------------------------------------------


def print_table(name, rows):
    print(
        f"\n{name}: {GROUPS:,} groups, {QUBITS} qubits, {WORKLOADS[name]}, {SHOTS} shots; median of {REPEATS}, in turn"
    )
    print(f"{'':40} {'version':>8} {'seconds':>10} {'times ours':>11}")
    for row in rows:
        if "missing" in row:
            print(f"{row['name']:40} {row['missing']}")
            continue
        note = f"  extrapolated from {row['measured_groups']:,}" if row["measured_groups"] < GROUPS else ""
        print(f"{row['name']:40} {row['version']:>8} {row['seconds']:10,.2f} {row['ratio']:11,.2f}{note}")


def save_bars(path, tables):
    """Seconds of each contestant, on a logarithmic axis, a panel per workload."""
    figure = figures.new_figure(11, 4.2)
    for ax, (name, rows) in zip(figure.subplots(1, len(tables)), tables.items(), strict=True):
        rows = sorted((row for row in rows if "missing" not in row), key=lambda row: -row["seconds"])
        colors = [OUR_COLOUR if row["ratio"] == 1 else figures.BATCH_COLOUR for row in rows]
        names = [row["name"] + ("*" if row["measured_groups"] < GROUPS else "") for row in rows]
        ax.barh(range(len(rows)), [row["seconds"] for row in rows], color=colors)
        ax.set_yticks(range(len(rows)), names)
        for place, row in enumerate(rows):
            ax.text(row["seconds"] * 1.15, place, f"{row['seconds']:,.2f}", va="center", fontsize=8)
        ax.set(xscale="log", xlabel="seconds", title=f"{name}: {WORKLOADS[name]}")
        ax.set_xlim(right=ax.get_xlim()[1] * 50)
    figures.add_title(figure, f"{GROUPS:,} circuits of {QUBITS} qubits, {SHOTS} shots. * extrapolated from a sample.")
    figures.save_figure(figure, path)


def save_scaling(path, scaling):
    """Seconds against weights and against qubits, each beside the law expected."""
    figure = figures.new_figure(9, 3.6)
    panels = [
        ("by_weights", "weights (5 qubits)", lambda weights: weights, "proportional"),
        ("by_qubits", "qubits (1,000,000 weights)", lambda n: 2**n / n, "like $2^n / n$"),
    ]
    for index, (key, label, law, text) in enumerate(panels):
        ax = figure.add_subplot(1, 2, index + 1)
        sizes, seconds = np.array(list(scaling[key])), np.array(list(scaling[key].values()))
        expected = law(sizes.astype(float))
        ax.plot(sizes, expected * seconds[-1] / expected[-1], color=figures.BATCH_COLOUR, ls="--", label=text)
        ax.plot(sizes, seconds, color=OUR_COLOUR, marker="o", label="measured")
        ax.set(yscale="log", xlabel=label, ylabel="seconds per update")
        if key == "by_weights":
            ax.set_xscale("log")
        ax.legend(frameon=False)
    figures.save_figure(figure, path)


if __name__ == "__main__":
    config.run_as_script(main)
