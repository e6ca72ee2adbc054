"""Device noise at full coverage: what would the noise of a device do if every weight could be measured on it?

On a device a step measures a few groups of thousands. So the response of a simulated device, fake:FakeFez, is fitted on
random groups, means = A x + b, for the circuit `graph`, and the fit takes the place of the Aer engine's means for all
groups; shots of each qubit are drawn independently, decoding is that of the circuit without noise. What the fit leaves
out (`left`, beyond shot noise) is in fit.json. Word order, as in word_order.py, at 1 and 1000 shots, with SGD and with
AdamW on the measured gradient, seeds 0-4; learning rates of word_order.py.

Written before the runs:
Primary comparison: 1000 shots with AdamW, against `classical`, equivalent within 2 points.
Secondary (Holm, or too few seeds): every other arm against `classical`.
Prediction: A is close to the ideal one times a factor, which AdamW does not see and which is a lower rate for SGD; b
adds the same number times max |g| to every weight of a place in a group, a bias that grows with the steps. With AdamW
no loss of 2 points at 1000 shots; at 1 shot what one shot loses anyway.

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
from harness import command_line
from harness.files import write_json

DEVICE, FITTED_GROUPS, FITTED_SHOTS = "fake:FakeFez", 300, 4000
FIT = "FITTED_DEVICE"  # environment variable with the path of fit.json: then this script is train.py with that engine
SEEDS, MANY_SHOTS = range(5), 1000
SGD, ADAMW = word_order.QUANTUM_SGD, word_order.QUANTUM_ADAMW
QUESTION = {
    "question": "What would the noise of a device do at full coverage?",
    "primary": [ADAMW | {"shots": MANY_SHOTS}, word_order.CLASSICAL],
    "secondary": [
        [ADAMW | {"shots": 1}, word_order.CLASSICAL],
        [SGD | {"shots": MANY_SHOTS}, word_order.CLASSICAL],
        [SGD | {"shots": 1}, word_order.CLASSICAL],
    ],
    "margin_points": 2.0,
    "prediction": "No loss of 2 points at 1000 shots with AdamW; at 1 shot what one shot loses anyway.",
}


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
    results = lanes.ROOT / "results"
    work, reference, before = results / "device_noise", results / "reference" / "device_noise", results / "reference"
    adamw, _, sgd = lanes.read_chosen(before / "word_order" / "tuning.json")
    make_word_order(given.sst2, work / "data")
    lanes.ask(reference, QUESTION)
    fit = reference / "fit.json"
    if not fit.exists():
        write_json(fit, fit_device(DEVICE, quantum_circuits.build_ansatz("graph", 5, math.pi / 4)))
    common, names = lanes.on_data(word_order.COMMON, given, work / "data" / "final", "word order")
    classical = [common | word_order.CLASSICAL | adamw | {"seed": seed} for seed in SEEDS]
    lanes.run_all(classical, work / "classical", given.lanes, reference, names, [before / "word_order"])
    arms = [ADAMW | adamw | {"shots": MANY_SHOTS}, SGD | sgd | {"shots": MANY_SHOTS}]
    arms += [ADAMW | adamw | {"shots": 1}, SGD | sgd | {"shots": 1}]
    os.environ[FIT] = str(fit)
    runs = [common | arm | {"seed": seed} for seed in SEEDS for arm in arms]
    lanes.run_all(runs, work / "final", given.lanes, reference, names, program=Path(__file__))


if __name__ == "__main__":
    if os.environ.get(FIT):
        train_with_fit(os.environ[FIT])
    main()
