"""`python analyze.py`: runs and studies, good and broken."""

import json
import shutil

import pytest
from conftest import ROOT, run_analysis
from matplotlib.image import imread


def test_analysis_of_a_run(finished_run, capsys):
    assert run_analysis(finished_run) == 0
    for name in ("training_curves", "attention_maps"):
        picture = imread(finished_run / "analysis" / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    assert "attention_maps.png" in capsys.readouterr().out


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
    assert "Final accuracy, loss and time" in captured.out and "report.html" in captured.out
    assert captured.err.count("skipped") == 1 and "no pair of quantum and another rule" in captured.out
    assert (results / "analysis" / "attention_quantum.png").exists()


def test_the_published_study_is_reproduced(tmp_path, capsys):
    folder = tmp_path / "shots"
    shutil.copytree(ROOT / "results" / "reference" / "shots", folder, ignore=shutil.ignore_patterns("analysis"))
    assert run_analysis(folder) == 0
    published = ROOT / "results" / "reference" / "shots" / "analysis"
    made, known = (json.loads((f / "comparisons.json").read_text()) for f in (folder / "analysis", published))
    assert made["arms"] == known["arms"] and made["conclusion"] == known["conclusion"]
    for row, expected in zip(made["comparisons"], known["comparisons"], strict=True):
        assert row.pop("interval") == pytest.approx(expected.pop("interval")) and row == pytest.approx(expected)
    assert {path.name for path in (folder / "analysis").iterdir()} == {path.name for path in published.iterdir()}
    assert "- quantum, shots 10 against exact (the shot noise)" in capsys.readouterr().out
