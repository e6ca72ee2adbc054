"""Resuming: a run killed at any moment and resumed is bit for bit the run left alone; damaged files are passed over."""

import json
import pickle
import random
import re
import shutil
import signal
import time

import pytest
import torch
from conftest import (
    LONG,
    Poison,
    assert_same_run,
    metric_rows,
    only_run,
    read_json,
    run_training,
    start_script,
    start_training,
    stop_at,
    without_times,
)
from safetensors.torch import load_file, save_file

import train
from harness import checkpoints, run_folder


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_data, tmp_path_factory):
    """Function of a rule and a number of epochs of 10 steps: flags, but for --results_dir, and a run left alone."""
    runs = {}

    def run(rule, epochs):
        flags = ["--model_name", tiny_model, "--dataset_name", tiny_data, "--eval_size", "10", "--max_length", "32"]
        flags += [*LONG, "--num_epochs", epochs, "--update_rule", rule]
        if (rule, epochs) not in runs:
            results = tmp_path_factory.mktemp("whole")
            assert run_training([*flags, "--results_dir", results]) == 0
            runs[rule, epochs] = only_run(results)
        return flags, runs[rule, epochs]

    return run


@pytest.mark.parametrize("rule", ["quantum", "classical"])
@pytest.mark.parametrize("step", [1, 7, 10, 11])
def test_an_interrupted_run_resumed_is_the_run_left_alone(whole, tmp_path, monkeypatch, rule, step):
    flags, left_alone = whole(rule, 2)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert run_training([*flags, "--results_dir", tmp_path]) == 130
    run = only_run(tmp_path)
    assert run_training(["--resume", run]) == 0
    assert_same_run(left_alone, run)
    assert len(read_json(run / "environment.json")["resumed"]) == 1


def test_an_interruption_during_the_evaluation_resumes_with_it(whole, tmp_path, monkeypatch):
    flags, left_alone = whole("quantum", 2)
    with monkeypatch.context() as patch:
        real, calls = train.evaluate, []

        def evaluate(job):
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(job)

        patch.setattr(train, "evaluate", evaluate)
        assert run_training([*flags, "--results_dir", tmp_path]) == 130
    assert not metric_rows(only_run(tmp_path))[-1]["eval_loss"]
    assert run_training(["--resume", "latest", "--results_dir", tmp_path]) == 0
    assert_same_run(left_alone, only_run(tmp_path))


@pytest.mark.slow
def test_twenty_sigkills_at_random_moments_change_nothing(tiny_flags, tmp_path):
    """After a number of rows drawn at random and a moment more: between rows, in a step, an evaluation, a save, or
    before the first of them all. The run is longer than twenty of those."""
    flags = [*tiny_flags, *LONG, "--num_epochs", "12"]
    status, _, err = start_and_wait([*flags, "--results_dir", tmp_path / "whole"])
    assert status == 0, err
    draw, kills, results = random.Random(0), 0, tmp_path / "cut"

    def size():
        return sum(path.stat().st_size for path in results.glob("*/metrics.csv"))

    while True:
        (run,) = results.iterdir() if results.exists() else (None,)
        if run and not run_folder.is_resumable(run):
            shutil.rmtree(run)  # killed before its first checkpoint
            run = None
        process = start_script("train.py", *(["--resume", run] if run else [*flags, "--results_dir", results]))
        if kills < 20:
            wanted, seen = draw.randrange(6), size()
            while wanted and process.poll() is None:
                now = size()
                wanted, seen = wanted - (now != seen), now
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.05 if seen else 0.5))
            process.kill()
        _, err = process.communicate(timeout=120)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, err
            break
        kills += 1
    assert kills == 20
    assert_same_run(only_run(tmp_path / "whole"), only_run(results))


def start_and_wait(flags):
    process = start_script("train.py", *flags)
    return (process.communicate(timeout=120) and process.returncode, *process.output())


def test_sigterm_leaves_a_checkpoint(tiny_flags, tmp_path):
    process = start_training(tiny_flags, tmp_path / "results")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "to go on: python train.py --resume" in err
    steps = read_json(only_run(tmp_path / "results") / "training_statistics.json")["steps"]
    assert max((only_run(tmp_path / "results") / "checkpoint").iterdir()).name == f"step_{steps:08d}"


@pytest.fixture(scope="module")
def run_to_copy(whole, tmp_path_factory):
    """A run stopped in step 7 of 10, with checkpoints after steps 4 and 6, and its flags."""
    results = tmp_path_factory.mktemp("cut")
    flags, _ = whole("quantum", 1)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        assert run_training([*flags, "--results_dir", results]) == 130
    run = only_run(results)
    assert [path.name for path in sorted((run / "checkpoint").iterdir())] == ["step_00000004", "step_00000006"]
    return run


@pytest.fixture
def cut_run(run_to_copy, tmp_path):
    """A copy of that run, alone in its results folder."""
    return shutil.copytree(run_to_copy, tmp_path / "results" / run_to_copy.name)


def damage(folder, how):
    if how == "truncated weights":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif how == "no hashes":
        (folder / "sha256.json").unlink()
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        if how == "poisoned pickle":
            (folder / "training_state.pt").write_bytes(pickle.dumps(Poison()))
        else:
            state = torch.load(folder / "training_state.pt", weights_only=True)
            part = state["progress"]["random"] if how == "no numpy state" else state["progress"]
            del part["numpy" if how == "no numpy state" else "settings"]
            torch.save(state, folder / "training_state.pt")
        hashes = {name: checkpoints.sha256(folder / name) for name in checkpoints.FILES}
        (folder / "sha256.json").write_text(json.dumps(hashes))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("truncated weights", "model.safetensors is not what was written"),
        ("no hashes", "No such file"),
        ("empty", "No such file"),
        ("poisoned pickle", "Weights only load failed"),
        ("no numpy state", "random state numpy is missing"),
        ("of a version that kept no settings", "settings is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(cut_run, whole, capsys, how, why):
    _, left_alone = whole("quantum", 1)
    capsys.readouterr()
    damage(cut_run / "checkpoint" / "step_00000006", how)
    assert run_training(["--resume", cut_run]) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "damaged" in line]
    assert line.startswith("checkpoint step_00000006 is damaged, trying the one before: ") and why in line
    assert "POISON RAN" not in out + err
    assert_same_run(left_alone, cut_run)


def test_without_a_whole_checkpoint_nothing_is_touched(cut_run):
    for folder in (cut_run / "checkpoint").iterdir():
        damage(folder, "truncated weights")
    before = {path: path.read_bytes() for path in cut_run.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="holds no whole checkpoint to resume from"):
        run_training(["--resume", cut_run])
    assert {path: path.read_bytes() for path in cut_run.iterdir() if path.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(cut_run):
    state = checkpoints.load(cut_run)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0)
    with pytest.raises(ValueError, match="step_00000006: not a checkpoint of this run"):
        checkpoints.restore(state, model, optimizer, scheduler)


def test_a_run_in_training_is_not_resumed(cut_run):
    with run_folder.locked(cut_run), pytest.raises(ValueError, match="another process is training in it"):
        run_training(["--resume", cut_run])
    assert run_training(["--resume", cut_run]) == 0


def test_a_killed_run_can_be_read(cut_run):
    statistics = {"status": "running", "selected_weights": {}}  # all that is there before the end
    (cut_run / "training_statistics.json").write_text(json.dumps(statistics))
    run = run_folder.read(cut_run)
    assert run["statistics"]["steps"] == 6 and len(run["statistics"]["evaluations"]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shots", "10"], "SHOTS = 10 must be the run's own 1000"),
        (["--batch_size", "8"], "BATCH_SIZE = 8 must be the run's own 4"),
        (["--num_epochs", "1", "--seed", "7"], "SEED = 7 must be the run's own 42"),
        (["--num_epochs", "2"], "NUM_EPOCHS = 2 must be the run's own 1"),
        (["--seeds", "7"], "SEED = 7 must be the run's own 42"),
        (["--update_rules", "exact"], "UPDATE_RULE = 'exact' must be the run's own 'quantum'"),
        (["--seeds", "1,2"], "describe a study of 2 runs, must be one"),
    ],
)
def test_a_changed_setting_that_matters_is_refused_by_name(cut_run, flags, message):
    with pytest.raises(ValueError, match=f"^--resume .*{cut_run.name}: .*{message}$"):
        run_training(["--resume", cut_run, *flags])


def test_what_does_not_matter_may_be_changed(cut_run, whole):
    """And the flags that agree with the run may be given again."""
    flags, left_alone = whole("quantum", 1)
    assert run_training(["--resume", cut_run, *flags, "--checkpoint_every", "1"]) == 0
    assert read_json(cut_run / "config.json")["checkpoint_every"] == 1
    assert_same_run(left_alone, cut_run)


# --- Finished runs, and the latest unfinished one


def test_a_finished_run_has_no_checkpoints_and_is_not_resumed(cut_run, whole):
    assert run_training(["--resume", cut_run]) == 0
    before = sorted(path.name for path in cut_run.iterdir())
    assert "checkpoint" not in before and not (whole("quantum", 1)[1] / "checkpoint").exists()
    for flags in ([], ["--num_epochs", "2"]):
        with pytest.raises(ValueError, match=f"^--resume .*{cut_run.name}: has finished; .* begun anew, [^\n]*$"):
            run_training(["--resume", cut_run, *flags])
    assert sorted(path.name for path in cut_run.iterdir()) == before


def test_a_finished_run_that_still_has_checkpoints_is_not_resumed(cut_run):
    """As earlier versions left them, or where the disk refused their removal."""
    statistics = read_json(cut_run / "training_statistics.json") | {"status": "finished"}
    (cut_run / "training_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match="has finished"):
        run_training(["--resume", cut_run])
    with pytest.raises(ValueError, match="holds no unfinished run with a checkpoint"):
        run_training(["--resume", "latest", "--results_dir", cut_run.parent])


def test_latest_is_the_latest_unfinished_run(cut_run, whole, tmp_path, capsys):
    """Even where a later one has finished, and where an unfinished one is without a checkpoint."""
    results = cut_run.parent
    earlier = shutil.copytree(cut_run, results / "run_20200101_000000")
    finished = shutil.copytree(whole("quantum", 1)[1], results / "run_29990101_000000")
    without = shutil.copytree(cut_run, results / "run_29990101_000001")
    shutil.rmtree(without / "checkpoint")
    untouched = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert run_training(["--resume", "latest", "--results_dir", results]) == 0
    assert_same_run(finished, cut_run)
    assert run_folder.stored_status(earlier) == "interrupted"
    assert run_training(["--resume", "latest", "--results_dir", results]) == 0
    assert_same_run(finished, earlier)
    with pytest.raises(ValueError, match=r"^RESULTS_DIR = .*: holds no unfinished run with a checkpoint"):
        run_training(["--resume", "latest", "--results_dir", results])
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == untouched


# --- What a run goes on with


@pytest.mark.parametrize("changed", ["data", "model"])
def test_other_data_and_another_model_are_refused(tiny_flags, tiny_model, tiny_data, tmp_path, monkeypatch, changed):
    """A word of one sentence, one weight of one matrix."""
    data, model = shutil.copytree(tiny_data, tmp_path / "data"), shutil.copytree(tiny_model, tmp_path / "start")
    flags = [*tiny_flags, "--dataset_name", data, "--model_name", model, "--train_size", "60"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training(flags) == 130
    if changed == "data":
        text = (data / "train.tsv").read_text()
        (data / "train.tsv").write_text(text.replace("the ", "a ", 1))
    else:
        weights = load_file(model / "model.safetensors")
        weights["transformer.layer.1.ffn.lin1.weight"][3, 3] += 1e-3
        save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"the {changed} is not what the run began with"):
        run_training(["--resume", only_run(tmp_path / "results")])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", 0.01, "LEARNING_RATE = 0.01: the checkpoint was trained with 5e-05"),
        ("num_epochs", 3, "NUM_EPOCHS = 3: the checkpoint was trained with"),
        ("update_rule", "foo", "another layout: UPDATE_RULE = 'foo': must be one of"),
        ("batch_size", "8", "another layout: BATCH_SIZE = '8': must be a whole number"),
    ],
)
def test_edited_settings_are_refused(cut_run, name, value, message):
    settings = read_json(cut_run / "config.json") | {name: value}
    (cut_run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=re.escape(message)):
        run_training(["--resume", cut_run])


@pytest.mark.parametrize("content", ["{", "[]", '{"shots": 3}'])
def test_a_run_of_another_layout_is_refused_in_one_line(cut_run, content):
    (cut_run / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json cannot be read, or is of another layout"):
        run_training(["--resume", cut_run])


def test_random_states_go_round():
    random.seed(1)
    state = checkpoints.random_state()
    first = random.random(), torch.rand(2).tolist(), checkpoints.np.random.rand()
    checkpoints.restore_random_state(state)
    assert first == (random.random(), torch.rand(2).tolist(), checkpoints.np.random.rand())


# --- Accumulation and clipping


@pytest.mark.parametrize("rule", ["exact", "classical"])
def test_accumulated_batches_are_one_large_batch(tiny_flags, tiny_model, tmp_path, rule):
    """Dropout off, since its draws depend on the shapes; equal but for the order in which rounding errors add up."""
    rows, model = {}, shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    settings |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    (model / "config.json").write_text(json.dumps(settings))
    for name, size, accumulated in (("one", 12, 1), ("three", 4, 3)):
        flags = ["--batch_size", str(size), "--accumulation_steps", str(accumulated), "--num_epochs", "2"]
        flags += ["--update_rule", rule, "--model_name", str(model), "--results_dir", str(tmp_path / name)]
        assert run_training([*tiny_flags, *flags]) == 0
        rows[name] = [row for row in without_times(only_run(tmp_path / name))[0] if row["loss"]]
    assert len(rows["one"]) == len(rows["three"]) == 2
    for one, three in zip(rows["one"], rows["three"], strict=True):
        for column in ("loss", "accuracy", "gradient_norm", "update_norm", "cosine"):
            assert float(one[column]) == pytest.approx(float(three[column]), rel=1e-3), column


@pytest.mark.parametrize("rule", ["quantum", "classical"])
def test_clipping_bounds_the_gradient_that_the_circuits_get(tiny_flags, tmp_path, monkeypatch, rule):
    norms, norms_of_all, real = {}, [], train.accumulate_gradients

    def accumulate(job, *rest):
        result = real(job, *rest)
        norms_of_all.append(torch.nn.utils.get_total_norm([weight.grad for weight in job.model.parameters()]).item())
        return result

    monkeypatch.setattr(train, "accumulate_gradients", accumulate)
    for limit in ("0", "0.0001", "1000000"):
        results = tmp_path / limit
        flags = ["--max_gradient_norm", limit, "--update_rule", rule, "--results_dir", str(results)]
        assert run_training([*tiny_flags, *flags]) == 0
        norms[limit] = [float(row["gradient_norm"]) for row in without_times(only_run(results))[0] if row["loss"]]
    assert norms["0"] == norms["1000000"]
    assert all(norm <= 0.0001 for norm in norms["0.0001"]) and min(norms["0"]) > 0.0001
    assert norms_of_all[3:6] == pytest.approx([0.0001] * 3, rel=1e-3)
