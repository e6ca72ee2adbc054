"""`python analyze.py`: runs and studies, good and broken."""

import json
import shutil

from conftest import run_analysis
from matplotlib.image import imread


def test_analysis_of_a_run(finished_run, capsys):
    assert run_analysis(finished_run) == 0
    for name in ("training_curves", "attention_maps"):
        picture = imread(finished_run / "analysis" / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    out = capsys.readouterr().out
    assert "attention_maps.png" in out and "first: python train.py --update_rule classical --model_name" in out


def test_the_most_recent_run_is_compared_with_classical_training(finished_run, tmp_path, capsys):
    results = tmp_path / "results"
    for name, rule in (("run_20260101_000000", "classical"), ("run_20260101_000001", "quantum")):
        folder = shutil.copytree(finished_run, results / name, ignore=shutil.ignore_patterns("analysis"))
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"update_rule": rule}))
    assert run_analysis("--results_dir", results) == 0
    out = capsys.readouterr().out
    words = "quantum against classical (circuits and optimizer together): "
    assert f"compared with {results / 'run_20260101_000000'}: {words}" in out
    for name in ("comparison", "attention_of_both"):
        picture = imread(results / "run_20260101_000001" / "analysis" / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    shutil.rmtree(results / "run_20260101_000000" / "model")
    assert run_analysis("--results_dir", results) == 0
    assert "no attention_of_both: one of the runs saved no model" in capsys.readouterr().out


def test_broken_runs_are_skipped_with_a_line(finished_run, tmp_path, capsys):
    broken = shutil.copytree(finished_run, tmp_path / "broken")
    (broken / "config.json").write_text("{half")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_analysis(broken, empty, tmp_path / "none", finished_run) == 0
    err = capsys.readouterr().err
    assert "config.json cannot be read" in err and "no such run folder" in err and err.count("\nskipped ") == 2
    assert run_analysis(empty) == 2


def test_interrupted_runs_have_curves_but_no_maps(finished_run, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "analysis", ignore_errors=True)
    statistics = json.loads((run / "training_statistics.json").read_text())
    (run / "training_statistics.json").write_text(json.dumps(statistics | {"status": "interrupted"}))
    assert run_analysis(run) == 0
    assert [path.name for path in (run / "analysis").iterdir()] == ["training_curves.png"]
    assert "no attention_maps: the run saved no model" in capsys.readouterr().out


def test_a_folder_of_runs_is_a_study_and_what_is_broken_is_skipped(finished_run, tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(finished_run, results / "run_20260101_000000")
    (results / "run_20260101_000001").mkdir()
    (results / "run_20260101_000001" / "config.json").write_text("{")
    assert run_analysis(results) == 0
    captured = capsys.readouterr()
    assert "Final accuracy and loss" in captured.out and "report.html" in captured.out
    assert captured.err.count("skipped") == 1 and "nothing to compare" in captured.out
    assert (results / "analysis" / "attention_quantum.png").exists()
    (results / "question.json").write_text('{"question": "Q", "primary": ["quantum", "classic"]}')
    assert run_analysis(results) == 2
    assert "question.json cannot be used: UPDATE_RULE = 'classic': must be one of" in capsys.readouterr().err


def copies(run, results, *changes):
    """Copies of a run folder, without its model, with changed settings, in the folder results."""
    for number, changed in enumerate(changes):
        folder = shutil.copytree(run, results / f"run_20260101_{number:06}", ignore=shutil.ignore_patterns("model"))
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | changed))


def test_runs_of_several_tasks_are_sections_the_largest_first(finished_run, tmp_path, capsys):
    results = tmp_path / "results"
    small = [{"train_size": 8, "update_rule": rule} for rule in ("quantum", "classical", "frozen")]
    copies(finished_run, results, {"num_epochs": 5}, *small, {"update_rule": "gone"})
    assert run_analysis(results) == 0
    captured = capsys.readouterr()
    assert captured.out.index(", 8 examples, 2 epochs, 3 runs\n") < captured.out.index(
        ", 12 examples, 5 epochs, 1 run\n"
    )
    assert captured.err.count("skipped") == 1 and "there is no such rule" in captured.err
    page = (results / "analysis" / "report.html").read_text(encoding="utf-8")
    assert "Runs of 2 tasks, each compared by itself</h1>" in page and page.count("<section ") == 2
    assert (results / "analysis" / "section_2" / "learning_curves.png").exists()
    assert "](section_2/learning_curves.png)" in (results / "analysis" / "report.md").read_text(encoding="utf-8")
    made = json.loads((results / "analysis" / "comparisons.json").read_text())
    assert [list(study["arms"]) for study in made] == [["quantum", "classical", "frozen"], ["quantum"]]


def test_a_folder_of_folders_of_runs_stands_for_each_of_them(finished_run, tmp_path, capsys):
    for name in ("b", "a"):
        copies(finished_run, tmp_path / name, {})
    (tmp_path / "empty").mkdir()
    assert run_analysis(tmp_path) == 0
    captured = capsys.readouterr()
    assert captured.out.index(f"{tmp_path / 'a'}: ") < captured.out.index(f"{tmp_path / 'b'}: ") and not captured.err
    assert (tmp_path / "a" / "analysis" / "report.html").exists() and not (tmp_path / "analysis").exists()
    assert run_analysis(tmp_path / "empty") == 2
    assert "empty: holds no run, and no folder of runs" in capsys.readouterr().err


def test_a_study_is_analysed_from_its_runs_and_its_question(finished_run, tmp_path, capsys):
    results = tmp_path / "results"
    for number in range(4):
        folder = shutil.copytree(finished_run, results / f"run_2026010{number + 1}_000000")
        shutil.rmtree(folder / "model")
        changes = {"seed": number // 2, "update_rule": ("quantum", "frozen")[number % 2]}
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | changes))
    (results / "question.json").write_text('{"question": "Why?", "primary": ["quantum", "frozen"]}')
    assert run_analysis(results) == 0
    assert "Primary comparison: quantum against frozen (whether those" in capsys.readouterr().out
    made = json.loads((results / "analysis" / "comparisons.json").read_text())
    assert made["arms"] == {"quantum": [0, 1], "frozen": [0, 1]} and made["question"]["question"] == "Why?"
    assert made["comparisons"][0]["verdict"] == "undecided" and made["comparisons"][0]["mean"] == 0
