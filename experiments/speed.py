"""How fast the circuits of an update are measured, here and elsewhere: `python experiments/speed.py`.

Workload W: 131,072 groups of 5 weights, `graph`; W2: the same with `chain`; -<Z> of every qubit wanted, from 1, 10, 100
and 1000 shots. All contestants are timed in turn in one process, on all cores, and checked against exact states. Prints
tables and writes speed.json, shots.png, bars.png and scaling.png into RESULTS_DIR/speed/. Peers, each as its own manual
has it and once more inside our loop, with our draws: `pip install -r experiments/requirements.txt`.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as train.py does: spinning threads starve whatever else runs
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
import importlib.util
import math
import platform
import resource
import time
import types
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.quantum_info import Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2
from tqdm import tqdm

import quantum_circuits as qc
from harness.command_line import run_as_script
from harness.files import write_json
from report.figures import add_title, new_figure, save_figure
from update_rules import RULES

GROUPS, QUBITS, PHI = 2**17, 5, math.pi / 4
WORKLOADS = {"W": "graph", "W2": "chain"}
CHECKED = 2000  # groups whose exact means qiskit's Statevector gives
PEER_BLOCK = 2**13  # groups a peer simulates at once: the fastest of 2^11 to 2^17, or within 10% of it
COLOUR, GREY = RULES["quantum"].colour, "#999999"


class Contestant(NamedTuple):
    """measure(theta, shots), theta float32 (groups, n), radians, returns e (groups, n).

    groups: how many of W it is given; what is given fewer is so slow that it takes part at 1000 shots alone.
    """

    name: str
    measure: object
    groups: int = GROUPS
    package: str = "qiskit-aer"


def main(command):
    folder = Path(os.path.expanduser(command.results_dir)) / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    scaling = measure_scaling()
    tables = [
        {"workload": name, "circuit": circuit, "shots": shots, "rows": rows}
        for name, circuit in WORKLOADS.items()
        for shots, rows in run_workload(name, circuit, command.shots, command.repeats).items()
    ]
    content = {
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "groups": GROUPS,
        "qubits": QUBITS,
        "repeats": command.repeats,
        "tables": tables,
        "scaling": scaling,
    }
    write_json(folder / "speed.json", content)
    save_bars(folder / "bars.png", tables)
    save_shots(folder / "shots.png", tables)
    save_scaling(folder / "scaling.png", scaling)
    for table in tables:
        print_table(table, command.repeats)
    print(f"memory beyond gradient and update, {scaling['largest']:,} weights: {scaling['memory_mb']:.0f} MB")
    print(f"files: {folder}")


# --- The workloads ----------------------------------------------------------------------------------------------------


def workload(circuit, groups=GROUPS):
    """(ansatz, x, theta): float32 (groups, n), each group with an entry 1, so that x is g / max |g|."""
    ansatz = qc.build_ansatz(circuit, QUBITS, PHI)
    x = np.random.default_rng(0).uniform(-1, 1, (groups, QUBITS)).astype(np.float32)
    x[np.arange(groups), np.arange(groups) % QUBITS] = 1.0
    return ansatz, x, ansatz.theta(x).astype(np.float32)


def run_workload(name, circuit, all_shots, repeats):
    """{shots: rows of a table}: every contestant timed repeats times, in turn, after a warm-up."""
    ansatz, x, theta = workload(circuit)
    exact = exact_means(ansatz, x[:CHECKED])
    contestants, missing = all_contestants(circuit, ansatz, x)
    tables = {}
    for shots in all_shots:
        present = [c for c in contestants if c.groups == GROUPS or shots == 1000]
        timed = {contestant.name: [] for contestant in present}
        with tqdm(total=len(present) * (repeats + 1), desc=f"{name}, {shots} shots", dynamic_ncols=True) as bar:
            for _ in range(repeats + 1):
                for contestant in present:
                    bar.set_postfix_str(contestant.name)
                    before = time.perf_counter(), time.process_time()
                    means = contestant.measure(theta[: contestant.groups], shots)
                    took = time.perf_counter() - before[0], time.process_time() - before[1]
                    timed[contestant.name].append([seconds * GROUPS / contestant.groups for seconds in took])
                    check(contestant.name, means, exact, shots)
                    bar.update()
        ours = np.median(timed[present[0].name][1:], axis=0)[0]
        tables[shots] = [{"name": peer, "missing": "not installed"} for peer in missing]
        for contestant in reversed(present):
            first, *others = timed[contestant.name]
            seconds, cpu_seconds = np.median(others, axis=0)
            row = {"name": contestant.name, "version": version(contestant.package), "seconds": seconds}
            row |= {"cpu_seconds": cpu_seconds, "ratio": seconds / ours, "first_call_seconds": first[0]}
            row |= {"all_seconds": [round(one[0], 4) for one in others], "measured_groups": contestant.groups}
            tables[shots].insert(0, row)
    return tables


def exact_means(ansatz, x):
    """-<Z> of every qubit, float64 (groups, n), by qiskit's Statevector."""
    return np.array([qc.outcome_probabilities(ansatz, row) for row in x]) @ qc.minus_z(QUBITS)


def check(name, means, exact, shots):
    """Raise unless the means follow the exact ones and scatter about them by as much as the shots say, not less.

    Five standard errors each: the slope of means against exact ones; from 100 shots on, every mean; and, from 100
    groups on, the sum of the squares of the residuals.
    """
    rows = min(len(means), CHECKED)
    exact = exact[:rows]
    residuals, variance = np.asarray(means[:rows], dtype=np.float64) - exact, (1 - exact**2) / shots + 1e-12
    slope, slope_error = (residuals * exact).sum() / (exact**2).sum(), np.sqrt((exact**2 * variance).sum())
    pull = slope * (exact**2).sum() / slope_error
    largest = np.max(np.abs(residuals) / (np.sqrt(variance) + 1 / shots)) if shots >= 100 else 0.0
    scatter = (residuals**2).sum() / variance.sum()
    few = rows < 100 or abs(scatter - 1) < 5 * math.sqrt(2 * QUBITS / exact.size)
    if abs(pull) > 5 or largest > 5 or not few:
        raise ValueError(
            f"{name} at {shots} shots is wrong: slope {pull:.1f}, largest {largest:.1f} standard errors off; "
            f"scatter {scatter:.2f} of what the shots say"
        )


# --- The contestants --------------------------------------------------------------------------------------------------


def all_contestants(circuit, ansatz, x):
    """(contestants, names of those not installed), ours first."""
    backend, gradient = qc.AerBackend(ansatz), torch.from_numpy(x)

    def ours(theta, shots):
        """The whole update, encoding and decoding included."""
        update, _ = qc.quantum_parameter_update(gradient, backend, learning_rate=1.0, shots=shots, seed=(0, 0, 0))
        return update[:CHECKED].double().numpy() @ ansatz.response.T

    floor = numpy_probabilities(circuit)
    found = [
        Contestant("this repository, Aer", ours),
        Contestant("Aer, transpile + run per circuit", per_circuit(ansatz), groups=16),
        Contestant("Aer, parameter_binds at run time", parameter_binds(ansatz), groups=1024),
        Contestant("Aer, SamplerV2, one broadcast PUB", broadcast_pub(ansatz), groups=1024),
        Contestant("numpy statevector, our loop", in_our_loop(floor), package="numpy"),
    ]
    peers = [
        ("PennyLane default.qubit", "pennylane", "pennylane", pennylane_probabilities),
        ("TensorCircuit-NG on JAX", "tensorcircuit", "tensorcircuit-ng", tensorcircuit_probabilities),
        ("TorchQuantum-NG", "torchquantum", "torchquantum-ng", torchquantum_probabilities),
    ]
    missing = []
    for name, module, package, build in peers:
        if importlib.util.find_spec(module) is None:
            missing.append(name)
        else:
            probabilities = build(circuit)
            found.append(Contestant(name, as_documented(probabilities), package=package))
            found.append(Contestant(f"{name}, our loop", in_our_loop(probabilities), package=package))
    return found, missing


def as_documented(probabilities):
    """A peer as its manual has it: one call for all groups, then numpy draws the shots."""

    def measure(theta, shots):
        return (
            np.random.default_rng(0).multinomial(shots, normalised(probabilities(theta))) @ qc.minus_z(QUBITS) / shots
        )

    return measure


def in_our_loop(probabilities):
    """A peer in place of Aer in our own loop: blocks, their shots drawn as ours, on threads, during the next block."""

    def draw(block, seed, shots):
        block, generator = normalised(block), np.random.default_rng(seed)
        rows = range(0, len(block), qc.STREAM_GROUPS)
        parts = [block[row : row + qc.STREAM_GROUPS] for row in rows]
        return np.concatenate([RULES["quantum"].draw(part, qc.minus_z(QUBITS), shots, generator) for part in parts])

    def measure(theta, shots):
        starts = range(0, len(theta), PEER_BLOCK)
        blocks = (probabilities(theta[start : start + PEER_BLOCK]) for start in starts)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return np.concatenate(list(threads.map(draw, blocks, starts, [shots] * len(starts))))

    return measure


def normalised(probabilities):
    """Distributions, float64 (groups, 2^n), little-endian, from what a peer gives, in single precision."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def measured(ansatz):
    circuit = ansatz.circuit.copy()
    circuit.measure_all()
    return circuit


def means_of_counts(counts, shots):
    """e of one circuit from its counts; qiskit prints the highest qubit first."""
    outcomes = np.bincount([int(key, 2) for key in counts], weights=list(counts.values()), minlength=2**QUBITS)
    return outcomes @ qc.minus_z(QUBITS) / shots


def per_circuit(ansatz):
    simulator, circuit = AerSimulator(), measured(ansatz)

    def measure(theta, shots):
        means = []
        for row in theta:
            bound = transpile(circuit.assign_parameters({ansatz.angles: row.astype(float)}), simulator)
            means.append(means_of_counts(simulator.run(bound, shots=shots).result().get_counts(), shots))
        return np.array(means)

    return measure


def parameter_binds(ansatz):
    simulator = AerSimulator(runtime_parameter_bind_enable=True)
    circuit = transpile(measured(ansatz), simulator)

    def measure(theta, shots):
        binds = {angle: column.astype(float).tolist() for angle, column in zip(ansatz.angles, theta.T, strict=True)}
        result = simulator.run(circuit, parameter_binds=[binds], shots=shots).result()
        return np.array([means_of_counts(counts, shots) for counts in result.get_counts()])

    return measure


def broadcast_pub(ansatz):
    sampler = SamplerV2()
    circuit = transpile(measured(ansatz), AerSimulator())

    def measure(theta, shots):
        order = [list(ansatz.angles).index(parameter) for parameter in circuit.parameters]
        bits = sampler.run([(circuit, theta[:, order].astype(float))], shots=shots).result()[0].data.meas
        return 2 * bits.to_bool_array(order="little").mean(axis=1) - 1

    return measure


def numpy_probabilities(circuit):
    """The floor, no library: states as complex64 (2, ..., 2, groups), qubit i on axis n - 1 - i."""
    first = QuantumCircuit(QUBITS)
    first.h(first.qubits)
    for edge in qc.ring(QUBITS) if circuit == "graph" else []:
        first.rzz(PHI, *edge)
    start = Statevector(first).data.astype(np.complex64).reshape((2,) * QUBITS + (1,))

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
                # The axis of control is gone there, the target's is not.
                flipped = np.flip(state[tuple(at_one)], QUBITS - 2 - control)
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


def torchquantum_probabilities(circuit):
    # Its data sets, of no use here, import torchvision, which must be of the very build of torch.
    sys.modules.setdefault("torchquantum.dataset", types.ModuleType("torchquantum.dataset"))
    import torchquantum
    from torchquantum import functional

    at = [QUBITS - 1 - qubit for qubit in range(QUBITS)]  # its first wire is the highest bit

    @torch.no_grad()
    def probabilities(theta):
        theta = torch.from_numpy(theta)
        state = torchquantum.QuantumDevice(n_wires=QUBITS, bsz=len(theta))
        for wire in at:
            functional.hadamard(state, wires=wire)
        if circuit == "graph":
            for a, b in qc.ring(QUBITS):
                functional.rzz(state, wires=[at[a], at[b]], params=PHI)
        for qubit in range(QUBITS):
            functional.ry(state, wires=at[qubit], params=theta[:, qubit])
        if circuit == "chain":
            for qubit in range(QUBITS - 1):
                functional.cnot(state, wires=[at[qubit], at[qubit + 1]])
            for qubit in range(QUBITS):
                functional.ry(state, wires=at[qubit], params=theta[:, qubit] / 2)
        return state.get_states_1d().abs().square().numpy()

    return probabilities


# --- Scaling ----------------------------------------------------------------------------------------------------------


def measure_scaling():
    """Seconds of an update against weights (5 qubits) and against qubits (a million weights), and its memory."""

    def seconds(weights, qubits):
        gradient = torch.randn(weights, generator=torch.Generator().manual_seed(0))
        backend = qc.AerBackend(qc.build_ansatz("graph", qubits, PHI))
        runs = [
            qc.quantum_parameter_update(gradient, backend, learning_rate=1.0, shots=1000, seed=(0, 0, 0))[1].seconds
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


def print_table(table, repeats):
    print(
        f"\n{table['workload']}: {GROUPS:,} groups, {QUBITS} qubits, {table['circuit']}, {table['shots']} shots; "
        f"median of {repeats}, in turn"
    )
    print(f"{'':40} {'version':>8} {'seconds':>10} {'CPU':>10} {'times ours':>11}")
    for row in table["rows"]:
        if "missing" in row:
            print(f"{row['name']:40} {row['missing']}")
            continue
        note = f"  extrapolated from {row['measured_groups']:,}" if row["measured_groups"] < GROUPS else ""
        numbers = f"{row['seconds']:10,.3f} {row['cpu_seconds']:10,.3f} {row['ratio']:11,.2f}"
        print(f"{row['name']:40} {row['version']:>8} {numbers}{note}")


def save_bars(path, tables):
    """Seconds of each contestant at the most shots, on a logarithmic axis, a panel per workload."""
    most = max(table["shots"] for table in tables)
    tables = [table for table in tables if table["shots"] == most]
    figure = new_figure(11, 4.6)
    for ax, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        rows = sorted((row for row in table["rows"] if "missing" not in row), key=lambda row: -row["seconds"])
        names = [row["name"] + ("*" if row["measured_groups"] < GROUPS else "") for row in rows]
        colours = [COLOUR if row["ratio"] == 1 else GREY for row in rows]
        ax.barh(range(len(rows)), [row["seconds"] for row in rows], color=colours)
        ax.set_yticks(range(len(rows)), names)
        for place, row in enumerate(rows):
            ax.text(row["seconds"] * 1.15, place, f"{row['seconds']:,.2f}", va="center", fontsize=8)
        ax.set(xscale="log", xlabel="seconds", title=f"{table['workload']}: {table['circuit']}")
        ax.set_xlim(right=ax.get_xlim()[1] * 50)
    add_title(figure, f"{GROUPS:,} circuits of {QUBITS} qubits, {most} shots. * extrapolated from a sample.")
    save_figure(figure, path)


def save_shots(path, tables):
    """Seconds against shots, a panel per workload, of the contestants that take part at every number of shots."""
    figure = new_figure(11, 4.2)
    names = list(dict.fromkeys(table["workload"] for table in tables))
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
        panel = [table for table in tables if table["workload"] == name]
        for row in panel[0]["rows"]:
            points = [
                (t["shots"], other["seconds"])
                for t in panel
                for other in t["rows"]
                if other["name"] == row["name"] and other.get("measured_groups") == GROUPS
            ]
            if len(points) < len(panel):
                continue
            ours = row["ratio"] == 1
            style = {"color": COLOUR, "lw": 2} if ours else {"ls": "--" if "our loop" in row["name"] else "-"}
            ax.plot(*zip(*points, strict=True), marker="o", ms=3, label=row["name"], **style)
        ax.set(xscale="log", yscale="log", xlabel="shots", title=f"{name}: {panel[0]['circuit']}")
    ax.figure.axes[0].set_ylabel("seconds")
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    add_title(figure, f"{GROUPS:,} circuits of {QUBITS} qubits; dashed: a peer's simulation inside our loop.")
    save_figure(figure, path)


def save_scaling(path, scaling):
    """Seconds against weights and against qubits, each beside the law expected."""
    figure = new_figure(9, 3.6)
    panels = [
        ("by_weights", "weights (5 qubits)", lambda weights: weights, "proportional"),
        ("by_qubits", "qubits (1,000,000 weights)", lambda n: 2**n / n, "like $2^n / n$"),
    ]
    for ax, (key, label, law, text) in zip(figure.subplots(1, 2), panels, strict=True):
        sizes, seconds = np.array(list(scaling[key])), np.array(list(scaling[key].values()))
        expected = law(sizes.astype(float))
        ax.plot(sizes, expected * seconds[-1] / expected[-1], color=GREY, ls="--", label=text)
        ax.plot(sizes, seconds, color=COLOUR, marker="o", label="measured")
        ax.set(yscale="log", xlabel=label, ylabel="seconds per update, 1000 shots")
        if key == "by_weights":
            ax.set_xscale("log")
        ax.legend(frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 10, 100, 1000], help="%(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="%(default)s")
    parser.add_argument("--results_dir", default="results", help="%(default)s")
    parser.add_argument("--debug", action="store_true", help="a traceback where there is an error")
    run_as_script(main, parser.parse_args())
