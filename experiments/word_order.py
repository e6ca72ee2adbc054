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
ADAMW, SGD = {"quantum_optimizer": "adamw"}, {"quantum_optimizer": "sgd"}
ARMS = {
    "classical": {"update_rule": "classical"},
    "frozen": {"update_rule": "frozen"},
    "quantum, AdamW": {"update_rule": "quantum", **ADAMW},
    "independent, AdamW": {"update_rule": "independent", **ADAMW},
    "gradient, SGD": {"update_rule": "gradient", **SGD},
    "quantum, SGD": {"update_rule": "quantum", **SGD},
}
GRID = {
    "classical": ("learning_rate", (1e-4, 2e-4, 5e-4, 1e-3)),
    "frozen": ("learning_rate", (1e-4, 2e-4, 5e-4, 1e-3, 5e-3)),
    "gradient, SGD": ("quantum_learning_rate", (0, 0.01, 0.1, 0.3, 1, 3)),
}
FOLLOWS = {"quantum, AdamW": "classical", "independent, AdamW": "classical", "quantum, SGD": "gradient, SGD"}
TUNING_SEEDS, SEEDS = range(100, 103), range(10)
PRIMARY = ("quantum, AdamW", "classical")
SECONDARY = [
    ("quantum, AdamW", "frozen"),
    ("quantum, AdamW", "independent, AdamW"),
    ("quantum, SGD", "gradient, SGD"),
    ("quantum, SGD", "frozen"),
    ("gradient, SGD", "classical"),
]
