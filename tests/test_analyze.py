"""Reading runs, good and broken, and the figures."""

import json
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

import analyze
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
    run = analyze.read_run(finished_run)
    run["environment"]["model"] = {"kind": "local", "path": str(tmp_path / "gone")}
    analyze.save_attention_maps(tmp_path / "maps.png", run)
    assert "the start is not available" in capsys.readouterr().out and (tmp_path / "maps.png").exists()


def test_curves_hold_every_step_and_evaluation(finished_run):
    rows = analyze.read_run(finished_run)["rows"]
    ax = analyze.plot_curve(analyze.new_figure(4, 3).subplots(), rows, "accuracy", "black")
    batch, evaluation = ax.get_lines()
    assert list(batch.get_xdata()) == [1, 2, 3, 4, 5, 6] and list(evaluation.get_xdata()) == [0, 3, 6]
    assert list(evaluation.get_ydata()) == [row["eval_accuracy"] for row in rows if row["eval_accuracy"] is not None]


def test_the_most_recent_run_is_found_among_junk(tmp_path):
    for name in ("run_20260101_120000", "run_20260101_120000_2", "run_20260101_120000_10", "run_x_y", "reference"):
        (tmp_path / name).mkdir()
    (tmp_path / "run_20270101_000000").write_text("a file")
    assert analyze.most_recent(tmp_path).name == "run_20260101_120000_10"
    with pytest.raises(ValueError, match=r"holds no run folder, `python train\.py` makes one"):
        analyze.most_recent(tmp_path / "reference")


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
        ("config.json", "[]", "config.json lacks attention_layers"),
        ("environment.json", "null", "environment.json lacks data, model"),
        ("training_statistics.json", "{}", "training_statistics.json lacks evaluations"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv cannot be read: its columns are not those of a run"),
    ],
)
def test_odd_files_in_a_run_are_named(finished_run, tmp_path, name, content, message):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        analyze.read_run(run)


def test_dollar_signs_are_no_formulas_and_the_layer_is_the_selected_one(finished_run, tmp_path):
    run = analyze.read_run(finished_run)
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
    assert len(analyze.read_metrics(tmp_path / "metrics.csv")) == len(
        analyze.read_metrics(finished_run / "metrics.csv")
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
