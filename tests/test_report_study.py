"""Studies: reading them, their arms, their comparisons, what they conclude."""

import numpy as np
import pytest
from conftest import fake_run, fake_study

from report.study import compare_arms, conclude, group_arms


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.1, 0.11, 0.12, 0.1, 0.09, 0.1, 0.12, 0.13], "better (+10.9 points"),
        ([-0.2, -0.21, -0.22, -0.2, -0.19, -0.2, -0.22, -0.23], "worse (-20.9 points"),
        ([0.01, -0.01, 0.02, -0.02, 0.0, 0.01, -0.01, 0.0], "no difference found (+0.0 points"),
        ([0.1], "one seed only (+10.0 points), which allows no conclusion"),
    ],
)
def test_the_conclusion_says_what_the_numbers_allow(tmp_path, differences, words):
    comparisons = compare_arms(group_arms(fake_study(tmp_path, differences)))
    (sentence,) = conclude(comparisons)
    assert words in sentence and "quantum against classical (the whole idea)" in sentence
    small = len(differences) > 1 and abs(np.mean(differences)) < 1.96 * np.sqrt(0.7 * 0.3 / 100)
    assert ("smaller than the evaluation set's own half-width of 9.0 points" in sentence) == small


def test_arms_are_runs_that_differ_in_the_seed_alone(tmp_path):
    runs = fake_study(tmp_path, [0.01, 0.02])
    runs += [fake_run(tmp_path, "quantum", seed, 0.8, shots=10) for seed in (0, 1)]
    runs += [fake_run(tmp_path, "classical", 0, 0.9, learning_rate=1.0)]
    arms = group_arms(runs)
    assert {label: len(arm) for label, arm in arms.items()} == {
        "quantum, learning_rate 5e-05, shots 10": 2,
        "quantum, learning_rate 5e-05, shots 1000": 2,
        "classical, learning_rate 5e-05": 2,
        "classical, learning_rate 1.0": 1,
    }
    pairs = {(row["arm"], row["base"]) for row in compare_arms(arms)}
    assert pairs == {(f"quantum, learning_rate 5e-05, shots {s}", "classical, learning_rate 5e-05") for s in (10, 1000)}


def test_the_rule_gradient_is_compared_like_every_control(tmp_path):
    runs = [*fake_study(tmp_path, [0.1]), fake_run(tmp_path, "gradient", 0, 0.75)]
    arms = group_arms(runs)
    assert list(arms) == ["quantum", "gradient", "classical"]
    sentences = conclude(compare_arms(arms))
    assert [sentence.split(":")[0] for sentence in sentences] == [
        "quantum against gradient (the circuits)",
        "quantum against classical (the whole idea)",
    ]
