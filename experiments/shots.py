"""The frontier: how few shots does it take to train as well as the gradient itself does?

Word order, as in word_order.py: all-MiniLM-L6-v2, attention of the first two layers, AdamW on the measured gradient.
Circuits `graph` and `product` at 1 to 1000 shots; `independent` (the counts of `graph`, each drawn by itself) at 1 and
10; SHOT_ALLOCATION = "optimal" with `product` at means of 0.1 to 3; NORMALIZATION = "tensor" with `graph`. Everything
but `tensor` passes one classical number, max |g|, for every group of 5 weights. Seeds 0-9 for `classical`, `frozen`,
the primary comparison and 1 shot of `graph`, 0-5 for most other points of 1, 10 and 1000 shots and 100 of `graph`: the
fewest that can enter a Holm family; 0-4 for the rest. (Planned were 10 seeds at 1, 10 and 1000 shots: changed for want
of time, when most had three.)

LEARNING_RATE is chosen once for each level of noise, on the grid of word_order.py and seeds 100-102, with one arm of
the level, see LEVELS: relative noise a / S of 1 to 5, of 7 to 20, and above. Below 1 it is the rate of `classical`.
Where the largest rate of the grid is the best, the grid goes on with twice that rate, until it is not.

Written before the runs (noise over that of the minibatch: noise_budget.py, this model and data, at the start):
Primary comparison: 1 shot of `product` against 1000 shots of `graph`, equivalent within 2 points.
Secondary (Holm): every point against `classical`; `quantum` (graph) against `independent` at 1 shot.
Prediction: points whose shots add less noise than the minibatch has (graph from 30 shots, product from 3) lose less
than 2 points; so does 1 shot of product, at 2.6 times that noise, since AdamW averages over some ten steps; 1 shot of
graph, at 13 times, loses 2 to 5 points. One scale for the tensor is as `frozen` at 1, 10 and 100 shots (noise 7600,
760 and 76) and loses 2 to 5 points at 1000 (7.6). `independent` equals `quantum`. "optimal" is worth 2.9 times its
shots. (Before its runs, corrected to 2.6: each weight matrix has a total of its own; and less below one shot.)

Usage: python experiments/shots.py --model FOLDER --sst2 FOLDER [--lanes 2], after word_order.py. What that script
and randomness.py made already is copied.
"""

import itertools
import json

import lanes
import numpy as np
import word_order
from data import make_word_order

from devices import SHOT_SECONDS
from harness.files import write_json
from report import figures
from report.statistics import spread
from report.study import final, matches, read_study
from report.words import with_n
from update_rules import RULES

GRAPH = word_order.QUANTUM_ADAMW | {"circuit": "graph", "normalization": "group", "shot_allocation": "equal"}
PRODUCT, TENSOR, INDEPENDENT = (
    GRAPH | {"circuit": "product"},
    GRAPH | {"normalization": "tensor"},
    GRAPH | {"update_rule": "independent"},
)
OPTIMAL = PRODUCT | {"shot_allocation": "optimal"}
# Arm whose rate is tuned -> (series, shots) of the arms that take it. All others take the rate of `classical`.
LEVELS = [
    (PRODUCT | {"shots": 1}, [(PRODUCT, 1), (GRAPH, 3), (GRAPH, 10), (INDEPENDENT, 10), (OPTIMAL, 0.3), (OPTIMAL, 1)]),
    (GRAPH | {"shots": 1}, [(GRAPH, 1), (INDEPENDENT, 1), (OPTIMAL, 0.1), (TENSOR, 1000)]),
    (TENSOR | {"shots": 10}, [(TENSOR, 1), (TENSOR, 10), (TENSOR, 100)]),
]
TUNING_SEEDS, MANY_SEEDS, SEEDS, FEW_SEEDS = range(100, 103), range(10), range(6), range(5)
# (series, shots, seeds)
POINTS = [
    *[(PRODUCT, 1, MANY_SEEDS), (GRAPH, 1, MANY_SEEDS), (GRAPH, 1000, MANY_SEEDS)],
    *[(GRAPH, 10, SEEDS), (PRODUCT, 10, SEEDS), (PRODUCT, 1000, SEEDS), (INDEPENDENT, 1, SEEDS)],
    *[(TENSOR, 1, SEEDS), (TENSOR, 10, SEEDS), (TENSOR, 1000, SEEDS), (TENSOR, 100, FEW_SEEDS)],
    *[(OPTIMAL, shots, FEW_SEEDS) for shots in (1, 0.1, 0.3, 3)],
    *[(GRAPH, 3, FEW_SEEDS), (GRAPH, 30, FEW_SEEDS), (GRAPH, 100, SEEDS)],
    *[(PRODUCT, shots, FEW_SEEDS) for shots in (3, 30, 100)],
    (INDEPENDENT, 10, FEW_SEEDS),
]
# The order of the runs: a stop leaves every point with some seeds, and pairs of the same seeds.
BLOCKS = [range(3), range(3, 5), range(5, 10)]
SERIES = {  # label -> (settings, colour, marker, line style)
    "graph": (GRAPH, figures.COLOURS[0], "o", "-"),
    "product": (PRODUCT, figures.COLOURS[1], "s", "-"),
    "product, optimal shots": (OPTIMAL, "#E69F00", "D", "--"),
    "graph, independent counts": (INDEPENDENT, figures.COLOURS[2], "^", ""),
    "graph, one scale for the tensor": (TENSOR, "#56B4E9", "v", ":"),
}
ARMS = list(dict.fromkeys(json.dumps(series | {"shots": shots}) for series, shots, _ in POINTS))
QUESTION = {
    "question": "The frontier: how few shots does it take?",
    "primary": [PRODUCT | {"shots": 1}, GRAPH | {"shots": 1000}],
    "secondary": [
        [GRAPH | {"shots": 1}, INDEPENDENT | {"shots": 1}],
        *([json.loads(arm), word_order.CLASSICAL] for arm in ARMS),
        [word_order.FROZEN, word_order.CLASSICAL],
    ],
    "margin_points": 2.0,
    "prediction": "Less than 2 points are lost with 1 shot of product or less shot than minibatch noise, "
    "2 to 5 with 1 shot of graph and with 1000 shots and one scale for the tensor, which is as frozen with fewer; "
    "independent equals quantum.",
}


def main():
    given = lanes.arguments(__doc__.splitlines()[0])
    results = lanes.ROOT / "results"
    work, reference, before = results / "shots", results / "reference" / "shots", results / "reference" / "word_order"
    randomness = results / "reference" / "randomness" / "word_order"
    adamw, head, _ = lanes.read_chosen(before / "tuning.json")
    make_word_order(given.sst2, work / "data")
    common, names = lanes.on_data(word_order.COMMON, given, work / "data" / "tuning", "word order, tuning")
    tuned = reference / "tuning.json"
    if not tuned.exists():
        where = TUNING_SEEDS, work / "tuning", given.lanes, reference / "tuning", names
        found = [choose_rate(arm, common, where) for arm, _ in LEVELS]
        write_json(tuned, {"chosen": [rate for rate, _ in found], "grid": [row for _, grid in found for row in grid]})
    chosen = lanes.read_chosen(tuned)
    lanes.ask(reference, QUESTION)

    common, names = lanes.on_data(word_order.COMMON, given, work / "data" / "final", "word order")
    runs = [word_order.CLASSICAL | adamw | {"seed": seed} for seed in MANY_SEEDS]
    runs += [word_order.FROZEN | head | {"seed": seed} for seed in MANY_SEEDS]
    for block, (series, shots, seeds) in itertools.product(BLOCKS, POINTS):
        rate = {"learning_rate": rate_of(series, shots, chosen) or adamw["learning_rate"]}
        runs += [series | rate | {"shots": shots, "seed": seed} for seed in block if seed in seeds]
    runs = [common | run for run in runs]
    lanes.run_all(runs, work / "final", given.lanes, reference, names, [before, randomness])
    save_frontier(reference)


def choose_rate(arm, common, where):
    """(learning rate of the highest mean accuracy, grid) of an arm; `where`: as lanes.tune has it."""
    rates = list(word_order.LEARNING_RATES)
    while True:
        grid, (chosen,) = lanes.tune([arm], "learning_rate", rates, common, *where)
        if chosen < rates[-1]:
            return chosen, grid
        rates.append(2 * rates[-1])


def rate_of(series, shots, chosen):
    """The rate chosen for the level of noise of an arm; None where it has little. chosen: a rate for each of LEVELS."""
    for (_, arms), rate in zip(LEVELS, chosen, strict=True):
        if (series, shots) in arms:
            return rate
    return None


def save_frontier(reference):
    """Draw frontier.png, accuracy against shots: the finished runs of the folder `reference`."""
    figure = figures.new_figure(8.5, 4.6)
    plot_frontier(figure.subplots(), read_study(reference)["arms"])
    note = (
        "Arms have different seeds: each lies at the mean of classical plus its mean difference from classical on the "
        "same seeds. Bars and band: Student's 95% interval of that difference, for each alone."
    )
    figures.add_note(figure, note)
    return figures.save_figure(figure, reference / "frontier.png")


def plot_frontier(ax, arms):
    """Plot final accuracy against shots: the mean of `classical` plus the mean difference from it on the same seeds,
    with Student's 95% interval; arms as report.study has them.

    Horizontal: `classical` and `frozen`. The axis on top is the QPU time of a step, executions alone.
    """
    classical = {
        seed: final(run, "accuracy")
        for arm in arms.values()
        if matches(arm, word_order.CLASSICAL)
        for seed, run in arm.items()
    }
    level = np.mean(list(classical.values()))

    def beside_classical(arm):
        """(accuracy, half of its interval) of an arm on the level of `classical`."""
        mean, _, interval = spread(
            [final(arm[seed], "accuracy") - classical[seed] for seed in arm if seed in classical]
        )
        return level + mean, interval[1] - mean if interval else np.nan

    ax.axhline(level, color=RULES["classical"].colour, lw=1.2, label=with_n("classical", len(classical)))
    for arm in (arm for arm in arms.values() if matches(arm, word_order.FROZEN)):
        mean, half = beside_classical(arm)
        ax.axhline(mean, color=RULES["frozen"].colour, ls="--", lw=1.2, label=with_n("frozen", len(arm)))
        ax.axhspan(mean - half, mean + half, color=RULES["frozen"].colour, alpha=0.1, lw=0)
    circuits, shifts = 0, (1, 1.11, 1.23, 0.81, 0.9)  # so that bars do not cover each other
    for (label, (settings, colour, marker, line)), shift in zip(SERIES.items(), shifts, strict=True):
        found, sizes = [], []
        for arm in (arm for arm in arms.values() if matches(arm, settings)):
            run = next(iter(arm.values()))
            found.append((run["settings"]["shots"], *beside_classical(arm)))
            sizes.append(len(arm))
            circuits = max(circuits, run["statistics"]["circuits"] / run["statistics"]["steps"])
        if found:
            shots, mean, half = np.array(sorted(found)).T
            style = {"color": colour, "marker": marker, "ls": line, "capsize": 2, "ms": 5, "lw": 1.4}
            ax.errorbar(shots * shift, mean, half, label=with_n(label, *sizes), **style)
    ax.set(xscale="log", xlabel="shots per circuit (mean where optimally allocated)", ylabel="accuracy after training")
    ax.grid(alpha=0.25)
    if circuits:
        step = circuits * SHOT_SECONDS / 3600
        top = ax.secondary_xaxis("top", functions=(lambda shots: shots * step, lambda hours: hours / step))
        top.set_xlabel(
            f"QPU hours per step: {circuits:,.0f} circuits, one after another, {1e6 * SHOT_SECONDS:.0f} µs a shot"
        )
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


if __name__ == "__main__":
    main()
