"""Studies: their arms and labels, which comparisons are made, question.json, headroom and what is recovered of it."""

import gc
import itertools
import json
import math

import numpy as np
import pytest
from conftest import ROOT, fake_run, fake_study

from harness import run_folder
from report import labels, statistics, study
from report.page import report_content
from report.study import (
    analyse,
    choose_pairs,
    compared,
    group_arms,
    headings,
    read_question,
    read_runs,
    read_studies,
    read_study,
    summary,
)
from update_rules import RULES


def arms_of(tmp_path, *settings, seeds=1):
    """The arms of runs with these settings, dicts that hold update_rule."""
    runs = [
        fake_run(tmp_path, rule, seed, 0.7, **changes)
        for rule, changes in ((s["update_rule"], {k: v for k, v in s.items() if k != "update_rule"}) for s in settings)
        for seed in range(seeds)
    ]
    return group_arms(runs)


# --- Labels


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("quantum_optimizer", "adamw", "AdamW"),
        ("shots", 10, "10 shots"),
        ("shots", 1, "1 shot"),
        ("circuit", "product", "product circuit"),
        ("quantum_schedule", "constant", "constant schedule"),
        ("entangling_angle", math.pi / 4, "angle π/4"),
        ("entangling_angle", 3 * math.pi / 8, "angle 3π/8"),
        ("entangling_angle", 0, "angle 0"),
        ("entangling_angle", 0.7, "angle 0.7"),
        ("attention_layers", [0, 3], "layers 0, 3"),
        ("attention_layers", "all", "all layers"),
        ("trained_weights", "attention", "attention alone trained"),
        ("train_size", 0, "all examples"),
        ("accumulation_steps", 4, "accumulation steps 4"),
    ],
)
def test_settings_in_words(name, value, words):
    assert labels.in_words(name, value) == words


def test_every_setting_that_has_words_is_a_setting(tmp_path):
    assert labels.WORDS.keys() <= fake_run(tmp_path, "quantum", 0, 0.7)["settings"].keys()


def test_labels_hold_what_differs_alone(tmp_path):
    adamw = {"update_rule": "quantum", "quantum_optimizer": "adamw"}
    arms = arms_of(tmp_path, adamw, {"update_rule": "quantum"}, {"update_rule": "classical"}, {"update_rule": "frozen"})
    assert list(arms) == ["quantum, AdamW", "quantum, SGD", "classical", "frozen"]
    assert compared(arms) == "quantum, classical and frozen by optimizer of the measured gradient"
    assert list(arms_of(tmp_path, {"update_rule": "quantum", "shots": 10})) == ["quantum"]
    shots = [{"update_rule": "quantum", "shots": shots} for shots in (1000, 1, 10)]
    assert list(arms_of(tmp_path, *shots)) == ["quantum, 1 shot", "quantum, 10 shots", "quantum, 1000 shots"]


def test_arms_are_runs_that_differ_in_the_seed_alone(tmp_path):
    arms = arms_of(tmp_path, {"update_rule": "quantum"}, {"update_rule": "quantum", "eval_every": 2}, seeds=3)
    assert {label: sorted(arm) for label, arm in arms.items()} == {"quantum": [0, 1, 2]}


def test_settings_that_have_a_name_are_settings(tmp_path):
    assert labels.NAMES.keys() <= fake_run(tmp_path, "quantum", 0, 0.7)["settings"].keys()
    assert labels.name_in_words("train_size") == "number of training sentences"
    assert labels.name_in_words("dry_run") == "dry run"


# --- Tasks


def written(run, number):
    """A run of conftest.fake_run as a run folder on the disk."""
    folder = run["folder"].with_name(f"run_20260101_{number:06}")
    folder.mkdir(parents=True)
    for name, key in (("config", "settings"), ("environment", "environment"), ("training_statistics", "statistics")):
        (folder / f"{name}.json").write_text(json.dumps(run[key]))
    lines = [",".join(run_folder.METRICS)]
    for row in run["rows"]:
        lines.append(",".join("" if row.get(name) is None else str(row[name]) for name in run_folder.METRICS))
    (folder / "metrics.csv").write_text("\n".join([*lines, ""]))
    return folder


def first_day(tmp_path):
    """A folder of what the README tells to try, a sweep of shots, and runs of other sizes."""
    tries = [{"shots": 10}, {"circuit": "product"}, {"quantum_optimizer": "adamw"}, {}]
    runs = [fake_run(tmp_path, "quantum", 42, 0.7, **changes) for changes in tries]
    runs += [fake_run(tmp_path, rule, seed, 0.7) for rule in RULES for seed in (0, 1)]
    runs += [fake_run(tmp_path, "quantum", seed, 0.7, shots=shots) for shots in (1, 10, 100) for seed in (0, 1)]
    runs += [fake_run(tmp_path, "quantum", 42, 0.7, num_epochs=epochs) for epochs in (7, 9)]
    runs += [fake_run(tmp_path, "quantum", seed, 0.7, model_name="embedded") for seed in range(3)]
    for number, run in enumerate(runs):
        written(run, number)
    return runs


def test_runs_that_cannot_be_compared_are_studies_of_their_own_the_largest_first(tmp_path):
    runs = first_day(tmp_path)
    studies = read_studies(tmp_path)
    assert [len(study["runs"]) for study in studies] == [len(runs) - 5, 3, 1, 1]
    assert headings(studies)[1:] == [
        "model on <b>data, 100 examples, 3 epochs",
        "model on <b>data, 100 examples, 7 epochs",
        "model on <b>data, 100 examples, 9 epochs",
    ]
    assert list(studies[0]["arms"]) == [
        "quantum, AdamW, graph circuit, 1000 shots",
        *(f"quantum, SGD, graph circuit, {shots}" for shots in ("1 shot", "10 shots", "100 shots", "1000 shots")),
        "quantum, SGD, product circuit, 1000 shots",
        *("independent, SGD, graph circuit, 1000 shots", "exact, SGD, graph circuit", "gradient, SGD"),
        *("classical", "frozen"),
    ]
    assert [list(study["arms"]) for study in studies[1:]] == [["quantum"]] * 3


def test_a_question_makes_one_study_of_all_runs(tmp_path):
    for number, size in enumerate((100, 200)):
        written(fake_run(tmp_path, "quantum", 0, 0.7, train_size=size), number)
    primary = [{"train_size": 200}, {"train_size": 100}]
    (tmp_path / "question.json").write_text(json.dumps({"question": "More data?", "primary": primary}))
    (study,) = read_studies(tmp_path)
    assert list(study["arms"]) == ["quantum, 100 examples", "quantum, 200 examples"]


def test_a_run_of_a_rule_that_is_no_more_is_skipped_with_a_line(tmp_path, capsys):
    kept = written(fake_run(tmp_path, "quantum", 0, 0.7), 0)
    gone = written(fake_run(tmp_path, "quantum", 0, 0.7, update_rule="gone"), 1)
    assert [run["folder"] for run in read_runs(tmp_path)] == [kept]
    assert capsys.readouterr().err.startswith(f"skipped {gone}: UPDATE_RULE = 'gone': there is no such rule, ")


# --- Which arms are compared


def test_circuits_and_shots_alone_are_compared_with_each_other(tmp_path):
    circuits = [{"update_rule": "quantum", "circuit": name} for name in ("graph", "product")]
    assert choose_pairs(arms_of(tmp_path, *circuits)) == [("quantum, product circuit", "quantum, graph circuit")]
    shots = [{"update_rule": "quantum", "shots": shots} for shots in (1, 10)]
    assert choose_pairs(arms_of(tmp_path, *shots)) == [("quantum, 10 shots", "quantum, 1 shot")]


def test_arms_are_compared_that_differ_in_one_respect(tmp_path):
    quantum = [
        {"update_rule": "quantum", "quantum_optimizer": optimizer, "shots": shots}
        for optimizer in ("sgd", "adamw")
        for shots in (1, 10, 100)
    ]
    gradient = {"update_rule": "gradient", "quantum_optimizer": "adamw"}
    pairs = choose_pairs(arms_of(tmp_path, *quantum, gradient, {"update_rule": "classical"}))
    sgd, adamw = ([f"quantum, {words}, {s}" for s in ("1 shot", "10 shots", "100 shots")] for words in ("SGD", "AdamW"))
    expected = [(name, "gradient, AdamW") for name in adamw]
    expected += [(name, "classical") for name in [*adamw, *sgd, "gradient, AdamW"]]
    expected += [(second, first) for line in (adamw, sgd) for first, second in itertools.pairwise(line)]
    expected += list(zip(sgd, adamw, strict=True))
    assert sorted(pairs) == sorted(expected)


def test_each_rule_meets_classical_and_frozen_and_quantum_all_controls(tmp_path):
    rules = ["quantum", "independent", "exact", "gradient", "classical", "frozen"]
    pairs = choose_pairs(arms_of(tmp_path, *({"update_rule": rule} for rule in rules)))
    controls = [("quantum", rule) for rule in rules[1:]]
    assert sorted(pairs) == sorted(controls + [(rule, base) for rule in rules[1:4] for base in rules[4:]])


def test_arms_of_another_task_or_other_seeds_are_not_compared(tmp_path):
    runs = [fake_run(tmp_path, "quantum", 0, 0.7), fake_run(tmp_path, "classical", 0, 0.7, learning_rate=1.0)]
    runs += [fake_run(tmp_path, "frozen", 1, 0.7)]
    assert choose_pairs(group_arms(runs)) == []


def test_pairs_are_formed_seed_by_seed(tmp_path):
    runs = [fake_run(tmp_path, "quantum", seed, 0.7 + seed / 10) for seed in (0, 1, 2)]
    runs += [fake_run(tmp_path, "classical", seed, 0.6 + seed / 10) for seed in (3, 2, 1)]
    (row,) = analyse(runs, {})["comparisons"]
    assert row["n"] == 2 and row["mean"] == pytest.approx(0.1) and row["deviation"] == pytest.approx(0.01)


# --- Families


def test_the_primary_comparison_is_alone_and_small_n_stay_out_of_the_family(tmp_path):
    runs = fake_study(tmp_path, [0.010, 0.015, 0.02, 0.01, 0.02, 0.03])
    runs += [fake_run(tmp_path, rule, seed, 0.7 + seed / 100) for rule in ("gradient", "frozen") for seed in range(6)]
    runs += [fake_run(tmp_path, "exact", seed, 0.7 + seed / 100) for seed in range(3)]
    question = {"question": "Q", "primary": ["quantum", "classical"]}
    rows = {(row["arm"], row["base"]): row for row in analyse(runs, question)["comparisons"]}
    primary = rows.pop(("quantum", "classical"))
    assert primary["part"] == "primary" and primary["alpha"] == 0.05 and primary["p_adjusted"] == primary["p"]
    family = [row for row in rows.values() if row["family"] == "secondary"]
    few = [row for row in rows.values() if row["family"] == "few seeds"]
    assert (
        {row["n"] for row in family} == {6} and {row["n"] for row in few} == {3} and len(family) == 4 and len(few) == 3
    )
    assert {row["alpha"] for row in rows.values()} == {0.05 / 7} and all(row["p_flip_adjusted"] is None for row in few)
    assert min(row["p_adjusted"] for row in family) == pytest.approx(7 * min(row["p"] for row in family))
    assert [row["p_adjusted"] for row in few] == pytest.approx([min(1, 7 * row["p"]) for row in few])


def test_secondary_comparisons_err_together_at_most_at_their_rate(monkeypatch):
    """Nothing is there to find, half of the comparisons have few seeds: how often is one of them called different?"""
    for name in ("smallest_effect", "seeds_to_decide"):  # slow, and not what is tested
        monkeypatch.setattr(study, name, lambda *_: 1)
    monkeypatch.setattr(statistics, "sign_flip_p", lambda *_: 1.0)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels calls it for every family
    given = {"part": "secondary", "margin": 1e-9, "examples": 10**6, "discordant": None}
    draw, found = np.random.default_rng(0), 0
    for _ in range(400):
        rows = [given | statistics.paired(draw.normal(0, 0.02, n), 1e-9) for n in (5, 8) * 4]
        for family in study.families(rows):
            study.judge(family, len(rows) - len(family))
        found += any(row["verdict"] != "undecided" for row in rows)
    assert 0.02 * 400 < found < 0.08 * 400


def test_the_question_names_what_is_compared(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2])
    runs += [fake_run(tmp_path, "quantum", seed, 0.8, shots=10) for seed in (0, 1)]
    runs += [fake_run(tmp_path, "frozen", seed, 0.6) for seed in (0, 1)]
    thousand = {"update_rule": "quantum", "shots": 1000}
    question = {"question": "Q", "primary": [thousand, "classical"], "margin_points": 2, "prediction": "none"}
    question["secondary"] = [[{"shots": 10}, "frozen"], ["gradient", "frozen"]]
    found = analyse(runs, question)
    assert [(row["part"], row["arm"], row["base"]) for row in found["comparisons"]] == [
        ("primary", "quantum, 1000 shots", "classical"),
        ("secondary", "quantum, 10 shots", "frozen"),
    ]
    assert {row["margin"] for row in found["comparisons"]} == {0.02}
    assert found["missing"] == ["gradient against frozen"]
    assert {row["alpha"] for row in found["comparisons"]} == {0.05, 0.05 / 2}  # what is missing counts already
    json.dumps(summary(found))
    with pytest.raises(ValueError, match="is 2 arms: quantum, 10 shots; quantum, 1000 shots"):
        analyse(runs, question | {"primary": ["quantum", "classical"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{half", "cannot be used"),
        ('{"question": "Q", "primary": [{"attention_layers": 1}, "exact"]}', "ATTENTION_LAYERS = 1: must be"),
        ('{"question": "Q", "primary": [{"shots": "1000"}, "exact"]}', "SHOTS = '1000': must be"),
        ("[]", "cannot be used"),
        ('{"question": "Q"}', "lacks 'primary'"),
        ('{"primary": ["quantum", "classical"]}', "lacks 'question'"),
        ('{"question": "Q", "primary": ["quantum"]}', "cannot be used"),
        ('{"question": "Q", "primary": ["quantum", "classic"]}', "UPDATE_RULE = 'classic': must be one of"),
        ('{"question": "Q", "primary": ["quantum", {"shot": 1}]}', "no such setting: shot"),
        ('{"question": "Q", "primary": ["quantum", 1]}', "cannot be used"),
        ('{"question": "Q", "primary": ["quantum", "exact"], "secondary": [["quantum"]]}', "cannot be used"),
        ('{"question": "Q", "primary": ["quantum", "exact"], "margin": 1}', "unknown margin"),
        ('{"question": "Q", "primary": ["quantum", "exact"], "margin_points": 0}', "margin_points a number of points"),
        ('{"question": "Q", "primary": ["quantum", "exact"], "margin_points": "1"}', "cannot be used"),
    ],
)
def test_a_question_of_no_use_is_refused(tmp_path, content, message):
    (tmp_path / "question.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_question(tmp_path / "question.json")


def test_what_is_not_run_yet_counts_in_the_family(tmp_path):
    runs = [fake_run(tmp_path, rule, seed, 0.7 + seed / 100 * (rule == "exact")) for rule in RULES for seed in range(6)]
    named = [["exact", "classical"], ["exact", "frozen"], [{"shots": 10}, "classical"], [{"shots": 20}, "classical"]]
    question = {"question": "Q", "primary": ["quantum", "classical"], "secondary": named}
    primary, *rows = analyse(runs, question)["comparisons"]
    assert primary["alpha"] == 0.05 and [row["alpha"] for row in rows] == [0.05 / 4] * 2
    assert [row["p_adjusted"] for row in rows] == pytest.approx([4 * row["p"] for row in rows])  # Holm's, of equal p
    assert "2 of 4 comparisons (the others have fewer seeds" in report_content(analyse(runs, question), [])["note"]


def test_a_comparison_is_made_once_and_of_two_arms(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2])
    reversed_too = {"question": "Q", "primary": ["classical", "quantum"]}
    assert [row["part"] for row in analyse(runs, reversed_too)["comparisons"]] == ["primary"]
    with pytest.raises(ValueError, match="both sides of a comparison are the same arm"):
        analyse(runs, {"question": "Q", "primary": [{"shots": 1000}, "quantum"]})


def test_runs_on_other_examples_are_skipped_with_a_line(tmp_path, capsys):
    runs = [fake_run(tmp_path, rule, 0, 0.7) for rule in ("classical", "quantum", "exact")]
    for number, (run, digest) in enumerate(zip(runs, "aab", strict=True)):
        run["environment"]["data"]["sha256_of_examples"] = digest
        written(run, number)
    assert [run["settings"]["update_rule"] for run in read_runs(tmp_path)] == ["classical", "quantum"]
    assert "000002: its examples are not those of run_20260101_000000, which has the same" in capsys.readouterr().err


def test_the_later_run_counts_also_after_ten_in_one_second(tmp_path):
    for number in (2, 10, 1):
        folder = written(fake_run(tmp_path, "quantum", 0, number / 100), 0)
        folder.rename(folder.with_name(f"{folder.name}_{number}"))
    (arm,) = read_study(tmp_path)["arms"].values()
    assert arm[0]["folder"].name == "run_20260101_000000_10"


def test_broken_predictions_cost_no_report(tmp_path, capsys):
    runs = [fake_run(tmp_path, "classical", 0, 0.5, [True, False]), fake_run(tmp_path, "quantum", 0, 0.7, [True] * 3)]
    (row,) = analyse(runs, {})["comparisons"]
    assert row["discordant"] is None  # of other examples
    (runs[0]["folder"] / "predictions.csv").write_text("a,b\n1,2\n")
    (row,) = analyse(runs, {})["comparisons"]
    assert row["verdict"] == "undecided" and "run_classical_0: judged without its" in capsys.readouterr().err


def test_without_a_question_there_is_none(tmp_path):
    assert read_question(tmp_path / "question.json") == {}
    with pytest.raises(ValueError, match="holds no finished run"):
        read_runs(tmp_path)


def test_the_headroom_and_what_is_recovered_of_it(tmp_path):
    runs = []
    for seed in range(4):
        runs += [fake_run(tmp_path, "classical", seed, 0.7 + seed / 100), fake_run(tmp_path, "frozen", seed, 0.5)]
        runs += [fake_run(tmp_path, "quantum", seed, 0.6 + seed / 200, shots=shots) for shots in (10, 100)]
    runs += [fake_run(tmp_path, "gradient", 9, 0.6)]
    found = analyse(runs, {})
    (headroom,) = found["headroom"]
    assert headroom["mean"] == pytest.approx(0.215) and (headroom["arm"], headroom["base"]) == ("classical", "frozen")
    assert [row["arm"] for row in found["recovered"]] == ["quantum, 10 shots", "quantum, 100 shots"]
    for row in found["recovered"]:
        low, high = row["interval"]  # no narrower than one example lets it be
        assert row["fraction"] == pytest.approx(0.5) and low < 0.48 and high > 0.52 and row["n"] == 4


def test_each_rule_may_have_its_own_best_rate_for_the_headroom(tmp_path):
    def study(*rates):
        runs = [fake_run(tmp_path, "frozen", seed, 0.5, learning_rate=rate) for rate in rates for seed in (0, 1)]
        runs += [
            fake_run(tmp_path, rule, seed, 0.6, learning_rate=0.1) for rule in ("classical", "exact") for seed in (0, 1)
        ]
        found = analyse(runs, {})
        assert ("exact" in {row["rule"] for row in found["comparisons"] if row["base_rule"] == "frozen"}) == (
            0.1 in rates
        )
        return [row["base"] for row in found["headroom"]], [row["frozen"] for row in found["recovered"]]

    assert study(0.5) == (["frozen, learning rate 0.5"],) * 2
    assert study(0.5, 0.1) == (["frozen, learning rate 0.1"],) * 2
    assert study(0.5, 0.7) == ([], [])


PUBLISHED = sorted(path.parent for path in ROOT.glob("results/reference/*/question.json"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_comparisons_are_those_of_the_published_runs(folder):
    made = json.loads(json.dumps(summary(read_study(folder)), default=float))
    known = json.loads((folder / "analysis" / "comparisons.json").read_text(encoding="utf-8"))
    for name in ("comparisons", "headroom", "recovered"):
        for row, expected in zip(made.pop(name), known.pop(name), strict=True):
            assert row.keys() == expected.keys()
            for key, value in expected.items():
                number = isinstance(value, float) or (isinstance(value, list) and key == "interval")
                assert row[key] == (pytest.approx(value) if number else value)
    assert made == known
