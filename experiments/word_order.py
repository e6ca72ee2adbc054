"""Word order: can the measured gradient train attention where attention must change?

Task: two adjacent words of an SST-2 sentence are swapped, or not (bigram shift: Conneau et al., 1805.01070).
Model: all-MiniLM-L6-v2; the selected attention weights and the head train, all else is frozen. 2,000 sentences, batches
of 16, 3 epochs, 826 sentences of the development split, seeds 0-9.

Written before the runs:
Primary comparison: `quantum` with AdamW (graph, 1000 shots) against `classical`, equivalent within 1 point.
Secondary (Holm): `quantum` with AdamW against `frozen`, and against `independent` with AdamW; `quantum` with SGD
against `gradient` with SGD, and against `frozen`; `gradient` with SGD against `classical`.
Prediction: headroom (classical - frozen) of about 15 points; with AdamW the measured gradient recovers all of it, since
1000 shots add 1-2 % to the minibatch noise; with SGD at its best rate a part of it, for `gradient` as for `quantum`:
what is lost is lost by the optimizer, not by the circuits.

Learning rates are chosen on 1,000 sentences held out of the training split, seeds 100-102, see GRID. `gradient` with
AdamW is the classical run bit for bit (a test holds this), so `classical` stands for both. The rules that measure take
the rates of `classical` and of `gradient` with SGD, which they equal but for shot noise: on the grid themselves they
would take a day.

Usage: python experiments/word_order.py --model FOLDER --sst2 FOLDER [--lanes 2]; FOLDERs of all-MiniLM-L6-v2 and of
GLUE's train.tsv and dev.tsv. What is there already is not run again.
"""

import lanes
from data import make_word_order

COMMON = {
    "train_size": 2000,
    "eval_size": 0,
    "max_length": 64,
    "batch_size": 16,
    "num_epochs": 3,
    "attention_layers": "all",
    "trained_weights": "attention",
    "eval_every": 75,
}
CLASSICAL, FROZEN = {"update_rule": "classical"}, {"update_rule": "frozen"}
GRADIENT_SGD = {"update_rule": "gradient", "quantum_optimizer": "sgd"}
QUANTUM_SGD = {"update_rule": "quantum", "quantum_optimizer": "sgd"}
QUANTUM_ADAMW = {"update_rule": "quantum", "quantum_optimizer": "adamw"}
INDEPENDENT_ADAMW = {"update_rule": "independent", "quantum_optimizer": "adamw"}
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3)
QUANTUM_LEARNING_RATES = (0, 0.01, 0.1, 0.3, 1, 3)
TUNING_SEEDS, SEEDS = range(100, 103), range(10)
QUESTION = {
    "question": "Word order: can the measured gradient train attention where attention must change?",
    "primary": [QUANTUM_ADAMW, CLASSICAL],
    "secondary": [
        [QUANTUM_ADAMW, FROZEN],
        [QUANTUM_ADAMW, INDEPENDENT_ADAMW],
        [QUANTUM_SGD, GRADIENT_SGD],
        [QUANTUM_SGD, FROZEN],
        [GRADIENT_SGD, CLASSICAL],
    ],
    "margin_points": 1.0,
    "prediction": "Headroom of about 15 points, all of it recovered with AdamW, a part with SGD, by the circuits as by "
    "the gradient itself.",
}


def main():
    given = lanes.arguments(__doc__.splitlines()[0])
    work, reference = lanes.ROOT / "results" / "word_order", lanes.ROOT / "results" / "reference" / "word_order"
    make_word_order(given.sst2, work / "data")
    common = COMMON | {"model_name": given.model.resolve(), "dataset_name": work / "data" / "tuning"}

    names = {common["model_name"]: "all-MiniLM-L6-v2", common["dataset_name"]: "word order, tuning"}
    adamw, head, sgd = lanes.choose_rates(
        *(CLASSICAL, FROZEN, GRADIENT_SGD),
        *(LEARNING_RATES, QUANTUM_LEARNING_RATES, common, TUNING_SEEDS),
        *(work, given.lanes, reference, names),
    )
    lanes.ask(reference, QUESTION)
    common["dataset_name"] = work / "data" / "final"
    cheap = [CLASSICAL | adamw, FROZEN | head, GRADIENT_SGD | sgd]
    measured = [QUANTUM_ADAMW | adamw, INDEPENDENT_ADAMW | adamw, QUANTUM_SGD | sgd]
    runs = [common | arm | {"seed": seed} for arms in (cheap, measured) for seed in SEEDS for arm in arms]
    names = {common["model_name"]: "all-MiniLM-L6-v2", common["dataset_name"]: "word order"}
    lanes.run_all(runs, work / "final", given.lanes, reference, names)


if __name__ == "__main__":
    main()
