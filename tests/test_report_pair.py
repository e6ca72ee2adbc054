"""A run beside the latest classical one of the same settings and seed."""

import json
import shlex
import shutil

import pytest

import config
from harness import run_folder
from report import pair


def copy(run, results, name, status="finished", environment=None, **settings):
    """A copy of a run folder with other settings, status or environment; the new folder."""
    folder = shutil.copytree(run, results / name, ignore=shutil.ignore_patterns("analysis"))
    for file, changes in (
        ("config", settings),
        ("training_statistics", {"status": status}),
        ("environment", environment or {}),
    ):
        path = folder / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def partner_of(folder):
    found = pair.find_partner(run_folder.read(folder))
    return found and found["folder"].name


def test_the_partner_is_the_latest_finished_classical_run_of_the_same_settings_and_seed(finished_run, tmp_path):
    run = copy(finished_run, tmp_path, "run_20260101_000009")
    assert partner_of(run) is None
    copy(run, tmp_path, "run_20260101_000008", update_rule="classical", seed=7)
    copy(run, tmp_path, "run_20260101_000007", update_rule="classical", learning_rate=0.5)
    copy(run, tmp_path, "run_20260101_000006", update_rule="classical", status="interrupted")
    copy(run, tmp_path, "run_20260101_000005", update_rule="classical", environment={"initial_weights_sha256": "0"})
    copy(run, tmp_path, "run_20260101_000004", update_rule="frozen")
    (tmp_path / "run_20260101_000010").mkdir()
    (copy(run, tmp_path, "run_20260101_000011", update_rule="classical") / "config.json").write_text("{half")
    assert partner_of(run) is None
    # Shots, circuits and how often was evaluated are nothing that a classical run depends on.
    changes = {"shots": 3, "circuit": "chain", "eval_every": 1, "results_dir": "elsewhere"}
    copy(run, tmp_path, "run_20260101_000001", update_rule="classical")
    copy(run, tmp_path, "run_20260101_000002", update_rule="classical", **changes)
    assert partner_of(run) == "run_20260101_000002"
    assert partner_of(tmp_path / "run_20260101_000002") == "run_20260101_000009"
    assert partner_of(tmp_path / "run_20260101_000008") is None


def test_the_command_makes_the_run_that_is_missing_and_says_no_more_than_needed(finished_run, tmp_path):
    run = run_folder.read(finished_run)
    words = shlex.split(pair.command_for_partner(run))
    assert words[:4] == ["python", "train.py", "--update_rule", "classical"]
    made = json.loads(json.dumps(config.load(words[2:])._asdict()))
    own = run["settings"] | {"update_rule": "classical"}
    assert config.settings_that_affect_result(made) == config.settings_that_affect_result(own)
    assert made["results_dir"] == str(finished_run.parent)
    changed = {"model_name", "dataset_name", "results_dir", "train_size", "eval_size", "batch_size", "num_epochs"}
    assert {word[2:] for word in words if word.startswith("--")} == changed | {"update_rule", "max_length"}


def test_the_command_is_right_from_within_the_run_folder(finished_run, monkeypatch):
    monkeypatch.chdir(finished_run)
    words = shlex.split(pair.command_for_partner(run_folder.read(finished_run.relative_to(finished_run))))
    assert words[words.index("--results_dir") + 1] == str(finished_run.parent)


def test_odd_values_survive_the_shell(finished_run, tmp_path):
    run = run_folder.read(finished_run)
    run["settings"] |= {"attention_layers": "all", "attention_pattern": "a b|'c'$", "text_columns": ["one two"]}
    made = config.load(shlex.split(pair.command_for_partner(run))[2:])
    assert (made.attention_layers, made.attention_pattern, made.text_columns) == ("all", "a b|'c'$", ("one two",))
    run["settings"]["update_rule"] = "classical"
    assert "--update_rule quantum" in pair.command_for_partner(run)


@pytest.mark.parametrize("classical_first", [True, False])
def test_the_difference_is_that_of_the_rule_to_classical_whichever_was_made_last(
    finished_run, tmp_path, classical_first
):
    run = run_folder.read(copy(finished_run, tmp_path, "run_20260101_000001"))
    base = run_folder.read(copy(finished_run, tmp_path, "run_20260101_000002", update_rule="classical"))
    sentence = pair.compare_pair(*pair.ordered(*((base, run) if classical_first else (run, base))))
    assert sentence.startswith(
        "quantum against classical (circuits and optimizer together): undecided (+0.0 points with one seed; of 10 "
    )
    assert "0 are correct in the first alone, 0 in the second alone, exact McNemar p = 1.000" in sentence


def test_both_curves_show_the_cosine_where_it_was_measured(finished_run, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(pair, "save_figure", lambda figure, path: saved.append(figure))
    run = run_folder.read(finished_run)
    base = run | {"settings": run["settings"] | {"update_rule": "classical"}}
    pair.save_curves_of_both(tmp_path / "c.png", run, base)
    bare = [one | {"rows": [row | {"cosine": None} for row in one["rows"]]} for one in (run, base)]
    pair.save_curves_of_both(tmp_path / "c.png", *bare)
    assert [len(figure.axes) for figure in saved] == [3, 2] and len(saved[0].axes[2].get_lines()) == 2
    for ax in saved[0].axes:  # a curve that covers another leaves it to be seen
        lines = [line for line in ax.get_lines() if line.get_alpha() is None or line.get_alpha() == 1]
        assert lines[0].get_linewidth() > 2 * lines[-1].get_linewidth()
