"""Captions, curves, figures of studies, and attention maps."""

import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import ROOT, fake_run, fake_study
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import quantum_circuits
from harness import run_folder
from report import attention, figures
from report.circuit_figures import device_figure, figures_of_circuits, figures_of_devices, group_by_device
from report.statistics import spread
from report.study import analyse, group_arms
from report.study_figures import (
    forest_figure,
    of_shared_seeds,
    plot_difference_over_steps,
    plot_differences,
    plot_over_steps,
    plot_recovered,
    plot_sweep,
    study_figures,
    styles,
    swept,
)
from report.words import with_n
from update_rules import RULES

CAPTIONS = [
    ("quantum", "quantum (graph, 5 qubits, 1000 shots, SGD)"),
    ("independent", "independent (graph, 5 qubits, 1000 shots, SGD)"),
    ("exact", "exact (graph, 5 qubits, SGD)"),
    ("gradient", "gradient (SGD)"),
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


def test_the_cosine_is_shown_where_it_was_measured(finished_run, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: saved.append(figure))
    figures.save_curves(tmp_path / "c.png", run_folder.read(finished_run))
    figures.save_curves(tmp_path / "c.png", run_without_cosine(run_folder.read(finished_run)))
    assert [len(figure.axes) for figure in saved] == [3, 2]
    (line,) = saved[0].axes[2].get_lines()
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6] and "cosine" in saved[0].axes[2].get_ylabel()


def run_without_cosine(run):
    return run | {"rows": [row | {"cosine": None} for row in run["rows"]]}


# --- Studies


def drawn(figure):
    """The Figure, drawn as it is saved, where a layout that has no room is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    """All texts of a Figure in one."""
    found = [text.get_text() for text in figure.findobj(Text)]
    return " ".join(" ".join(found).split()).replace("\N{NO-BREAK SPACE}", " ")


def rich_study(tmp_path, seeds=3, rules=("quantum", "exact", "classical", "frozen"), **changes):
    """A study of these rules, quantum with three numbers of shots."""
    runs = [
        fake_run(
            tmp_path, rule, seed, 0.7 + seed / 50 + shots / 10_000 - 0.3 * (rule == "frozen"), shots=shots, **changes
        )
        for rule in rules
        for shots in ((1, 10, 100) if rule == "quantum" else (100,))
        for seed in range(seeds)
    ]
    return analyse(runs, {"question": "Q", "primary": [{"update_rule": "quantum", "shots": 100}, "classical"]})


def test_a_study_has_its_figures_and_each_says_what_its_bands_mean(tmp_path):
    found = {name: drawn(figure) for name, figure, _ in study_figures(rich_study(tmp_path))}
    assert list(found) == [
        *("paired_differences", "differences_over_training", "recovered_fraction", "learning_curves", "cosine"),
        *("accuracy_by_shots", "response", "covariance"),
    ]
    for name, words in {
        "paired_differences": "primary: quantum, 100 shots - classical (n = 3)",
        "differences_over_training": "Band: Student's interval as in the table, for each step by itself;",
        "recovered_fraction": "Bar: Fieller's 95% interval.",
        "learning_curves": "Lines: means over the n seeds of each arm. Where lines coincide the first is the widest.",
        "accuracy_by_shots": "Bars: Student's 95% interval over the n seeds of each arm.",
        "response": "Bands: two standard deviations of the mean of so many shots;",
    }.items():
        assert words in texts(found[name])


def test_titles_say_what_is_compared(tmp_path):
    titles = {name: title for name, _, title in study_figures(rich_study(tmp_path))}
    assert titles["paired_differences"].endswith("quantum, exact, classical and frozen by number of shots")
    assert titles["accuracy_by_shots"] == "Final accuracy by number of shots"


def test_circuits_that_were_used_are_shown_alone_and_a_broken_one_stops_nothing(tmp_path, monkeypatch, capsys):
    def no_circuit(n, phi):
        raise RuntimeError("not written yet")

    monkeypatch.setitem(quantum_circuits.CIRCUITS, "mine", (no_circuit, 1.0))
    runs = [fake_run(tmp_path, "quantum", 0, 0.7, circuit=name) for name in ("graph", "product")]
    found = {name: drawn(figure) for name, figure, _ in figures_of_circuits(runs)}
    assert [ax.get_title() for ax in found["response"].axes] == ["graph\n1000 shots", "product\n1000 shots"]
    assert [ax.get_title() for ax in found["covariance"].axes] == ["quantum: graph", "quantum: product"]
    assert not capsys.readouterr().out
    runs += [fake_run(tmp_path, "quantum", 0, 0.7, circuit=name) for name in ("mine", "gone")]
    runs += [fake_run(tmp_path, "independent", 0, 0.7, entangling_angle=angle) for angle in (1.5, 1.5707963267948963)]
    study = analyse(runs, {})
    found = {name: drawn(figure) for name, figure, _ in study_figures(study)}
    out = capsys.readouterr().out
    assert out.count("  no response of ") == 3 and "not written yet" in out and "gone" in out
    titles = [ax.get_title().replace("\n", " ") for ax in found["response"].axes]
    assert titles == ["graph, angle π/4 1000 shots", "product, angle π/4 1000 shots", "graph, angle 1.5 1000 shots"]
    assert max(found["response"].axes[0].get_ylim()) <= 2


def test_without_circuits_there_is_no_figure_of_them_and_exact_means_have_no_bands(tmp_path):
    assert not list(figures_of_circuits([fake_run(tmp_path, "gradient", 0, 0.7)]))
    ((name, figure, _),) = figures_of_circuits([fake_run(tmp_path, "exact", 0, 0.7)])
    assert name == "response" and not figure.axes[0].collections


def test_long_labels_find_room(tmp_path):
    names = [f"a model with a very long name, no. {index}, of a group that likes long names" for index in range(4)]
    runs = [
        fake_run(tmp_path, rule, seed, 0.7 + seed / 50, model_name=name, circuit=f"{name}, a circuit")
        for rule in ("quantum", "classical", "frozen")
        for name in names
        for seed in (0, 1)
    ]
    for name, figure, title in study_figures(analyse(runs, {}) | {"runs": []}):
        figures.add_title(figure, title)
        figure = drawn(figure)
        width = figure.get_window_extent().width
        for ax in figure.axes:
            for label in ax.get_yticklabels():
                extent = label.get_window_extent()
                assert extent.x0 >= 0 and extent.x1 <= ax.get_window_extent().x0, name
        for legend in figure.legends:
            assert legend.get_window_extent().x0 >= -1 and legend.get_window_extent().x1 <= width + 1, name


def test_the_forest_holds_the_intervals_of_the_table_and_the_primary_row_first(tmp_path):
    rows = rich_study(tmp_path)["comparisons"]
    rows = sorted(rows, key=lambda row: row["part"])
    ax = plot_differences(figures.new_figure(6, 4).subplots(), rows, [row["arm"] for row in rows])
    lines = {(tuple(np.round(line.get_xdata(), 9)), line.get_ydata()[0]) for line in ax.get_lines()}
    for place, row in enumerate(rows):
        assert (tuple(np.round([100 * end for end in row["interval"]], 9)), place) in lines
        assert ((round(100 * row["mean"], 9),), place) in lines
    assert rows[0]["part"] == "primary" and ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row on top


def test_the_recovered_fractions_are_those_of_the_table(tmp_path):
    rows = rich_study(tmp_path)["recovered"]
    ax = plot_recovered(figures.new_figure(6, 4).subplots(), rows, [row["arm"] for row in rows])
    drawn_rows = [(list(line.get_xdata()), line.get_ydata()[0]) for line in ax.get_lines()]
    assert len(rows) > 2
    for place, row in enumerate(rows):
        assert (pytest.approx(row["interval"]), place) in drawn_rows and ([row["fraction"]], place) in drawn_rows


def test_of_very_many_comparisons_the_first_are_shown(tmp_path):
    rows = rich_study(tmp_path)["comparisons"]
    figure = drawn(forest_figure(rows * 20))
    assert len(figure.axes[0].get_yticks()) == 40 and f"The first 40 of {20 * len(rows)} comparisons." in texts(figure)


@pytest.mark.parametrize("differences", [[0.02, 0.05, 0.03], [0.02, 0.02, 0.02]])
def test_bands_of_differences_end_at_the_interval_of_the_table(tmp_path, differences):
    study = analyse(fake_study(tmp_path, differences), {})
    (row,) = study["comparisons"]
    ax = plot_difference_over_steps(figures.new_figure(4, 3).subplots(), study["arms"], row)
    outline = ax.collections[0].get_paths()[0].vertices
    at_the_end = outline[outline[:, 0] == 3, 1]
    assert (at_the_end.min(), at_the_end.max()) == pytest.approx([100 * end for end in row["interval"]])
    assert ax.get_lines()[-1].get_ydata()[-1] == pytest.approx(100 * row["mean"])


def test_one_seed_has_no_band(tmp_path):
    study = analyse(fake_study(tmp_path, [0.02]), {})
    ax = plot_difference_over_steps(figures.new_figure(4, 3).subplots(), study["arms"], study["comparisons"][0])
    assert not ax.collections


def test_panels_of_differences_share_their_scale(tmp_path):
    study = rich_study(tmp_path)
    (figure,) = [figure for name, figure, _ in study_figures(study) if name == "differences_over_training"]
    largest = max(abs(row["mean"]) for row in study["comparisons"])
    assert len({ax.get_ylim() for ax in figure.axes}) == 1 < len(figure.axes)
    assert figure.axes[0].get_ylim()[1] == pytest.approx(250 * largest)


def test_lines_are_means_at_the_steps_that_all_seeds_have(tmp_path):
    runs = [fake_run(tmp_path, "quantum", seed, accuracy) for seed, accuracy in enumerate((0.7, 0.8))]
    runs[0]["rows"].append({**runs[0]["rows"][-1], "step": 4.0})
    ax = plot_over_steps(figures.new_figure(4, 3).subplots(), group_arms(runs), "eval_accuracy", "accuracy")
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [0, 3] and line.get_ydata()[-1] == pytest.approx(0.75) and not ax.collections


def test_arms_of_one_rule_look_different_and_keep_its_colour(tmp_path):
    looks = styles(rich_study(tmp_path, seeds=1)["arms"])
    assert len({str(look) for look in looks.values()}) == len(looks)
    assert looks["classical"]["color"] == (0, 0, 0)


def test_lines_that_coincide_are_all_seen(tmp_path):
    looks = list(styles(group_arms([fake_run(tmp_path, rule, 0, 0.7) for rule in RULES])).values())
    widths = [look["lw"] for look in looks]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == len(RULES)
    assert all(one["ls"] != other["ls"] for one, other in itertools.pairwise(looks))


def test_curves_are_means_over_the_seeds_that_all_arms_have(tmp_path):
    study = analyse([*fake_study(tmp_path, [0.1, 0.2, 0.3]), fake_run(tmp_path, "frozen", 1, 0.5)], {})
    alike, words = of_shared_seeds(study["arms"])
    assert {label: list(arm) for label, arm in alike.items()} == {label: [1] for label in study["arms"]}
    assert words == "that all arms have"
    (curves,) = [figure for name, figure, _ in study_figures(study) if name == "learning_curves"]
    assert "quantum (n = 1)" in texts(curves) and "n seeds that all arms have." in texts(curves)
    apart = group_arms([fake_run(tmp_path, "quantum", 0, 0.7), fake_run(tmp_path, "frozen", 1, 0.7)])
    assert of_shared_seeds(apart) == (apart, "of each arm, not the same in all")


def test_the_sweep_shows_the_mean_of_each_arm(tmp_path):
    arms = rich_study(tmp_path)["arms"]
    assert swept(arms) == ["shots"]
    ax = plot_sweep(figures.new_figure(4, 3).subplots(), arms, "shots")
    (points,) = [line for line in ax.get_lines() if len(line.get_xdata()) == 3 and line.get_marker() == "o"]
    assert list(points.get_xdata()) == [1, 10, 100] and ax.get_xscale() == "log"
    assert points.get_ydata() == pytest.approx([0.7201, 0.721, 0.73])
    (bars,) = ax.containers
    half = spread([0.70, 0.72, 0.74])[2][1] - 0.72  # the same at every number of shots
    for (_, (_, y)), mean in zip(bars.lines[2][0].get_segments(), points.get_ydata(), strict=True):
        assert y == pytest.approx(mean + half)
    named = {with_n(rule, 3) for rule in ("quantum", "exact", "classical", "frozen")}
    assert set(ax.get_legend_handles_labels()[1]) == named


def test_a_curve_over_shots_joins_runs_that_are_alike_in_all_else(tmp_path):
    others = [{"quantum_optimizer": "adamw", "shots": 10}, {"circuit": "product", "shots": 100}, {"shots": 1000}]
    others += [{"shots": shots} for shots in (1, 10)]
    arms = group_arms([fake_run(tmp_path, "quantum", 0, 0.7 + i / 100, **other) for i, other in enumerate(others)])
    assert swept(arms) == ["shots"]
    ax = plot_sweep(figures.new_figure(4, 3).subplots(), arms, "shots")
    assert ax.get_legend_handles_labels()[1] == [with_n("quantum, SGD, graph circuit", 1)]
    (points,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert list(points.get_xdata()) == [1, 10, 1000]
    assert not swept(group_arms([fake_run(tmp_path, "quantum", 0, 0.7, **other) for other in others[:3]]))


def test_devices_have_a_panel_of_accuracy_only_where_it_differs(tmp_path):
    def panels(accuracy):
        runs = [fake_run(tmp_path, "quantum", seed, 0.7, backend="fake:FakeManilaV2") for seed in (0, 1)]
        runs += [fake_run(tmp_path, "quantum", seed, accuracy, backend="ibm:x") for seed in (0, 1)]
        for index, run in enumerate(runs):
            run["statistics"]["mean_cosine"] = index / 10
        return [ax.get_xlabel() for ax in drawn(device_figure(group_by_device(group_arms(runs)))).axes]

    assert panels(0.7) == ["cosine to the whole gradient", "encoded x"]
    assert panels(0.8) == ["final accuracy", "cosine to the whole gradient", "encoded x"]


def test_devices_are_compared_that_differ_in_nothing_else_and_one_that_is_gone_stops_nothing(tmp_path, capsys):
    runs = [fake_run(tmp_path, "quantum", 0, 0.7, backend=name) for name in ("aer", "fake:Gone")]
    runs += [fake_run(tmp_path, "quantum", 0, 0.7, shots=10, backend="generic:5")]
    for run in runs:
        run["statistics"]["mean_cosine"] = 0.9
    arms = group_arms(runs)
    assert list(group_by_device(arms)) == ["aer", "fake:Gone"]
    assert list(figures_of_devices(arms)) == [] and "  no devices: " in capsys.readouterr().out
    assert list(figures_of_devices({})) == []


# --- Attention maps


def test_differences_shown_together_share_their_scale(monkeypatch, tmp_path):
    figure_of, tokens = {}, ["a", "b"]
    monkeypatch.setattr(attention, "save_figure", lambda figure, path: figure_of.setdefault(path.stem, figure) and path)
    change = {"quantum": 0.1, "exact": 0.3}

    def columns(run):
        before, after = ([(tokens, np.full((2, 2), 0.5 + c * r)) for r in (1, 0.5)] for c in (0, change[run]))
        return {"before training": before, "after training": after, "after - before": None}

    monkeypatch.setattr(attention, "maps_of_run", lambda run: columns(run["settings"]["update_rule"]))
    saved = attention.save_attention_of_several(tmp_path, [fake_run(tmp_path, rule, 0, 0.7) for rule in change])
    assert [path.name for path, _ in saved] == ["attention_quantum.png", "attention_exact.png"]
    changes = {
        name: [ax.images[0] for ax in figure.axes if "-" in ax.get_title()] for name, figure in figure_of.items()
    }
    (scale,) = {image.get_clim() for images in changes.values() for image in images}
    assert scale == pytest.approx((-0.3, 0.3))
    for rule, most in change.items():  # in two sentences, the second changed by half as much
        shown = [image.get_array() for image in changes[f"attention_{rule}"]]
        np.testing.assert_allclose(shown, [np.full((2, 2), most), np.full((2, 2), most / 2)])


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
