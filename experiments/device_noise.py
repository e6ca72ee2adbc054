"""Device noise at full coverage: what would the noise of a device do if every weight could be measured on it?

On a device a step measures a few groups of thousands. So the response of a simulated device, fake:FakeFez, is fitted on
random groups, means = A x + b, for the circuit `graph`, and the fit takes the place of the Aer engine's means for all
groups; shots of each qubit are drawn independently, decoding is that of the circuit without noise. What the fit leaves
out (`left`, to be compared with `shot_noise`, which it includes) is in fit.json. Word order, as in word_order.py, at 1
and 1000 shots, with SGD and with AdamW on the measured gradient, seeds 0-5; learning rates of word_order.py.

Written before the runs:
Primary comparison: 1000 shots with AdamW, with the device's response minus without, equivalent within 2 points.
Secondary (Holm): the same at 1 shot, and with SGD.
Prediction: A is close to the ideal one times a factor, which AdamW does not see and which is a lower rate for SGD; b
adds the same number times max |g| to every weight of a place in a group, a bias that grows with the steps. With AdamW
no loss of 2 points at 1000 shots, nor at 1.

Both kinds of runs have the same settings, so they lie in two folders, fitted/ and ideal/ (what word_order.py and
randomness.py made already is copied); against_ideal.json holds the comparisons.

Usage: python experiments/device_noise.py --model FOLDER --sst2 FOLDER [--lanes 2], after word_order.py
"""

import json
import math
import os
import sys
from pathlib import Path

import lanes
import numpy as np
import word_order
from data import make_word_order

import devices
import quantum_circuits
import train
from aer_engine import AerBackend
from harness import command_line, run_folder
from harness.files import write_json

DEVICE, FITTED_GROUPS, FITTED_SHOTS = "fake:FakeFez", 300, 4000
FIT = "FITTED_DEVICE"  # environment variable with the path of fit.json: then this script is train.py with that engine
SEEDS, MARGIN = range(6), 0.02
# Optimizer on the measured gradient and shots, the primary comparison first.
ARMS = [("adamw", 1000), ("adamw", 1), ("sgd", 1000), ("sgd", 1)]


class FittedDevice(AerBackend):
    """The Aer engine with the means of a device's fit, A x + b, in place of the exact ones."""

    def __init__(self, ansatz, fit):
        super().__init__(ansatz, "independent")
        self.name = f"fit of {fit['device']}"
        self.slope, self.offset = np.array(fit["slope"]), np.array(fit["offset"])

    def probabilities(self, x):
        """Distributions of independent qubits that have these means, float64 (groups, 2^n)."""
        ones = (1 + (x @ self.slope.T + self.offset).clip(-1, 1)) / 2
        distribution = np.ones((len(x), 1))
        for one in ones.T[:, :, None]:  # little-endian: the last qubit is the highest bit
            distribution = np.hstack([distribution * (1 - one), distribution * one])
        return distribution


def fit_device(name, ansatz, groups=FITTED_GROUPS, shots=FITTED_SHOTS):
    """The least-squares fit of a device's means, a dict: device, slope A (n, n), offset b (n,), ideal_slope, and left,
    the root mean square of what it leaves of the means, with what shot noise alone would leave, shot_noise."""
    device, _ = devices.open_device(name, ansatz.circuit.num_qubits, True)
    backend = devices.DeviceBackend(ansatz, device)
    x = np.random.default_rng(0).uniform(-1, 1, (groups, ansatz.circuit.num_qubits))
    means, *_ = backend.measure(x, shots, (0, 1, 0))
    design = np.hstack([x, np.ones((groups, 1))])
    solution = np.linalg.lstsq(design, means, rcond=None)[0]
    spared = math.sqrt(groups / (groups - design.shape[1]))
    return {
        **{"device": name, "groups": groups, "shots": shots},
        **{"slope": solution[:-1].T.tolist(), "offset": solution[-1].tolist(), "ideal_slope": ansatz.response.tolist()},
        "left": float(np.sqrt(np.mean((means - design @ solution) ** 2)) * spared),
        "shot_noise": float(np.sqrt(np.mean((1 - means**2) / shots))),
    }


def train_with_fit(path):
    """Be train.py, with the fit of a device as the engine of every rule that measures."""
    fit, make_backend = json.loads(Path(path).read_text(encoding="utf-8")), train.make_backend

    def make_fitted(settings):
        backend = make_backend(settings)
        return backend and FittedDevice(backend.ansatz, fit)

    train.make_backend = make_fitted
    command_line.run_as_script(train.main, command_line.parse_or_exit(sys.argv[1:]))


def main():
    given = lanes.arguments(__doc__.splitlines()[0])
    work, published = lanes.ROOT / "results" / "device_noise", lanes.ROOT / "results" / "reference"
    reference, before = published / "device_noise", [published / "word_order", published / "randomness" / "word_order"]
    adamw, _, sgd = lanes.read_chosen(before[0] / "tuning.json")
    make_word_order(given.sst2, work / "data")
    reference.mkdir(parents=True, exist_ok=True)
    fit = reference / "fit.json"
    if not fit.exists():
        write_json(fit, fit_device(DEVICE, quantum_circuits.build_ansatz("graph", 5, math.pi / 4)))
    common, names = lanes.on_data(word_order.COMMON, given, work / "data" / "final", "word order")
    runs = [common | run for run in runs_of({"adamw": adamw, "sgd": sgd})]
    lanes.run_all(runs, work / "ideal", given.lanes, reference / "ideal", names, before)
    os.environ[FIT] = str(fit)
    lanes.run_all(runs, work / "fitted", given.lanes, reference / "fitted", names, program=Path(__file__))
    found = [lanes.final_accuracies(reference / kind) for kind in ("fitted", "ideal")]
    identities = [lanes.identity_of(run, names) for run in runs]
    first = run_folder.read(next((reference / "ideal").glob("run_*")))
    examples = first["environment"]["data"]["evaluation_examples"]
    write_json(reference / "against_ideal.json", compare([[of[key] for key in identities] for of in found], examples))


def runs_of(rates):
    """The settings of the runs, seed by seed, and of each seed in the order of ARMS. rates: settings by optimizer."""
    arms = [{"update_rule": "quantum", "quantum_optimizer": name, "shots": shots} | rates[name] for name, shots in ARMS]
    return [arm | {"seed": seed} for seed in SEEDS for arm in arms]


def compare(accuracies, examples):
    """Final accuracies with the device's response minus without, a row for each of ARMS, as lanes.judge has it.

    accuracies: two lists, fitted and ideal, in the order of runs_of. examples: number of those evaluated.
    """
    rows = []
    for place, (optimizer, shots) in enumerate(ARMS):
        pairs = zip(*(found[place :: len(ARMS)] for found in accuracies), strict=True)
        differences = [fitted - ideal for fitted, ideal in pairs]
        rows.append({"optimizer": optimizer, "shots": shots, "differences": differences, "examples": examples})
    lanes.judge(rows, MARGIN)
    return rows


if __name__ == "__main__":
    if os.environ.get(FIT):
        train_with_fit(os.environ[FIT])
    main()
