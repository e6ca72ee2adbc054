"""Sentiment, fair: with equal schedules and equally tuned rates, does measuring the gradient cost or gain accuracy?

SST-2, 240 sentences, attention of all layers, the whole model trained, batches of 16, 2 epochs, all 872 sentences of
the development split, seeds 0-19. Model: all-MiniLM-L6-v2. Rates are chosen on 1,000 sentences held out of the
training split, seeds 100-104: LEARNING_RATE for `classical` and `frozen` on the same grid; QUANTUM_LEARNING_RATE for
`gradient` with SGD on a grid that includes 0, AdamW's rate being that of `frozen`. `quantum` with SGD takes the rates
of `gradient` with SGD, of which it is a measurement. The ends of the frontier of shots.py, `quantum` with AdamW at 1
shot of `product` and 1000 of `graph`, take the rate of `classical`. Arms of `quantum`: seeds 0-9.

Written before the runs:
Primary comparison: `gradient` with SGD against `classical`, equivalent within 1 point: is it the plain gradient step
that costs accuracy, as this repository once claimed?
Secondary (Holm): `classical` against `frozen` (the headroom), `gradient` with SGD against `frozen`, `quantum` with SGD
against `gradient` with SGD, 1 shot of `product` and 1000 of `graph` against `classical` and against each other.
Prediction: less than 8 points of headroom, so that whatever comes out says little about attention weights; no
difference of a point or more between any two arms.

Usage: python experiments/sentiment.py --model FOLDER --sst2 FOLDER [--lanes 2]
"""

import lanes
from data import make_sentiment

COMMON = {
    "train_size": 240,
    "eval_size": 0,
    "batch_size": 16,
    "num_epochs": 2,
    "attention_layers": "all",
    "eval_every": 5,
    **{"circuit": "graph", "num_qubits": 5, "shots": 1000},  # of the rules that measure, where an arm says nothing else
}
CLASSICAL, FROZEN = {"update_rule": "classical"}, {"update_rule": "frozen"}
GRADIENT_SGD = {"update_rule": "gradient", "quantum_optimizer": "sgd"}
QUANTUM_SGD = {"update_rule": "quantum", "quantum_optimizer": "sgd"}
FEW = {"update_rule": "quantum", "quantum_optimizer": "adamw", "circuit": "product", "shots": 1}
MANY = FEW | {"circuit": "graph", "shots": 1000}
LEARNING_RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
QUANTUM_LEARNING_RATES = (0, 0.01, 0.03, 0.1, 0.3, 1)
TUNING_SEEDS, SEEDS, QUANTUM_SEEDS = range(100, 105), range(20), range(10)
QUESTION = {
    "question": "Sentiment, fair: does measuring the gradient cost or gain accuracy?",
    "primary": [GRADIENT_SGD, CLASSICAL],
    "secondary": [
        *([CLASSICAL, FROZEN], [GRADIENT_SGD, FROZEN], [QUANTUM_SGD, GRADIENT_SGD]),
        *([FEW, CLASSICAL], [MANY, CLASSICAL], [FEW, MANY]),
    ],
    "margin_points": 1.0,
    "prediction": "Less than 8 points of headroom, and no difference of a point or more.",
}


def main():
    given = lanes.arguments(__doc__.splitlines()[0])
    work, reference = lanes.ROOT / "results" / "sentiment", lanes.ROOT / "results" / "reference" / "sentiment"
    make_sentiment(given.sst2, work / "data")
    common, names = lanes.on_data(COMMON, given, work / "data" / "tuning", "sst2, tuning")
    adamw, head, sgd = lanes.choose_rates(
        *(CLASSICAL, FROZEN, GRADIENT_SGD),
        *(LEARNING_RATES, QUANTUM_LEARNING_RATES, common, TUNING_SEEDS),
        *(work, given.lanes, reference, names),
    )
    lanes.ask(reference, QUESTION)
    common, names = lanes.on_data(COMMON, given, work / "data" / "final", "sst2")
    runs = [
        common | arm | {"seed": seed}
        for seed in SEEDS
        for arm in (CLASSICAL | adamw, FROZEN | head, GRADIENT_SGD | sgd)
    ]
    arms = (FEW | adamw, MANY | adamw, QUANTUM_SGD | sgd)
    runs += [common | arm | {"seed": seed} for seed in QUANTUM_SEEDS for arm in arms]
    lanes.run_all(runs, work / "final", given.lanes, reference, names)


if __name__ == "__main__":
    main()
