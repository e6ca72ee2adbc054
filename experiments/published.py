"""The published setting: does the quantum update reach what classical training does?

SST-2, 100 sentences, attention of the first layer, the whole model trained with the published rates (AdamW 5e-5,
quantum 0.01, constant), batches of 8, 3 epochs, all 872 sentences of the development split, seeds 0-19. Model:
all-MiniLM-L6-v2. With distilbert-base-uncased, where the hub can be reached, the same is one command:

    python train.py --update_rules classical,quantum,frozen --seeds 0-19 --eval_size 0 --quantum_schedule constant

Written before the runs:
Primary comparison: `quantum` against `classical`, equivalent within 1 point.
Secondary (Holm): `quantum` against `frozen`; `classical` against `frozen`.
Prediction: all three equivalent: at these rates 39 steps hardly move the first layer's attention, so that the setting
cannot tell a good update from none; what `frozen` reaches is what the head and the other layers learn.

Usage: python experiments/published.py --model FOLDER --sst2 FOLDER [--lanes 2]
"""

import lanes

COMMON = {
    **{"train_size": 100, "eval_size": 0, "num_epochs": 3, "batch_size": 8, "attention_layers": "0"},
    **{"learning_rate": 5e-5, "quantum_learning_rate": 0.01, "quantum_schedule": "constant"},
    **{"quantum_optimizer": "sgd", "circuit": "graph", "num_qubits": 5, "shots": 1000},
}
CLASSICAL, QUANTUM, FROZEN = ({"update_rule": rule} for rule in ("classical", "quantum", "frozen"))
SEEDS = range(20)
QUESTION = {
    "question": "The published setting: does the quantum update reach what classical training does?",
    "primary": [QUANTUM, CLASSICAL],
    "secondary": [[QUANTUM, FROZEN], [CLASSICAL, FROZEN]],
    "margin_points": 1.0,
    "prediction": "All three equivalent: at these rates the first layer's attention hardly moves.",
}


def main():
    given = lanes.arguments(__doc__.splitlines()[0])
    work, reference = lanes.ROOT / "results" / "published", lanes.ROOT / "results" / "reference" / "published"
    lanes.ask(reference, QUESTION)
    common, names = lanes.on_data(COMMON, given, given.sst2.resolve(), "sst2")
    runs = [common | arm | {"seed": seed} for seed in SEEDS for arm in (CLASSICAL, QUANTUM, FROZEN)]
    lanes.run_all(runs, work, given.lanes, reference, names)


if __name__ == "__main__":
    main()
