"""Experiments: runs side by side, published without paths, skipped when published, and the choice of learning rates."""

import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, read_json, run_script

import config
import quantum_circuits
import train
from harness import run_folder
from report import figures

sys.path.insert(0, str(ROOT / "experiments"))
import data
import device_noise
import lanes
import noise_budget
import randomness
import shots


@pytest.fixture
def place(tiny_model, tiny_data, tmp_path, monkeypatch):
    """(common settings, work folder, reference folder, names), with runs forked instead of started."""
    started = []

    def run(command, **_):
        started.append(command)
        status, out, err = run_script("train.py", *command[2:])
        return SimpleNamespace(returncode=status, stdout=out, stderr=err)

    monkeypatch.setattr(lanes.subprocess, "run", run)
    common = {"model_name": tiny_model, "dataset_name": tiny_data, "train_size": 12, "eval_size": 10, "batch_size": 4}
    common |= {"num_epochs": 1, "max_length": 32, "eval_every": 1}
    names = {tiny_model: "tiny", tiny_data: "films"}
    return SimpleNamespace(common=common, work=tmp_path / "work", out=tmp_path / "out", names=names, started=started)


def test_runs_are_published_without_paths_and_never_made_twice(place, tiny_model):
    runs = [place.common | {"update_rule": rule, "seed": seed} for seed in (0, 1) for rule in ("classical", "frozen")]
    lanes.run_all(runs, place.work, 2, place.out, place.names)
    folders = sorted(place.out.glob("run_*"))
    assert len(folders) == 4 and not list(place.work.glob("run_*/model"))
    for folder in folders:
        assert str(tiny_model) not in "".join(path.read_text() for path in folder.iterdir())
        run = run_folder.read(folder)
        assert (run["settings"]["model_name"], run["settings"]["dataset_name"]) == ("tiny", "films")
        assert "argv" not in run["environment"] and run["statistics"]["status"] == "finished"
        assert list(run_folder.read_predictions(folder / "predictions.csv")) == [3]  # the last evaluation
    assert len(place.started) == 4
    lanes.run_all(runs, place.work, 2, place.out, place.names)
    assert len(place.started) == 4
    more = [*runs, place.common | {"update_rule": "classical", "seed": 2}]
    lanes.run_all(more, place.work / "elsewhere", 1, place.out, place.names)  # as in another clone
    assert len(place.started) == 5
    copied = place.out.parent / "another question"
    lanes.run_all(more[1:], place.work / "again", 1, copied, place.names, [place.out])
    assert len(place.started) == 5 and len(list(copied.glob("run_*"))) == 4


def test_runs_that_began_in_the_same_second_in_two_folders_are_both_published(place):
    runs = [place.common | {"update_rule": "frozen", "seed": seed} for seed in (0, 1, 2)]
    name = "run_20260101_000000"
    for run in runs:
        work = place.work / str(run["seed"])
        lanes.run_all([run], work, 1, work / "published", place.names)
        for folder in (work, work / "published"):
            next(folder.glob("run_*")).rename(folder / name)
    for seed in (0, 1, 0, 1):
        lanes.publish(place.work / str(seed), place.out, place.names)
    assert sorted(path.name for path in place.out.iterdir()) == [name, f"{name}_1"]
    lanes.run_all(runs, place.work, 1, place.out, place.names, [place.work / "2" / "published"])
    assert sorted(path.name for path in place.out.iterdir()) == [name, f"{name}_1", f"{name}_2"]
    assert len(place.started) == 3


def test_a_run_that_fails_is_counted_and_the_others_are_made(place):
    runs = [place.common | {"seed": 0, "train_size": size, "update_rule": "frozen"} for size in (10**6, 12)]
    with pytest.raises(SystemExit, match="1 of 2 runs failed; the same command makes what is missing"):
        lanes.run_all(runs, place.work, 1, place.out, place.names)
    assert len(list(place.out.glob("run_*"))) == 1


def test_a_run_that_cannot_go_on_is_begun_anew(place):
    run = place.common | {"seed": 0, "update_rule": "frozen"}
    lanes.run_all([run], place.work, 1, place.out, place.names)
    made = next(place.work.glob("run_*"))
    shutil.rmtree(place.out)
    (made / "training_statistics.json").write_text('{"status": "interrupted"}')
    (made / "checkpoint" / "step_00000001").mkdir(parents=True)  # of which nothing is left
    lanes.run_all([run], place.work, 1, place.out, place.names)
    assert len(list(place.out.glob("run_*"))) == 1 and len(list(place.work.glob("run_*"))) == 2
    assert "--resume" in place.started[1] and "--resume" not in place.started[2]


def test_the_frontier_is_drawn_from_differences_on_the_same_seeds():
    """An arm one point below classical at every seed is drawn there, also where it has the easy seeds alone."""
    classical = {"update_rule": "classical", "learning_rate": 1e-3}

    def run(settings, accuracy):
        statistics = {"evaluations": [{"accuracy": accuracy}], "circuits": 10, "steps": 1}
        return {"settings": config.load(lanes.flags_of(settings))._asdict(), "statistics": statistics}

    arms = {"classical": {seed: run(classical, 0.7 - seed / 100) for seed in range(10)}}
    for number, seeds in ((1, 3), (10, 6), (100, 10)):
        settings = shots.GRAPH | {"shots": number}
        arms[f"{number}"] = {seed: run(settings, 0.69 - seed / 100) for seed in range(seeds)}
    ax = figures.new_figure(4, 3).subplots()
    shots.plot_frontier(ax, arms)
    (points,) = [bars[0].get_ydata() for bars in ax.containers]
    np.testing.assert_allclose(points, np.mean([0.7 - seed / 100 for seed in range(10)]) - 0.01)


def test_the_rate_of_the_highest_mean_is_chosen_once(place, monkeypatch):
    classical, frozen, sgd = ({"update_rule": rule} for rule in ("classical", "frozen", "gradient"))
    accuracy = {}

    def run_all(runs, results_dir, number, reference, names):
        for run in runs:
            best = {"classical": 1e-3, "frozen": 1e-2}.get(run["update_rule"])
            rate = run["learning_rate"] if best else run["quantum_learning_rate"]
            accuracy[lanes.identity_of(run, names)] = 0.9 if rate == (best or 0.5) else 0.6 + 0.01 * run["seed"]

    monkeypatch.setattr(lanes, "run_all", run_all)
    monkeypatch.setattr(lanes, "final_accuracies", lambda reference: accuracy)
    place.out.mkdir()
    given = (
        classical,
        frozen,
        sgd,
        (1e-3, 1e-2),
        (0, 0.5),
        place.common,
        (1, 2),
        place.work,
        1,
        place.out,
        place.names,
    )
    chosen = lanes.choose_rates(*given)
    assert chosen == [
        {"learning_rate": 1e-3},
        {"learning_rate": 1e-2},
        {"learning_rate": 1e-2, "quantum_learning_rate": 0.5},
    ]
    grid = read_json(place.out / "tuning.json")["grid"]
    assert len(grid) == 6 and grid[0]["by_seed"] == [0.9, 0.9] and grid[1]["accuracy"] == pytest.approx(0.615)
    monkeypatch.setattr(lanes, "tune", None)
    assert lanes.choose_rates(*given) == chosen


def test_word_order_swaps_two_adjacent_words_of_half_of_the_sentences(tmp_path):
    sentences = [" ".join(f"w{index}x{place}" for place in range(7 + index % 3)) for index in range(2500)]
    for name, part in (("train", sentences[:2400]), ("dev", sentences[2400:])):
        data.write_rows(tmp_path / f"{name}.tsv", [(sentence, 1) for sentence in part])
    data.make_word_order(tmp_path, tmp_path / "made")
    seen = {}
    for split in ("tuning", "final"):
        for name in ("train", "validation"):
            rows = seen[split, name] = data.read_rows(tmp_path / "made" / split / f"{name}.tsv")
            assert sum(label == "1" for _, label in rows) == pytest.approx(len(rows) / 2, abs=40)
            for sentence, label in rows:
                words = sentence.split()
                order = [int(word.partition("x")[2]) for word in words]
                moved = [place for place, number in enumerate(order) if place != number]
                assert len(moved) == 2 * int(label) and (not moved or moved[1] - moved[0] == 1)
    assert seen["tuning", "train"] == seen["final", "train"] and len(seen["tuning", "validation"]) == data.TUNING
    first = {sentence.partition(" ")[0].partition("x")[0] for sentence, _ in seen["tuning", "train"]}
    held = {sentence.partition(" ")[0].partition("x")[0] for sentence, _ in seen["tuning", "validation"]}
    assert not first & held


@pytest.mark.parametrize("make", [data.make_word_order, data.make_sentiment])
def test_nothing_held_out_is_part_of_a_sentence_trained_on(tmp_path, monkeypatch, make):
    """Of whole sentences and phrases of them, as SST-2's training split has; most words are there twice."""
    monkeypatch.setattr(data, "TUNING", 10)
    monkeypatch.setattr(data, "HELD_OUT", 5)
    whole = [" ".join(f"w{index}x{place // 2}" for place in range(14)) for index in range(60)]
    parts = [" ".join(sentence.split()[first : first + 9]) for sentence in whole for first in range(6)]
    data.write_rows(tmp_path / "train.tsv", [(text, index % 2) for index, text in enumerate([*parts, *whole])])
    data.write_rows(tmp_path / "dev.tsv", [(f"a{index} b b c d e f g", index % 2) for index in range(20)])
    make(tmp_path, tmp_path / "made")
    sentence_of, known = {}, dict(data.read_rows(tmp_path / "train.tsv"))
    for split, name in (("tuning", "train"), ("tuning", "validation"), ("final", "validation")):
        rows = data.read_rows(tmp_path / "made" / split / f"{name}.tsv")
        sentence_of[split, name] = [text.partition("x")[0] for text, _ in rows if text.startswith("w")]
        for text, label in rows:
            assert len(text.split()) in (8, 14)  # no part of a sentence
            if make is data.make_word_order:
                assert (sorted(text.split()) == text.split()) == (label == "0")
            elif text.startswith("w"):
                assert label == known[text]
    trained, *held = sentence_of.values()
    assert [len(numbers) for numbers in held] == ([10, 5] if make is data.make_word_order else [10, 0])
    assert len(trained) == 60 - sum(map(len, held)) and not set(trained) & {*held[0], *held[1]}
    assert len(data.read_rows(tmp_path / "made" / "final" / "validation.tsv")) == 20 + len(held[1])


@pytest.mark.parametrize("name", ["word_order", "published", "sentiment", "shots", "one_shot"])
def test_questions_name_settings_that_exist(name):
    script = __import__(name)
    for arm in [*script.QUESTION["primary"], *(arm for pair in script.QUESTION["secondary"] for arm in pair)]:
        assert config.load(lanes.flags_of(arm))
    config.load(lanes.flags_of(getattr(script, "COMMON", {})))
    assert read_json(ROOT / "results" / "reference" / name / "question.json") == json.loads(json.dumps(script.QUESTION))


def test_the_grid_of_rates_goes_on_where_its_largest_is_best(monkeypatch):
    def tune(arms, setting, values, *where):
        return [{setting: value} for value in values], [min(values, key=lambda value: abs(value - best))]

    monkeypatch.setattr(lanes, "tune", tune)
    for best, rates in ((1e-3, 4), (2e-3, 5), (7e-3, 7)):
        chosen, grid = shots.choose_rate({}, {}, ())
        assert chosen == pytest.approx(best, rel=0.2) and len(grid) == rates


def test_every_point_of_the_frontier_has_one_rate():
    arms = [arm for _, level in shots.LEVELS for arm in level]
    assert all(arms.count(arm) == 1 for arm in arms)
    points = [(series, number) for series, number, _ in shots.POINTS]
    assert all(arm in points for arm in arms)
    assert shots.rate_of(shots.GRAPH, 1, [1e-3, 2e-3, 5e-4]) == 2e-3
    assert shots.rate_of(shots.GRAPH, 1000, [1e-3, 2e-3, 5e-4]) is None


def test_noise_budget_of_the_embedded_model(tmp_path, monkeypatch):
    """The measured cosines are the predicted ones, within 0.05: three gradients of 2,048 weights each and more.

    Of evaluation examples, which no training has seen: the others are gone.
    """
    prepare = train.prepare
    monkeypatch.setattr(train, "prepare", lambda *given: prepare(*given)._replace(train_set=None))
    flags = ["--model_name", "embedded", "--dataset_name", "embedded", "--results_dir", str(tmp_path)]
    budget = noise_budget.measure(config.load([*flags, "--eval_size", "24", "--update_rule", "classical"]), set())
    assert {row["circuit"] for row in budget["circuits"]} == set(quantum_circuits.CIRCUITS)
    for row in budget["circuits"]:
        assert row["measured_cosine"] == pytest.approx(row["predicted_cosine"], abs=0.05)
    noise_budget.save({"embedded": budget}, tmp_path / "budget")
    assert read_json(tmp_path / "budget.json")["embedded"]["batches"] == 3
    assert (tmp_path / "budget.png").stat().st_size > 10_000
    assert "graph" in "\n".join(noise_budget.in_words(budget))


def test_accuracy_at_the_same_loss_is_interpolated():
    rows = [{"loss": None, "eval_accuracy": 0.5}]
    for step in range(1, 61):
        rows.append({"loss": 1.0 if step <= 30 else 0.5, "eval_accuracy": None})
        if step % 30 == 0:
            rows.append({"loss": None, "eval_accuracy": 0.6 if step == 30 else 0.8})
    losses, accuracies = randomness.loss_and_accuracy(rows)
    assert (losses.tolist(), accuracies.tolist()) == ([1.0, 0.5], [0.6, 0.8])
    assert randomness.accuracy_at(0.75, losses, accuracies) == pytest.approx(0.7)
    assert randomness.accuracy_at(0.5, losses, accuracies) == pytest.approx(0.8)
    assert randomness.accuracy_at(2.0, losses, accuracies) == 0.6


def test_published_accuracies_at_the_same_loss_are_those_of_the_published_runs():
    published = ROOT / "results" / "reference" / "randomness"
    matched = randomness.compare_at_same_loss(published)
    known = read_json(published / "matched.json")
    assert matched.keys() == known.keys()
    for task, rows in matched.items():
        for row, expected in zip(rows, known[task], strict=True):
            assert row.keys() == expected.keys()
            for name, value in expected.items():
                assert row[name] == pytest.approx(tuple(value) if name == "interval" else value)


def test_a_fit_that_is_the_ideal_response_measures_as_the_circuit():
    ansatz = quantum_circuits.build_ansatz("graph", 5, math.pi / 4)
    fit = {"device": "none", "slope": ansatz.response.tolist(), "offset": [0.0] * 5}
    x = np.random.default_rng(1).uniform(-1, 1, (40, 5))
    backend = device_noise.FittedDevice(ansatz, fit)
    np.testing.assert_allclose(backend.probabilities(x) @ backend.eigenvalues, 0.5 * x, atol=1e-12)
    means, circuits, shots = backend.measure(x, 20_000, (0, 1, 0))
    np.testing.assert_allclose(means, 0.5 * x, atol=5 / math.sqrt(20_000))
    assert (circuits, shots) == (40, 40 * 20_000)


def test_a_fit_has_its_own_slope_and_offset():
    slope, offset = np.array([[0.4, 0.05, 0], [-0.1, 0.5, 0], [0, 0.02, 0.3]]), np.array([0.1, -0.05, 0.2])
    fit = {"device": "none", "slope": slope.tolist(), "offset": offset.tolist()}
    backend = device_noise.FittedDevice(quantum_circuits.build_ansatz("graph", 3, math.pi / 4), fit)
    x = np.random.default_rng(1).uniform(-1, 1, (40, 3))
    np.testing.assert_allclose(backend.probabilities(x) @ backend.eigenvalues, x @ slope.T + offset, atol=1e-12)


def test_a_device_is_fitted():
    """Noise takes some of the response, 0.707 at two qubits, and leaves little else, 60 groups."""
    ansatz = quantum_circuits.build_ansatz("graph", 2, math.pi / 4)
    fit = device_noise.fit_device("fake:FakeManilaV2", ansatz, groups=60, shots=2000)
    slope, ideal = np.array(fit["slope"]), np.array(fit["ideal_slope"])
    assert np.all(np.diag(slope) < np.diag(ideal) - 0.025) and np.all(np.diag(slope) > 0.5 * np.diag(ideal))
    assert fit["left"] == pytest.approx(fit["shot_noise"], rel=0.5)


def test_the_device_is_compared_with_the_same_rule_without_noise():
    runs = device_noise.runs_of({"adamw": {"learning_rate": 1e-3}, "sgd": {"quantum_learning_rate": 1}})
    size = len(device_noise.ARMS)
    assert [run["seed"] for run in runs[::size]] == list(device_noise.SEEDS) and len(runs) == 6 * size
    ideal = [0.6 + 0.01 * (place // size) for place in range(len(runs))]
    fitted = [value - 0.1 * (place % size) - 0.001 * (place // size) for place, value in enumerate(ideal)]
    primary, *rows = device_noise.compare([fitted, ideal], 846)
    assert primary["differences"] == pytest.approx([-0.001 * seed for seed in range(6)]) and primary["family_size"] == 1
    assert [row["mean"] for row in rows] == pytest.approx([-0.1025, -0.2025, -0.3025])
    assert [(row["optimizer"], row["shots"]) for row in rows] == device_noise.ARMS[1:]
    assert {row["family_size"] for row in rows} == {3} and {row["verdict"] for row in rows} == {"worse"}
    assert max(row["p_adjusted"] for row in rows) == max(row["p"] for row in rows) < 0.05


def test_curvature_of_a_quadratic_loss(monkeypatch):
    """L = |w|^2, H = 2: g H g = 2 |g|^2, and tr(H Sigma) twice the variance, within 6 standard errors."""
    w = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(noise_budget, "loss_gradients", lambda *_, create_graph: {"w": 2 * w})
    job = SimpleNamespace(model=torch.nn.Identity(), eval_set=[0], weights={"w": w}, settings=config.load([]))
    g = torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = noise_budget.measure_curvature(job, {"w": g})
    assert found["curvature"] == pytest.approx(2 * found["squared_norm"])
    groups = g.view(-1, 5).numpy()
    expected = 2 * (4 * 5 * np.square(abs(groups).max(axis=1)).sum() - np.square(groups).sum())  # c = 1/2
    for rule in ("joint", "independent"):
        assert found[rule]["trace"] == pytest.approx(expected, abs=6 * found[rule]["standard_error"])


def test_parity_and_inner_products():
    draw = torch.Generator().manual_seed(2)
    gradients = [{name: torch.randn(7, generator=draw) for name in ("a", "b")} for _ in range(3)]
    expected = [[noise_budget.dot(first, second) for second in gradients] for first in gradients]
    np.testing.assert_allclose(noise_budget.inner_products(gradients), expected, rtol=1e-12)
    assert noise_budget.shots_at_parity({"one_shot": 2.0}, {"inverse_batch_noise": 0.25}) == 2.5
    assert noise_budget.shots_at_parity({"one_shot": 2.0}, {"inverse_batch_noise": -0.1}) == 2.0


def test_training_with_the_fit_of_a_device(tmp_path):
    ansatz = quantum_circuits.build_ansatz("graph", 5, math.pi / 4)
    fit = {"device": "fake:none", "slope": (0.9 * ansatz.response).tolist(), "offset": [0.01] * 5}
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    flags = [
        "--model_name",
        "embedded",
        "--dataset_name",
        "embedded",
        "--train_size",
        "16",
        "--eval_size",
        "8",
        "--num_epochs",
        "1",
    ]
    script = ROOT / "experiments" / "device_noise.py"
    command = [sys.executable, str(script), *flags, "--results_dir", str(tmp_path / "runs")]
    environment = os.environ | {device_noise.FIT: str(tmp_path / "fit.json")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").glob("run_*")
    assert read_json(run / "environment.json")["backend"] == "fit of fake:none"
