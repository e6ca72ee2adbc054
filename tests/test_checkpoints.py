"""Resuming: a run killed at any moment and resumed is bit for bit the run left alone; damaged files are passed over."""

import csv
import json
import pickle
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, start_training
from safetensors.torch import load_file

import checkpoints
import run_folder
import train

LONG = ["--num_epochs", "4", "--checkpoint_every", "2", "--train_size", "40", "--batch_size", "4"]  # 40 steps


def only_run(results):
    (run,) = results.iterdir()
    return run


def without_times(run):
    """What two runs that compute the same must share: weights, metrics and statistics, times aside."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]
    statistics = json.loads((run / "training_statistics.json").read_text())
    statistics = {k: v for k, v in statistics.items() if not k.startswith("seconds")}
    return rows, statistics, load_file(run / "model" / "model.safetensors")


def assert_same_run(first, second):
    (rows, statistics, weights), (other_rows, other_statistics, other) = without_times(first), without_times(second)
    assert rows == other_rows and statistics == other_statistics
    assert weights.keys() == other.keys() and all(torch.equal(weights[name], other[name]) for name in weights)


def stop_at(monkeypatch, step, error=KeyboardInterrupt):
    """Let the circuits of that step raise, in the middle of the step: dropout has been drawn, nothing been stepped."""
    real = train.measure_gradients

    def measure(gradients, backend, settings, now):
        if now == step:
            raise error
        return real(gradients, backend, settings, now)

    monkeypatch.setattr(train, "measure_gradients", measure)


@pytest.mark.parametrize("rule", ["quantum", "classical"])
@pytest.mark.parametrize("step", [1, 7, 10, 11])
def test_an_interrupted_run_resumed_is_the_run_left_alone(tiny_flags, tmp_path, monkeypatch, rule, step):
    flags = [*tiny_flags, *LONG, "--num_epochs", "2", "--update_rule", rule, "--results_dir"]
    assert train.main([*flags, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert train.main([*flags, str(tmp_path / "cut")]) == 130
    run = only_run(tmp_path / "cut")
    assert train.main(["--resume", str(run)]) == 0
    assert_same_run(only_run(tmp_path / "whole"), run)
    assert len(json.loads((run / "environment.json").read_text())["resumed"]) == 1


def test_an_interruption_during_the_evaluation_resumes_with_it(tiny_flags, tmp_path, monkeypatch):
    flags = [*tiny_flags, *LONG, "--num_epochs", "2", "--results_dir"]
    assert train.main([*flags, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        real, calls = train.evaluate, []

        def evaluate(*arguments):
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments)

        patch.setattr(train, "evaluate", evaluate)
        assert train.main([*flags, str(tmp_path / "cut")]) == 130
    assert train.main(["--resume", "latest", "--results_dir", str(tmp_path / "cut")]) == 0
    assert_same_run(only_run(tmp_path / "whole"), only_run(tmp_path / "cut"))


def test_twenty_sigkills_at_random_moments_change_nothing(tiny_flags, tmp_path):
    flags = [*tiny_flags, *LONG, "--results_dir"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the children: torch's sums round as its threads divide them
    try:
        assert train.main([*flags, str(tmp_path / "whole")]) == 0
    finally:
        torch.set_num_threads(before)
    # One interpreter forks a child for every try, so that the libraries are imported once.
    script = f"""
import json, os, random, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
torch.set_num_threads(1)
import train, transformers.models.distilbert.modeling_distilbert
draw, kills, flags, results = random.Random(0), 0, {flags!r}, {str(tmp_path / "cut")!r}
def state():
    runs = os.listdir(results) if os.path.isdir(results) else []
    return os.path.join(results, runs[0]) if runs else None
while True:
    run = state()
    resumable = run and os.path.isdir(os.path.join(run, "checkpoint")) and any(
        name.startswith("step") for name in os.listdir(os.path.join(run, "checkpoint")))
    if run and not resumable:
        import shutil; shutil.rmtree(run)
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(train.main(["--resume", run] if resumable else [*flags, results]))
    if kills < 20:
        time.sleep(draw.uniform(0.1, 1.2))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        assert os.WEXITSTATUS(status) == 0, status
        if kills < 20:  # done too soon: take it back to an earlier checkpoint and kill on
            import shutil
            folder = os.path.join(state(), "checkpoint")
            newest = sorted(os.listdir(folder))
            if len(newest) > 1:
                shutil.rmtree(os.path.join(folder, newest[-1]))
            continue
        break
print(kills)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0 and int(done.stdout) >= 20, done.stderr[-2000:]
    assert_same_run(only_run(tmp_path / "whole"), only_run(tmp_path / "cut"))


def test_sigterm_leaves_a_checkpoint(tiny_flags, tmp_path):
    process = start_training(tiny_flags, tmp_path / "results")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "to go on: python train.py --resume" in err
    steps = json.loads((only_run(tmp_path / "results") / "training_statistics.json").read_text())["steps"]
    assert max((only_run(tmp_path / "results") / "checkpoint").iterdir()).name == f"step_{steps:08d}"


@pytest.fixture
def cut_run(tiny_flags, tmp_path, monkeypatch):
    """A run stopped in step 7 of 10, with checkpoints after steps 4 and 6."""
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        train.main([*tiny_flags, *LONG, "--num_epochs", "1"])
    run = only_run(tmp_path / "results")
    assert [path.name for path in sorted((run / "checkpoint").iterdir())] == ["step_00000004", "step_00000006"]
    return run


class Poison:
    def __reduce__(self):
        return print, ("POISON RAN",)


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
            del state["progress"]["random"]["numpy"]
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
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(cut_run, tiny_flags, tmp_path, capsys, how, why):
    damage(cut_run / "checkpoint" / "step_00000006", how)
    assert train.main(["--resume", str(cut_run)]) == 0
    out, err = capsys.readouterr()
    assert f"checkpoint step_00000006 is damaged, trying the one before: {why}" in " ".join(err.split()) or why in err
    assert "POISON RAN" not in out + err
    assert train.main([*tiny_flags, *LONG, "--num_epochs", "1", "--results_dir", str(tmp_path / "whole")]) == 0
    assert_same_run(only_run(tmp_path / "whole"), cut_run)


def test_without_a_whole_checkpoint_nothing_is_touched(cut_run):
    for folder in (cut_run / "checkpoint").iterdir():
        damage(folder, "truncated weights")
    before = {path: path.read_bytes() for path in cut_run.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="holds no whole checkpoint to resume from"):
        train.main(["--resume", str(cut_run)])
    assert {path: path.read_bytes() for path in cut_run.iterdir() if path.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(cut_run, tiny_flags, tmp_path):
    state = checkpoints.load(cut_run)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0)
    with pytest.raises(ValueError, match="step_00000006: not a checkpoint of this run"):
        checkpoints.restore(state, model, optimizer, scheduler)


def test_a_run_in_training_is_not_resumed(cut_run):
    with run_folder.alone(cut_run), pytest.raises(ValueError, match="another process is training in it"):
        train.main(["--resume", str(cut_run)])
    assert train.main(["--resume", str(cut_run)]) == 0


def test_a_killed_run_can_be_read(cut_run):
    statistics = {"status": "running", "selected_weights": {}}  # all that is there before the end
    (cut_run / "training_statistics.json").write_text(json.dumps(statistics))
    run = run_folder.read(cut_run)
    assert run["statistics"]["steps"] == 6 and len(run["statistics"]["evaluations"]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shots", "10"], "SHOTS = 10 is not the run's own 1000"),
        (["--batch_size", "8"], "BATCH_SIZE = 8 is not the run's own 4"),
        (["--num_epochs", "1", "--seed", "7"], "SEED = 7 is not the run's own 42"),
        (["--seeds", "1,2"], "describe a study of 2 runs"),
    ],
)
def test_a_changed_setting_that_matters_is_refused_by_name(cut_run, flags, message):
    with pytest.raises(ValueError, match=message):
        train.main(["--resume", str(cut_run), *flags])


def test_epochs_may_be_raised(cut_run):
    assert train.main(["--resume", str(cut_run), "--num_epochs", "2"]) == 0
    run = run_folder.read(cut_run)
    assert run["settings"]["num_epochs"] == 2 and run["statistics"]["steps"] == 20
    rates = [row["learning_rate"] for row in run["rows"] if row["loss"] is not None][6:]
    assert rates == pytest.approx([5e-5 * (1 - done / 20) for done in range(6, 20)])
    assert run_folder.kept(cut_run.parent) == (set(), {})  # its learning rates are not those of a run of two epochs


def test_other_data_are_refused(cut_run, monkeypatch):
    environment = json.loads((cut_run / "environment.json").read_text())
    environment["data"]["sha256_of_examples"] = "0" * 64
    (cut_run / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(ValueError, match="the data is not what the run began with"):
        train.main(["--resume", str(cut_run)])


@pytest.mark.parametrize("content", ["{", "[]", '{"shots": 3}'])
def test_a_run_of_another_layout_is_refused_in_one_line(cut_run, content):
    (cut_run / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json cannot be read, or is of another layout"):
        train.main(["--resume", str(cut_run)])


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
        assert train.main([*tiny_flags, *flags]) == 0
        rows[name] = [row for row in without_times(only_run(tmp_path / name))[0] if row["loss"]]
    assert len(rows["one"]) == len(rows["three"]) == 2
    for one, three in zip(rows["one"], rows["three"], strict=True):
        for column in ("loss", "accuracy", "gradient_norm", "update_norm", "cosine"):
            assert float(one[column]) == pytest.approx(float(three[column]), rel=1e-3), column


@pytest.mark.parametrize("rule", ["quantum", "classical"])
def test_clipping_bounds_the_gradient_that_the_circuits_get(tiny_flags, tmp_path, rule):
    norms = {}
    for limit in ("0", "0.0001", "1000000"):
        results = tmp_path / limit
        flags = ["--max_gradient_norm", limit, "--update_rule", rule, "--results_dir", str(results)]
        assert train.main([*tiny_flags, *flags]) == 0
        norms[limit] = [float(row["gradient_norm"]) for row in without_times(only_run(results))[0] if row["loss"]]
    assert norms["0"] == norms["1000000"]
    assert all(norm <= 0.0001 for norm in norms["0.0001"]) and min(norms["0"]) > 0.0001
