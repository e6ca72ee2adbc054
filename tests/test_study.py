"""Paired rules, and studies: what runs, what is skipped, what one failure costs."""

import pytest
import torch
from conftest import end_weights, metric_rows, only_run, read_json, run_training, stop_at

import config
import model_utils
import quantum_circuits
import train
from harness import run_folder
from update_rules import RULES


def run_folders(results):
    """Run folders by (rule, seed, shots)."""
    found = {}
    for path in sorted(results.glob("run_*")):
        settings = read_json(path / "config.json")
        found[settings["update_rule"], settings["seed"], settings["shots"]] = path
    return found


def statistics_of(run):
    return read_json(run / "training_statistics.json")


# --- Settings of a study


def test_a_study_is_every_combination_seed_by_seed():
    runs = config.parse(["--update_rules", "quantum,classical", "--seeds", "0-2", "--shots", "10,1000"]).runs
    assert [(r.seed, r.shots, r.update_rule) for r in runs] == [
        (seed, shots, rule) for seed in range(3) for shots in (10, 1000) for rule in ("quantum", "classical")
    ]
    assert all(run.seeds == run.update_rules == () for run in runs)
    assert [r.entangling_angle for r in config.parse(["--entangling_angle", "0, 0.5"]).runs] == [0, 0.5]
    assert len(config.parse([]).runs) == 1 and config.parse([]).runs[0] == config.load([])


def test_a_study_from_edited_constants(monkeypatch):
    monkeypatch.setattr(config, "UPDATE_RULES", ["exact", "frozen"])
    monkeypatch.setattr(config, "SEEDS", [3, 4])
    assert {(r.update_rule, r.seed) for r in config.parse([]).runs} == {
        (u, s) for u in ("exact", "frozen") for s in (3, 4)
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--update_rules", "quantum,classic"],
            "UPDATE_RULES = .*must be a list of quantum, independent, exact, gradient",
        ),
        (["--seeds", "3-x"], "SEEDS = '3-x': must be a list of whole numbers"),
        (["--seeds", "9-0"], "SEEDS = '9-0': must be a list of whole numbers"),
        (["--seeds", ""], r"SEEDS = \[\]: must name at least one; without the flag SEED alone counts"),
        (["--update_rules", ""], r"UPDATE_RULES = \[\]: must name at least one; without the flag UPDATE_RULE alone"),
        (["--seeds", "1,1"], r"SEEDS = \[1, 1\]: must be a list"),
        (["--shots", "10,many"], "SHOTS = 'many': must be a number from 0.001"),
        (["--shots", "10,0"], "SHOTS = 0: must be a number from 0.001"),
        (["--seed", "1,2", "--seeds", "3,4"], r"SEEDS = \[3, 4\] contradicts SEED = \[1, 2\]"),
    ],
)
def test_bad_studies_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        config.parse(flags)
    with pytest.raises(ValueError, match="a study of 2 runs: must describe one here"):
        config.load(["--shots", "10,20"])


def test_a_study_on_real_hardware_is_refused(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--backend", "ibm:x", "--max_qpu_seconds", "60"]
    with pytest.raises(ValueError, match="a study on real hardware: must be one run at a time"):
        run_training([*flags, "--seeds", "0,1"])
    assert not (tmp_path / "results").exists()


def test_identity_counts_what_counts_under_the_rule():
    def same(one, other):
        return run_folder.identity(config.load(one)) == run_folder.identity(config.load(other))

    for rule in ("classical", "frozen"):
        assert same(["--update_rule", rule, "--shots", "5"], ["--update_rule", rule, "--circuit", "chain"])
    assert not same(["--shots", "5"], ["--shots", "6"]) and not same(["--seed", "1"], ["--seed", "2"])
    assert same(["--update_rule", "exact", "--shots", "5"], ["--update_rule", "exact"])
    assert same(["--quantum_optimizer", "adamw", "--quantum_learning_rate", "1"], ["--quantum_optimizer", "adamw"])
    assert same(["--update_rule", "gradient", "--shots", "5"], ["--update_rule", "gradient", "--circuit", "chain"])
    lasting = ["--update_rule", "gradient", "--quantum_learning_rate"]
    assert not same([*lasting, "1"], [*lasting, "2"])
    assert not same(["--num_epochs", "1"], ["--num_epochs", "2"])
    assert same(["--results_dir", "a"], ["--results_dir", "b"])
    assert not same(["--update_rule", "classical", "--learning_rate", "1"], ["--update_rule", "classical"])


WITHOUT_EFFECT = {"results_dir", "sample_sentences", "embedded_learning_rate", "update_rules", "seeds"}
WITHOUT_EFFECT |= {"max_qpu_seconds", "dry_run", "checkpoint_every", "eval_every"}


@pytest.mark.parametrize("name", config.Settings._fields)
def test_identity_leaves_out_only_what_changes_no_result(name):
    """With a rule and a backend that use every setting."""
    settings = config.load(["--backend", "generic:5"])._asdict()
    other = settings | {name: "independent" if name == "update_rule" else "something else"}
    same = config.settings_that_affect_result(settings) == config.settings_that_affect_result(other)
    assert same == (name in WITHOUT_EFFECT)


@pytest.mark.parametrize("name", ["embedded", "./some/file.tsv"])
def test_the_configuration_of_local_data_does_not_tell_runs_apart(name):
    plain, named = (config.load(["--dataset_name", name, *more]) for more in ([], ["--dataset_config", "cola"]))
    assert run_folder.identity(plain) == run_folder.identity(named)
    hub = [config.load(["--dataset_name", "glue", "--dataset_config", task]) for task in ("cola", "sst2")]
    assert run_folder.identity(hub[0]) != run_folder.identity(hub[1])


# --- Pairing


def test_rules_share_initial_weights_batches_and_dropout(tiny_flags, tmp_path, monkeypatch):
    started, batches = {}, {}
    real_load, real_collate = model_utils.load_model, model_utils.collate

    def load(settings):
        loaded = real_load(settings)
        started[settings.update_rule] = {name: w.detach().clone() for name, w in loaded[0].named_parameters()}
        batches[settings.update_rule] = []
        return loaded

    def collate(tokenizer, encoded, device):
        batches[next(reversed(batches))].append([item["input_ids"] for item in encoded])
        return real_collate(tokenizer, encoded, device)

    monkeypatch.setattr(model_utils, "load_model", load)
    monkeypatch.setattr(model_utils, "collate", collate)
    assert run_training([*tiny_flags, "--update_rules", ",".join(RULES), "--seeds", "7"]) == 0
    runs = run_folders(tmp_path / "results")
    first_losses, ends = {}, {}
    for rule in RULES:
        folder = runs[rule, 7, 1000]
        first_losses[rule] = metric_rows(folder)[1]["loss"]
        ends[rule] = end_weights(folder)
        assert all(torch.equal(started[rule][name], started["quantum"][name]) for name in started[rule])
    assert batches["quantum"] and all(batches[rule] == batches["quantum"] for rule in RULES)
    assert len(set(first_losses.values())) == 1  # with dropout on: the same draws
    name = "distilbert.transformer.layer.0.attention.q_lin.weight"
    assert torch.equal(ends["frozen"][name], started["frozen"][name])
    others = RULES.keys() - {"gradient"}  # which is `exact` but for rounding
    assert len({ends[rule][name].numpy().tobytes() for rule in others}) == len(others)
    assert torch.allclose(ends["gradient"][name], ends["exact"][name], rtol=0, atol=1e-8)
    assert not torch.equal(ends["gradient"][name], started["gradient"][name])
    head = "classifier.weight"
    assert all(not torch.equal(ends[rule][head], started[rule][head]) for rule in RULES)


def test_frozen_has_no_cosine_and_exact_has_cosine_one(tiny_flags, tmp_path):
    assert run_training([*tiny_flags, "--update_rules", "frozen,exact,gradient", "--seeds", "1"]) == 0
    runs = run_folders(tmp_path / "results")
    assert statistics_of(runs["frozen", 1, 1000])["mean_cosine"] is None
    for rule in ("exact", "gradient"):
        assert statistics_of(runs[rule, 1, 1000])["mean_cosine"] == pytest.approx(1, abs=1e-6)
        assert statistics_of(runs[rule, 1, 1000])["shots"] == 0


# --- Running a study


def test_a_study_runs_what_is_missing_and_keeps_few_models(tiny_flags, tmp_path, capsys):
    study = [*tiny_flags, "--update_rules", "quantum,classical", "--seeds", "0-1"]
    assert run_training([*tiny_flags, "--update_rule", "classical", "--seed", "1"]) == 0
    assert run_training(study) == 0
    assert "4 runs, 1 of them finished before" in capsys.readouterr().out
    runs = run_folders(tmp_path / "results")
    assert set(runs) == {(rule, seed, 1000) for rule in ("quantum", "classical") for seed in (0, 1)}
    assert [(runs["quantum", seed, 1000] / "model").exists() for seed in (0, 1)] == [True, False]
    before = sorted((tmp_path / "results").iterdir())
    assert run_training([*study, "--shots", "10,1000"]) == 0
    assert "6 runs, 4 of them finished before" in capsys.readouterr().out  # classical has no shots
    assert len(list((tmp_path / "results").iterdir())) == len(before) + 2


def test_one_failed_run_does_not_lose_the_others_and_is_tried_again(tiny_flags, tmp_path, monkeypatch, capsys):
    real = quantum_circuits.quantum_parameter_update

    def fails_for_seed_0(gradient, backend, *, seed, **arguments):
        if seed[0] == 0:
            raise FloatingPointError("the update is not finite")
        return real(gradient, backend, seed=seed, **arguments)

    study = [*tiny_flags, "--update_rules", "quantum,exact", "--seeds", "0-1"]
    monkeypatch.setattr(quantum_circuits, "quantum_parameter_update", fails_for_seed_0)
    assert run_training(study) == 1
    assert "study finished, 2 runs failed: quantum, seed 0; exact, seed 0\n" in capsys.readouterr().out
    monkeypatch.setattr(quantum_circuits, "quantum_parameter_update", real)
    assert run_training(study) == 0
    assert "4 runs, 2 of them finished before" in capsys.readouterr().out


def test_a_bug_in_a_run_of_a_study_is_one_line_and_a_traceback_with_debug(tiny_flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train.model_utils, "attention_weights", lambda *_: {}["two\nlines"])
    study = [*tiny_flags, "--update_rules", "classical,frozen"]
    assert run_training(study) == 1
    err = capsys.readouterr().err
    assert err.count("classical, seed 42: error: KeyError: 'two\\nlines'; --debug shows where\n") == 1
    assert "Traceback" not in err
    assert run_training([*study, "--debug"]) == 1
    assert capsys.readouterr().err.count("Traceback") == 2


def test_one_run_is_singular(tiny_flags, monkeypatch, capsys):
    stop_at(monkeypatch, 2, FloatingPointError("the loss is not finite"))
    assert run_training([*tiny_flags, "--update_rule", "classical", "--shots", "1,2"]) == 1  # which it does not have
    out = capsys.readouterr().out
    assert "study:   1 run, 0 of them finished before\n" in out
    assert "study finished, 1 run failed: classical, seed 42\n" in out


def test_an_interrupted_study_stops_and_goes_on(tiny_flags, tmp_path, monkeypatch, capsys):
    real, count = train.step_weights, [0]

    def stop_once(*args):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "step_weights", stop_once)
    study = [*tiny_flags, "--update_rules", "classical,frozen", "--seeds", "0,1"]
    assert run_training(study) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert run_training(study) == 0
    assert "4 runs, 1 of them finished before" in capsys.readouterr().out
    found = [read_json(path) for path in sorted((tmp_path / "results").glob("run_*/environment.json"))]
    assert ["resumed" in environment for environment in found] == [False, True, False, False]
    statistics = [statistics_of(run) for run in (tmp_path / "results").glob("run_*")]
    assert {(one["status"], one["steps"]) for one in statistics} == {("finished", 3)}


def test_an_unfinished_run_that_cannot_go_on_is_begun_again(tiny_flags, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    study = [*tiny_flags, "--update_rules", "classical,frozen"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "step_weights", stop)
        assert run_training(study) == 130
    run = only_run(tmp_path / "results")
    for path in (run / "checkpoint").glob("*/model.safetensors"):
        path.write_bytes(b"")
    assert run_training(study) == 0
    assert "begun again" in capsys.readouterr().err
    assert len(list((tmp_path / "results").iterdir())) == 3
    assert run_training(study) == 0
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out


def test_learning_rates_of_the_embedded_model_can_be_swept(tmp_path, capsys):
    study = ["--model_name", "embedded", "--dataset_name", "embedded", "--train_size", "8", "--eval_size", "8"]
    study += ["--num_epochs", "1", "--update_rule", "frozen", "--results_dir", str(tmp_path)]
    study += ["--embedded_learning_rate", "1e-4,2e-4"]
    assert run_training(study) == 0
    assert run_training(study) == 0
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out


def test_junk_in_the_results_folder_is_no_finished_run(tmp_path):
    for name, text in (("run_1_1", "{"), ("run_1_2", "[]"), ("run_1_3", '{"a": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        (tmp_path / name / "training_statistics.json").write_text('{"status": "finished"}')
    (tmp_path / "run_1_4").mkdir()
    assert run_folder.find_finished_and_resumable(tmp_path) == (set(), {})
