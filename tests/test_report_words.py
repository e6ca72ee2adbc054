"""Each sentence, by a case made for it."""

import re

import pytest
from conftest import fake_run, fake_study

from report.study import analyse
from report.words import conclusion, headroom_in_words, p_in_words

NEAR = [0.001, -0.001, 0.0, 0.002, -0.002, 0.001, 0.0, -0.001]
FEW = "too few for a sign-flip test to reach p < 0.05"
VERDICTS = r"\b(better|worse|equivalent|undecided)\b"


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.10, 0.11, 0.12], ["better by 11.0 points (95% interval +8.5 to +13.5, p = 0.003, n = 3", FEW]),
        ([-0.10, -0.11, -0.12], ["worse by 11.0 points (95% interval -13.5 to -8.5, p = 0.003, n = 3", FEW]),
        ([0.1, 0.11, 0.12, 0.1, 0.09, 0.1, 0.12, 0.13], ["better by 10.9 points (", "p < 0.001, n = 8)."]),
        ([-0.2, -0.21, -0.22, -0.2, -0.19, -0.2], ["worse by 20.3 points (", "n = 6)."]),
        (NEAR, ["equivalent within 1.0 points (+0.0 points, 95% interval -0.1 to +0.1", "one-sided tests p < 0.001)."]),
        ([0.0] * 3, ["equivalent within 1.0 points (+0.0 points", FEW]),
        ([d + 0.004 for d in NEAR], ["equivalent within 1.0 points, though not equal (+0.4 points, 95% interval +0.3"]),
        (
            [0.05, -0.03, 0.02, -0.04],
            ["undecided (+0.0 points", FEW, "this n could have shown is 9.", "seeds would decide"],
        ),
        (
            [0.02, -0.01] * 4,
            ["undecided (+0.5 points", "p = 0.407, n = 8); the smallest", "about 83 seeds would decide"],
        ),
        ([0.5, -0.5], ["undecided", "shown is above 100 points, and more than 1000 seeds would decide"]),
        (
            [0.1],
            ["undecided (+10.0 points with one seed, whose predictions were not kept); 6 seeds at least are needed"],
        ),
    ],
)
def test_the_sentence_says_one_verdict_and_its_numbers(tmp_path, differences, words):
    (row,) = analyse(fake_study(tmp_path, differences, examples=872), {})["comparisons"]
    assert row["conclusion"].startswith("quantum against classical (circuits and optimizer together): ")
    for text in words:
        assert text in row["conclusion"]
    assert re.findall(VERDICTS, row["conclusion"]) == [row["verdict"]] and "no difference" not in row["conclusion"]
    assert (FEW in row["conclusion"]) == (1 < len(differences) < 6)


@pytest.mark.parametrize(
    ("gained", "lost", "words"),
    [
        (
            9,
            1,
            "better by 8.0 points with this one seed (of 100 predictions 9 are correct in the first alone, 1 in the",
        ),
        (1, 9, "worse by 8.0 points with this one seed (of 100 predictions 1 are correct in the first alone, 9 in the"),
        (5, 4, "undecided (+1.0 points with one seed; of 100 predictions 5 are correct in the first alone, 4 in the"),
        (
            4,
            4,
            "exact McNemar p = 1.000); the smallest effect they could have shown is 7.6 points, and 6 seeds at least",
        ),
        (0, 0, "exact McNemar p = 1.000); so few could have shown none, and 6 seeds at least"),
    ],
)
def test_one_seed_is_judged_by_the_predictions_that_differ(tmp_path, gained, lost, words):
    both = [True] * 60 + [False] * (40 - gained - lost)
    mine, theirs = ([*both, *[first] * gained, *[not first] * lost] for first in (True, False))
    runs = [fake_run(tmp_path, "quantum", 0, sum(mine) / 100, correct=mine)]
    runs += [fake_run(tmp_path, "classical", 0, sum(theirs) / 100, correct=theirs)]
    (row,) = analyse(runs, {})["comparisons"]
    assert words in row["conclusion"] and re.findall(VERDICTS, row["conclusion"]) == [row["verdict"]]
    assert row["discordant"] == [gained, lost]


def test_predictions_of_other_examples_judge_nothing(tmp_path):
    runs = [fake_run(tmp_path, rule, 0, 1.0, correct=[True] * 9) for rule in ("quantum", "classical")]
    path = runs[0]["folder"] / "predictions.csv"
    path.write_text(path.read_text().replace("3,0,1,", "3,0,0,"))
    assert "whose predictions were not kept" in analyse(runs, {})["comparisons"][0]["conclusion"]


def test_a_sign_flip_test_that_does_not_get_there_is_mentioned(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.11, 0.12, 0.1, 0.09, 0.1])
    runs += [fake_run(tmp_path, "frozen", seed, 0.6) for seed in range(6)]
    for row in analyse(runs, {})["comparisons"]:
        assert "better by" in row["conclusion"] and "simultaneous 95% interval" in row["conclusion"]
        assert row["conclusion"].endswith("reach p < 0.05, which this n cannot in so many comparisons (p = 0.062).")


def test_the_headroom_is_said_and_whether_it_is_enough(tmp_path):
    def sentences(headroom):
        runs = [fake_run(tmp_path, "classical", seed, 0.7 + seed / 100) for seed in range(3)]
        runs += [fake_run(tmp_path, "frozen", seed, 0.7 - headroom) for seed in range(3)]
        return headroom_in_words(analyse(runs, {})["headroom"])

    assert sentences(0.1) == ["Headroom, classical minus frozen: 11.0 points (95% interval +8.5 to +13.5, n = 3)."]
    assert sentences(0.02)[0].endswith("less than 8.0 points: a comparison of rules means little here.")
    assert headroom_in_words([])[0].startswith("Headroom unknown")


def test_with_adamw_the_circuits_alone_differ_from_classical(tmp_path):
    runs = [fake_run(tmp_path, "classical", seed, 0.7) for seed in range(2)]
    runs += [fake_run(tmp_path, "quantum", seed, 0.8, quantum_optimizer="adamw") for seed in range(2)]
    (row,) = analyse(runs, {})["comparisons"]
    assert row["conclusion"].startswith("quantum against classical (the circuits): ")


def test_rounding_contradicts_no_verdict(tmp_path):
    assert [p_in_words(p) for p in (0.0496, 0.0504, 0.04999996, 0.05, 0.0004, 0.0421)] == [
        *("p = 0.0496", "p = 0.050", "p = 0.04999996", "p = 0.050", "p < 0.001", "p = 0.042"),
    ]
    runs = fake_study(tmp_path, [0.0] * 6, examples=872)
    question = {"question": "Q", "primary": ["quantum", "classical"], "margin_points": 1.25}
    (row,) = analyse(runs, question)["comparisons"]
    assert "equivalent within 1.25 points" in row["conclusion"]
    row["interval"] = (-0.0004, 0.001)
    assert "interval -0.0 to +0.1" in conclusion(row)
