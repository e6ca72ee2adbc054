"""Does the randomness help? At the same training loss, does a gradient measured with few shots generalise better?

The method's description hopes that quantum randomness escapes local minima. Two tasks: word order, as in
word_order.py, and sentiment, as in sentiment.py; rule `quantum` (graph) with AdamW on the measured gradient at 1, 10,
100 and 1000 shots, and `classical`, which is AdamW on the gradient itself; the learning rates are those of `classical`
there (run these two first, and shots.py: what they made is copied). Seeds 0-5.

A run's training loss is the mean over the steps since the evaluation before, its accuracy that of the evaluation. For
each seed both are compared at the lowest training loss that every arm reaches, by linear interpolation between
evaluations.

Written before the runs:
Primary comparison: word order, 1 shot against `classical`, accuracy at the same training loss: better, worse, or
equivalent within 2 points.
Secondary (Holm): the same with 10, 100 and 1000 shots, and all four on sentiment.
Prediction: none is better; 1 shot reaches a given training loss later and is then equivalent or worse.

Usage: python experiments/randomness.py --model FOLDER --sst2 FOLDER [--lanes 2]; writes matched.json beside the runs.
"""

import lanes
import numpy as np
import sentiment
import word_order
from data import make_sentiment, make_word_order

from harness import run_folder
from harness.files import write_json

SHOTS, SEEDS, MARGIN = (1, 10, 100, 1000), range(6), 0.02
QUANTUM, CLASSICAL = {"update_rule": "quantum", "quantum_optimizer": "adamw"}, {"update_rule": "classical"}


def main():
    given = lanes.arguments(__doc__.splitlines()[0])
    results = lanes.ROOT / "results"
    published = results / "reference"
    tasks = [("word_order", word_order, make_word_order, "word order", ["word_order", "shots"])]
    tasks += [("sentiment", sentiment, make_sentiment, "sst2", ["sentiment"])]
    for task, script, make, data, before in tasks:
        rate = lanes.read_chosen(published / task / "tuning.json")[0]
        work, reference = results / "randomness" / task, published / "randomness" / task
        make(given.sst2, work / "data")
        common, names = lanes.on_data(script.COMMON | rate, given, work / "data" / "final", data)
        arms = [CLASSICAL] + [QUANTUM | {"shots": shots} for shots in SHOTS]
        runs = [common | arm | {"seed": seed} for seed in SEEDS for arm in arms]
        lanes.run_all(runs, work, given.lanes, reference, names, [published / question for question in before])
    write_json(published / "randomness" / "matched.json", compare_at_same_loss(published / "randomness"))


def compare_at_same_loss(published):
    """What every number of shots does on the tasks, folders of `published`: lists of rows by task, see lanes.judge."""
    found = {task: differences_at_same_loss(published / task) for task in ("word_order", "sentiment")}
    lanes.judge([row for rows in found.values() for row in rows], MARGIN)
    return found


def differences_at_same_loss(reference):
    """Accuracy at each number of shots minus that of `classical`, a list of dicts: shots, differences, examples."""
    curves = {}
    for folder in sorted(reference.glob("run_*")):
        run = run_folder.read(folder)
        arm = run["settings"]["shots"] if run["settings"]["update_rule"] == "quantum" else 0
        curves[arm, run["settings"]["seed"]] = loss_and_accuracy(run["rows"])
    rows = []
    for shots in SHOTS:
        seeds = [seed for seed in SEEDS if (shots, seed) in curves and (0, seed) in curves]
        differences = []
        for seed in seeds:
            target = max(curves[arm, other][0].min() for arm, other in curves if other == seed)
            at = [accuracy_at(target, *curves[arm, seed]) for arm in (shots, 0)]
            differences.append(at[0] - at[1])
        examples = run["environment"]["data"]["evaluation_examples"]
        rows.append({"shots": shots, "differences": differences, "examples": examples})
    return rows


def loss_and_accuracy(rows):
    """(losses, accuracies), float arrays: at each evaluation after step 0, the mean loss since the one before."""
    losses, found = [], []
    for row in rows:
        if row["loss"] is not None:
            losses.append(row["loss"])
        elif losses:
            found.append((float(np.mean(losses)), row["eval_accuracy"]))
            losses = []
    return np.array(found).T


def accuracy_at(target, losses, accuracies):
    """The accuracy where the training loss first falls to `target`, by linear interpolation between evaluations."""
    reached = int(np.argmax(losses <= target))
    if reached == 0:
        return float(accuracies[0])
    before, after = losses[reached - 1], losses[reached]
    part = (before - target) / (before - after)
    return float(accuracies[reached - 1] + part * (accuracies[reached] - accuracies[reached - 1]))


if __name__ == "__main__":
    main()
