"""Captions, curves, figures of studies, and attention maps."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, fake_run, fake_study

from harness import run_folder
from report import attention, figures
from report.study import group_arms
from report.study_figures import plot_over_steps
from update_rules import RULES

CAPTIONS = [
    ("quantum", "quantum (graph, 5 qubits, 1000 shots)"),
    ("independent", "independent (graph, 5 qubits, 1000 shots)"),
    ("exact", "exact (graph, 5 qubits)"),
    ("gradient", "gradient"),
    ("classical", "classical"),
    ("frozen", "frozen"),
]


@pytest.mark.parametrize(("rule", "expected"), CAPTIONS)
def test_captions_name_the_circuits_and_shots_that_a_rule_uses(tmp_path, rule, expected):
    run = fake_run(tmp_path, rule, 0, 0.7)
    assert figures.caption(run) == f"model on <b>data, 100 examples, {expected}"


def test_every_rule_has_its_caption_here():
    assert [rule for rule, _ in CAPTIONS] == list(RULES)


def test_the_caption_of_a_study_names_each_task_once(tmp_path):
    runs = [*fake_study(tmp_path, [0.1]), fake_run(tmp_path, "exact", 0, 0.7, train_size=0)]
    assert figures.study_caption(runs) == "model on <b>data, 100 examples | model on <b>data, all examples"


def test_importing_the_figures_of_a_run_is_light():
    code = "import sys, report.figures; print({'torch', 'transformers', 'qiskit', 'scipy.stats'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_curves_hold_every_step_and_evaluation(finished_run):
    rows = run_folder.read(finished_run)["rows"]
    ax = figures.plot_curve(figures.new_figure(4, 3).subplots(), rows, "accuracy", "black")
    batch, evaluation = ax.get_lines()
    assert list(batch.get_xdata()) == [1, 2, 3, 4, 5, 6] and list(evaluation.get_xdata()) == [0, 3, 6]
    assert list(evaluation.get_ydata()) == [row["eval_accuracy"] for row in rows if row["eval_accuracy"] is not None]


def test_bands_are_the_standard_deviation_that_the_tables_show(tmp_path):
    accuracies = [0.7, 0.8, 0.75]
    runs = [fake_run(tmp_path, "quantum", seed, accuracy) for seed, accuracy in enumerate(accuracies)]
    ax = plot_over_steps(figures.new_figure(4, 3).subplots(), group_arms(runs), "eval_accuracy", "accuracy")
    outline = ax.collections[0].get_paths()[0].vertices
    at_the_end = outline[outline[:, 0] == 3, 1]
    assert np.ptp(at_the_end) / 2 == pytest.approx(np.std(accuracies, ddof=1))


def test_one_seed_has_a_curve_without_a_band(tmp_path):
    arms = group_arms(fake_study(tmp_path, [0.1]))
    ax = plot_over_steps(figures.new_figure(4, 3).subplots(), arms, "eval_accuracy", "accuracy")
    assert len(ax.get_lines()) == 2 and not ax.collections


def test_a_step_that_one_seed_alone_has_seen_interrupts_the_band(tmp_path):
    runs = [fake_run(tmp_path, "quantum", seed, 0.7) for seed in (0, 1)]
    runs[0]["rows"].append({**runs[0]["rows"][-1], "step": 4.0})
    ax = plot_over_steps(figures.new_figure(4, 3).subplots(), group_arms(runs), "eval_accuracy", "accuracy")
    (line,), (collection,) = ax.get_lines(), ax.collections
    assert max(line.get_xdata()) == 4
    assert max(path.vertices[:, 0].max() for path in collection.get_paths()) == 3


# --- Attention maps


def test_attention_maps_are_distributions_over_the_tokens(finished_run):
    ((tokens, weights),) = attention.attention_maps(finished_run / "model", ["the film is dull"], 1)
    assert tokens == ["[CLS]", "the", "film", "is", "dull", "[SEP]"]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_attention_before_training_is_that_of_the_start(finished_run, tiny_model):
    before = attention.attention_maps(str(tiny_model), ["the film is dull"], 0)[0][1]
    after = attention.attention_maps(finished_run / "model", ["the film is dull"], 0)[0][1]
    assert 0 < np.abs(before - after).max() < 0.1


def test_without_the_start_only_what_is_left_is_shown(finished_run, tmp_path, capsys):
    run = run_folder.read(finished_run)
    run["environment"]["model"] = {"kind": "local", "path": str(tmp_path / "gone")}
    attention.save_attention_maps(tmp_path / "maps.png", run)
    assert "the start is not available" in capsys.readouterr().out and (tmp_path / "maps.png").exists()


def test_dollar_signs_are_no_formulas_and_the_layer_is_the_selected_one(finished_run, tmp_path):
    run = run_folder.read(finished_run)
    run["settings"] |= {"sample_sentences": ["a $_$ b $$"], "attention_layers": [1]}
    run["environment"]["data"] = {"kind": "local", "path": "a$_$b"}
    assert figures.save_curves(tmp_path / "c.png", run).exists()
    assert attention.save_attention_maps(tmp_path / "a.png", run).exists()
    assert attention.first_selected_layer(run) == 1
    run["settings"]["attention_layers"] = "all"
    run["statistics"]["selected_weights"] = {"encoder.layer.7.attention.self.query.weight": 4}
    assert attention.first_selected_layer(run) == 7
    with pytest.raises(ValueError, match="attention of 2 layers, not of layer 7"):
        attention.save_attention_maps(tmp_path / "a.png", run)
