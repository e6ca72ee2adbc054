"""Reading runs, good and broken, and the figures."""

import itertools
import json
import shutil

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

import analyze
import config
import run_folder
import train


@pytest.fixture(scope="module")
def finished_run(tiny_model, tiny_data, tmp_path_factory):
    results = tmp_path_factory.mktemp("analysed")
    flags = ["--model_name", str(tiny_model), "--dataset_name", str(tiny_data), "--results_dir", str(results)]
    sizes = ["--train_size", "12", "--eval_size", "10", "--batch_size", "4", "--num_epochs", "2", "--max_length", "32"]
    assert train.main([*flags, *sizes, "--sample_sentences", '["the film is dull", "a superb script"]']) == 0
    return next(results.iterdir())


def test_analysis_of_a_run(finished_run, capsys):
    assert analyze.main([str(finished_run)]) == 0
    for name in ("training_curves", "attention_maps"):
        picture = imread(finished_run / "analysis" / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    assert "attention_maps.png" in capsys.readouterr().out


def test_attention_maps_are_distributions_over_the_tokens(finished_run):
    ((tokens, weights),) = analyze.attention(finished_run / "model", ["the film is dull"], 1)
    assert tokens == ["[CLS]", "the", "film", "is", "dull", "[SEP]"]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_attention_before_training_is_that_of_the_start(finished_run, tiny_model):
    before = analyze.attention(str(tiny_model), ["the film is dull"], 0)[0][1]
    after = analyze.attention(finished_run / "model", ["the film is dull"], 0)[0][1]
    assert 0 < np.abs(before - after).max() < 0.1


def test_without_the_start_only_what_is_left_is_shown(finished_run, tmp_path, capsys):
    run = run_folder.read(finished_run)
    run["environment"]["model"] = {"kind": "local", "path": str(tmp_path / "gone")}
    analyze.save_attention_maps(tmp_path / "maps.png", run)
    assert "the start is not available" in capsys.readouterr().out and (tmp_path / "maps.png").exists()


def test_curves_hold_every_step_and_evaluation(finished_run):
    rows = run_folder.read(finished_run)["rows"]
    ax = analyze.plot_curve(analyze.new_figure(4, 3).subplots(), rows, "accuracy", "black")
    batch, evaluation = ax.get_lines()
    assert list(batch.get_xdata()) == [1, 2, 3, 4, 5, 6] and list(evaluation.get_xdata()) == [0, 3, 6]
    assert list(evaluation.get_ydata()) == [row["eval_accuracy"] for row in rows if row["eval_accuracy"] is not None]


def test_the_most_recent_run_is_found_among_junk(tmp_path):
    for name in ("run_20260101_120000", "run_20260101_120000_2", "run_20260101_120000_10", "run_x_y", "reference"):
        (tmp_path / name).mkdir()
    (tmp_path / "run_20270101_000000").write_text("a file")
    assert run_folder.most_recent(tmp_path).name == "run_20260101_120000_10"
    with pytest.raises(ValueError, match=r"holds no run folder, `python train\.py` makes one"):
        run_folder.most_recent(tmp_path / "reference")


def test_broken_runs_are_skipped_with_a_line(finished_run, tmp_path, capsys):
    broken = shutil.copytree(finished_run, tmp_path / "broken")
    (broken / "config.json").write_text("{half")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert analyze.main([str(broken), str(empty), str(tmp_path / "none"), str(finished_run)]) == 0
    err = capsys.readouterr().err
    assert "config.json cannot be read" in err and "no such run folder" in err and err.count("\nskipped ") == 2
    assert analyze.main([str(empty)]) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "config.json lacks accumulation_steps, aer_device, attention_layers"),
        ("environment.json", "null", "environment.json lacks data, model"),
        ("training_statistics.json", "{}", "training_statistics.json lacks selected_weights, status"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv cannot be read: its columns are not those of a run"),
    ],
)
def test_odd_files_in_a_run_are_named(finished_run, tmp_path, name, content, message):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        run_folder.read(run)


def test_dollar_signs_are_no_formulas_and_the_layer_is_the_selected_one(finished_run, tmp_path):
    run = run_folder.read(finished_run)
    run["settings"] |= {"sample_sentences": ["a $_$ b $$"], "attention_layers": [1]}
    run["environment"]["data"] = {"kind": "local", "path": "a$_$b"}
    assert analyze.save_curves(tmp_path / "c.png", run).exists()
    assert analyze.save_attention_maps(tmp_path / "a.png", run).exists()
    assert analyze.first_layer(run) == 1
    run["settings"]["attention_layers"] = "all"
    run["statistics"]["selected_weights"] = {"encoder.layer.7.attention.self.query.weight": 4}
    assert analyze.first_layer(run) == 7
    with pytest.raises(ValueError, match="attention of 2 layers, not of layer 7"):
        analyze.save_attention_maps(tmp_path / "a.png", run)


def test_a_half_written_last_row_is_left_out(finished_run, tmp_path):
    text = (finished_run / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(text + "7,3,0.5")
    assert len(run_folder.read_metrics(tmp_path / "metrics.csv")) == len(
        run_folder.read_metrics(finished_run / "metrics.csv")
    )


def test_interrupted_runs_have_curves_but_no_maps(finished_run, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "analysis", ignore_errors=True)
    statistics = json.loads((run / "training_statistics.json").read_text())
    (run / "training_statistics.json").write_text(json.dumps(statistics | {"status": "interrupted"}))
    assert analyze.main([str(run)]) == 0
    assert [path.name for path in (run / "analysis").iterdir()] == ["training_curves.png"]
    assert "no attention_maps: the run saved no model" in capsys.readouterr().out


# --- Studies


def fake_run(folder, rule, seed, accuracy, **changes):
    """A run as read_run gives it, with numbers of our own."""
    settings = json.loads(json.dumps(config.load(["--update_rule", rule, "--seed", str(seed)])._asdict())) | changes
    rows = []
    for step in range(4):
        row = dict.fromkeys(("loss", "accuracy", "cosine", "eval_loss", "eval_accuracy"))
        row |= {"loss": 0.5, "accuracy": 0.5, "cosine": 0.9} if step else {"eval_loss": 0.7, "eval_accuracy": 0.5}
        rows.append({"step": float(step), **row})
    rows.append({**dict.fromkeys(rows[0]), "step": 3.0, "eval_loss": 0.4, "eval_accuracy": accuracy})
    stages = {f"seconds_{stage}": 1.0 for stage in ("forward", "backward", "quantum", "other")}
    evaluations = [{"step": 0, "loss": 0.7, "accuracy": 0.5}, {"step": 3, "loss": 0.4, "accuracy": accuracy}]
    statistics = {"status": "finished", "steps": 3, "circuits": 30, "evaluations": evaluations, **stages}
    source = {"kind": "local", "path": "<b>data</b>", "evaluation_examples": 100}
    environment = {"model": {"kind": "local", "path": "model"}, "data": source, "packages": {"a|b": "1"}}
    return {
        "folder": folder / f"run_{rule}_{seed}",
        "settings": settings,
        "environment": environment,
        "statistics": statistics | {"selected_weights": {}},
        "rows": rows,
    }


def fake_study(folder, differences):
    """Pairs of classical (0.7) and quantum (0.7 + difference) runs."""
    runs = []
    for seed, difference in enumerate(differences):
        runs += [fake_run(folder, "classical", seed, 0.7), fake_run(folder, "quantum", seed, 0.7 + difference)]
    return runs


def test_student_interval_against_scipy_and_the_limit_of_one():
    values = [0.7, 0.72, 0.69, 0.75]
    mean, deviation, (low, high) = analyze.spread(values)
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    t = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((t.low, t.high))
    assert analyze.spread([0.5]) == (0.5, None, None)


def test_sign_flip_p_is_the_count_of_all_flips():
    differences = np.array([0.02, 0.01, 0.03, -0.005, 0.015])
    flips = np.array(list(itertools.product([1, -1], repeat=5))) * differences
    one_sided = np.mean(flips.mean(axis=1) >= differences.mean() - 1e-12)
    mean, (low, high), p = analyze.paired(differences)
    assert mean == pytest.approx(differences.mean()) and low < mean < high
    assert p == pytest.approx(2 * one_sided)
    assert analyze.paired(differences) == (mean, (low, high), p)  # the bootstrap has a seed of its own
    assert analyze.paired([0.1]) == (0.1, None, None)
    assert analyze.paired([0.0, 0.0, 0.0]) == (0.0, (0.0, 0.0), 1.0)


def test_bootstrap_interval_covers_the_truth_at_its_rate():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        _, (low, high), _ = analyze.paired(draw.normal(0.3, 1, 20))
        covered += low <= 0.3 <= high
    assert 0.85 <= covered / 150 <= 0.99  # percentile intervals of 20 values cover a little less than 95%


def test_holm_is_the_textbook_procedure():
    assert analyze.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert analyze.holm([None, 0.5, 0.9]) == [None, 1.0, 1.0] and analyze.holm([]) == []


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
    comparisons = analyze.compare_arms(analyze.group_arms(fake_study(tmp_path, differences)))
    (sentence,) = analyze.conclude(comparisons)
    assert words in sentence and "quantum against classical (the whole idea)" in sentence
    small = len(differences) > 1 and abs(np.mean(differences)) < 1.96 * np.sqrt(0.7 * 0.3 / 100)
    assert ("smaller than the evaluation set's own half-width of 9.0 points" in sentence) == small


def test_arms_are_runs_that_differ_in_the_seed_alone(tmp_path):
    runs = fake_study(tmp_path, [0.01, 0.02])
    runs += [fake_run(tmp_path, "quantum", seed, 0.8, shots=10) for seed in (0, 1)]
    runs += [fake_run(tmp_path, "classical", 0, 0.9, learning_rate=1.0)]
    arms = analyze.group_arms(runs)
    assert {label: len(arm) for label, arm in arms.items()} == {
        "quantum, learning_rate 5e-05, shots 10": 2,
        "quantum, learning_rate 5e-05, shots 1000": 2,
        "classical, learning_rate 5e-05": 2,
        "classical, learning_rate 1.0": 1,
    }
    pairs = {(row["arm"], row["base"]) for row in analyze.compare_arms(arms)}
    assert pairs == {(f"quantum, learning_rate 5e-05, shots {s}", "classical, learning_rate 5e-05") for s in (10, 1000)}


def test_a_report_holds_everything_and_escapes_what_came_from_data(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2, 0.15])
    runs += [fake_run(tmp_path, "quantum", seed, 0.8, shots=10) for seed in range(3)]
    arms = analyze.group_arms(runs)
    comparisons = analyze.compare_arms(arms)
    figures = analyze.save_study_figures(tmp_path, runs, arms, comparisons)
    names = {path.stem for path, _ in figures}
    assert names == {
        *("learning_curves", "cosine", "paired_differences", "accuracy_by_shots", "cost", "response", "covariance"),
    }
    content = analyze.report_content(runs, arms, comparisons, analyze.conclude(comparisons), figures)
    analyze.write_report(tmp_path, content | {"sentences": ["<script>alert(1)</script>", *content["sentences"]]})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page
    assert page.count("data:image/png;base64,") == len(figures) and page.index("Conclusion") < page.index("<table")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (r"a\|b", "![", "Paired differences", *content["sentences"]):
        assert text in markdown
    assert "quantum, shots 10 " in markdown and "-" in markdown


def test_a_study_of_one_seed_has_no_interval_anywhere(tmp_path):
    runs = fake_study(tmp_path, [0.1])
    arms = analyze.group_arms(runs)
    content = analyze.report_content(runs, arms, analyze.compare_arms(arms), [], [])
    for row in content["tables"][0][2]:
        assert row[3] == row[4] == "-"
    assert content["tables"][1][2][0][4:7] == ["-", "-", "-"]


def test_a_folder_of_runs_is_a_study_and_what_is_broken_is_skipped(finished_run, tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(finished_run, results / "run_20260101_000000")
    (results / "run_20260101_000001").mkdir()
    (results / "run_20260101_000001" / "config.json").write_text("{")
    assert analyze.main([str(results)]) == 0
    captured = capsys.readouterr()
    assert "Final accuracy, loss and time" in captured.out and "report.html" in captured.out
    assert captured.err.count("skipped") == 1 and "no pair of quantum and another rule" in captured.out
    assert (results / "analysis" / "attention_quantum.png").exists()
