"""What goes wrong around a run: disks, folders, clocks, names, hostile files. One line each, nothing good is lost."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import (
    LONG,
    ROOT,
    Poison,
    one_error,
    only_run,
    read_json,
    run_analysis,
    run_script,
    run_training,
    stop_at,
    write_tiny_data,
    write_tiny_model,
)

import config
import model_utils
import train
from harness import checkpoints, run_folder
from report.attention import attention_maps


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Disks


@pytest.fixture
def interrupted(tiny_flags, tmp_path, monkeypatch, capsys):
    """The folder of a run that was interrupted in its second of three steps."""
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training(tiny_flags) == 130
    capsys.readouterr()
    return only_run(tmp_path / "results")


@pytest.fixture
def trained(tiny_flags, tmp_path, capsys):
    """Flags, and the folder of a finished run with them."""
    assert run_training(tiny_flags) == 0
    capsys.readouterr()
    return tiny_flags, only_run(tmp_path / "results")


FULL_DISK = f"""
import os, resource, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
limit = int(sys.argv.pop(1))
reading, writing = os.pipe()
if not os.fork():  # what it says goes into a pipe, which has no limit
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
os.close(writing)
sys.stderr.write(open(reading, encoding="utf-8").read())
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize("limit", [100, 4_000, 20_000, 60_000])
def test_a_full_disk_is_one_line(trained, tmp_path, limit):
    """No file may grow beyond the limit: to whoever writes it, the disk is full. From the settings to a checkpoint."""
    flags, good = trained
    before = files_of(good)
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    status, _, err = run_script(tmp_path / "full_disk.py", limit, *flags)
    assert status == 1, err
    line = one_error(err)
    assert ("File too large" in line or "cannot be written" in line) and str(good.parent) in line
    assert files_of(good) == before
    for run in good.parent.glob("run_*"):
        assert not list(run.rglob(".*")), "half-written files are left"


def test_a_disk_that_fills_up_keeps_the_checkpoints_before(tiny_flags, tmp_path, monkeypatch, capsys):
    real, saved = checkpoints.save_model, []

    def save_model(*arguments):
        saved.append(None)
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_model", save_model)
        assert run_training([*tiny_flags, *LONG, "--num_epochs", "1"]) == 1
    assert "No space left on device" in one_error(capsys.readouterr().err)
    run = only_run(tmp_path / "results")
    assert [folder.name for folder in sorted((run / "checkpoint").iterdir())] == ["step_00000002", "step_00000004"]
    assert run_training(["--resume", str(run)]) == 0  # when there is room again


@pytest.mark.parametrize("study", [[], ["--seeds", "0-1"]])
@pytest.mark.parametrize("place", ["a file", "a file/below", "locked", "locked/a/b"])
def test_a_results_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(
    tiny_flags, tmp_path, monkeypatch, place, study
):
    (tmp_path / "a file").write_text("text")
    (tmp_path / "locked").mkdir(mode=0o500)
    place = str(tmp_path / place)
    if "locked" in place and not os.geteuid():
        place = place.replace(str(tmp_path / "locked"), "/proc")  # root may write anywhere but there
    monkeypatch.setattr(model_utils, "load_or_stand_in", None)
    monkeypatch.setattr(model_utils, "resolve_stand_ins", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"^RESULTS_DIR = '{place}': must be a folder, .* made: [A-Z]") as found:
        run_training([*tiny_flags, "--results_dir", place, *study])
    assert "\n" not in str(found.value) and sorted(tmp_path.rglob("*")) == before


def test_a_results_folder_is_tried_without_a_trace(tmp_path):
    run_folder.require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "steps"),
    [("train.measure_gradients", 1), ("train.evaluate", 0), ("checkpoints.save_model", 2), ("train.save_model", 3)],
)
def test_a_run_folder_deleted_meanwhile_ends_the_run_at_its_next_write(
    tiny_flags, tmp_path, monkeypatch, capsys, place, steps
):
    """In a step, an evaluation, the middle of a checkpoint, or before the model is saved. steps: those that began."""
    module, name = place.split(".")
    module, begun = {"train": train, "checkpoints": checkpoints}[module], []
    real, real_step = getattr(module, name), train.accumulate_gradients

    def delete_before(*given):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        return real(*given)

    def begin(*given):
        begun.append(None)
        return real_step(*given)

    monkeypatch.setattr(module, name, delete_before)
    monkeypatch.setattr(train, "accumulate_gradients", begin)
    assert run_training([*tiny_flags, "--checkpoint_every", "2"]) == 1
    assert len(begun) == steps
    assert str(tmp_path / "results" / "run_") in one_error(capsys.readouterr().err)
    assert not (tmp_path / "results").exists()


# --- Clocks and names


def test_a_clock_that_steps_back_during_a_run_changes_nothing(tiny_flags, tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert run_training(tiny_flags) == 0
    assert run_folder.read(only_run(tmp_path / "results"))["statistics"]["seconds_per_step"] > 0


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    folders, together = [], threading.Barrier(8)

    def create():
        together.wait()
        folders.extend(run_folder.create(tmp_path) for _ in range(5))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 40 == len(list(tmp_path.iterdir()))


ASCII_TERMINAL = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.stdout.reconfigure(encoding="ascii", errors="strict")
sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")
del sys.argv[0]
runpy.run_path({str(ROOT)!r} + "/" + sys.argv[0], run_name="__main__")
"""


def test_unicode_and_spaces_in_every_path(tmp_path, monkeypatch):
    place = tmp_path / "été 雪 ☃ $x$ <b>&'"
    model, data = write_tiny_model(place / "mo del"), write_tiny_data(place / "daten ü")
    flags = ["--model_name", model, "--dataset_name", data, "--train_size", "8", "--eval_size", "8"]
    flags += ["--max_length", "32", "--batch_size", "4", "--num_epochs", "1"]
    results, again = place / "résultats", place / "encore ñ"
    status, out, err = run_script("train.py", *flags, "--results_dir", results, cwd=place)
    assert status == 0, err
    run = only_run(results)
    assert str(run) in out and read_json(run / "config.json")["model_name"] == str(model)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training([*flags, "--results_dir", again]) == 130
    (tmp_path / "ascii.py").write_text(ASCII_TERMINAL)
    status, _, err = run_script(tmp_path / "ascii.py", "train.py", "--resume", only_run(again))
    assert status == 0, err
    assert read_json(only_run(again) / "training_statistics.json")["status"] == "finished"
    status, _, err = run_script(tmp_path / "ascii.py", "analyze.py", run, results)
    assert status == 0 and "Traceback" not in err and "skipped" not in err, err
    assert (run / "analysis" / "attention_maps.png").is_file() and (results / "analysis" / "report.html").is_file()


def test_the_advice_to_resume_can_be_pasted(tiny_flags, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 2)
    assert run_training([*tiny_flags, "--results_dir", str(tmp_path / "my results")]) == 130
    assert f"python train.py --resume '{only_run(tmp_path / 'my results')}'" in capsys.readouterr().err


def test_symlinks_are_followed_and_never_emptied(tiny_flags, tmp_path, monkeypatch):
    real = tmp_path / "elsewhere"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training([*tiny_flags, "--results_dir", tmp_path / "link"]) == 130
    run = only_run(real)
    # The model folder and the oldest checkpoint are links: what they point to stays.
    outside = tmp_path / "outside"
    for name, link in (("model", run / "model"), ("checkpoint", run / "checkpoint" / "step_00000000")):
        (outside / name).mkdir(parents=True)
        (outside / name / "precious").write_text("data")
        link.symlink_to(outside / name)
    before = files_of(outside)
    assert run_training(["--resume", tmp_path / "link" / run.name]) == 0
    assert files_of(outside) == before and len(before) == 2
    assert (run / "model" / "model.safetensors").is_file() and not (run / "model").is_symlink()
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"RESULTS_DIR = .*dangling': must be a folder, or a new name.*: No such file"):
        run_training([*tiny_flags, "--results_dir", dangling])


# --- Junk and hostile files


def test_a_results_folder_full_of_junk(trained, monkeypatch, capsys):
    flags, run = trained
    results = run.parent
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training([*flags, "--seed", "7"]) == 130
    (unfinished,) = set(results.iterdir()) - {run}
    for name in ("run_", "run_x", "run_20260101", "run_99999999_999999_x", "run_²0260101_120000"):
        (results / name).mkdir()
    (results / "run_20990101_000000").write_text("a file")
    (results / "run_20990101_000001").symlink_to(results / "nowhere")
    (results / "run_20990101_000002").symlink_to(results / "run_20990101_000002")  # a loop
    os.mkfifo(results / "run_20990101_000003")
    (results / ".run_20990101_000004").mkdir()
    os.mkdir(os.fsencode(results) + b"/run_20990101_00000\xff")
    for name, content in (("old", '{"lr": 0.1}'), ("torn", '{"batch_size": '), ("binary", "\0\1\2"), ("list", "[[]]")):
        (results / f"run_20250101_{name}").mkdir()
        for file in ("config.json", "environment.json", "training_statistics.json"):
            (results / f"run_20250101_{name}" / file).write_text(content)
    before = files_of(results)
    assert run_folder.most_recent(results) == run_folder.most_recent(results, unfinished=True) == unfinished
    status, _, err = run_script("analyze.py", results)
    assert status == 0 and "Traceback" not in err and (results / "analysis" / "report.html").is_file(), err
    skipped = [line for line in err.splitlines() if line.startswith("skipped")]
    assert len(skipped) >= 11 and any("run_20250101_old: config.json lacks" in line for line in skipped)
    assert run_training([*flags, "--update_rules", "quantum,classical"]) == 0
    assert "2 runs, 1 of them finished before" in capsys.readouterr().out
    assert {path: content for path, content in files_of(results).items() if path in before} == before


@pytest.mark.parametrize("tear", [lambda rows: rows[:-1], lambda rows: rows[: rows.rindex(",") + 1]])
def test_a_torn_last_row_is_left_out(trained, tear):
    _, run = trained
    rows = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(tear(rows))
    (run / "training_statistics.json").write_text('{"status": "running", "selected_weights": {}}')
    assert run_folder.read(run)["statistics"]["steps"] == 3 and len(run_folder.read(run)["rows"]) == 4


@pytest.mark.parametrize("rows", [None, "step,epoch\n"])
def test_metrics_that_are_gone_are_missed_before_anything_is_written(interrupted, rows):
    (interrupted / "metrics.csv").unlink()
    if rows:
        (interrupted / "metrics.csv").write_text(rows)
    before = files_of(interrupted)
    with pytest.raises(ValueError, match=r"metrics.csv lacks rows that were there at the checkpoint"):
        run_training(["--resume", interrupted])
    assert files_of(interrupted) == before


@pytest.mark.parametrize("missing", ["config.json", "environment.json", "training_statistics.json", "metrics.csv"])
def test_analyze_skips_a_broken_run_and_goes_on(trained, tmp_path, capsys, missing):
    _, run = trained
    broken = shutil.copytree(run, run.parent / "run_20200101_000000")
    (broken / missing).unlink()
    assert run_analysis(broken, run) == 0
    out, err = capsys.readouterr()
    assert f"skipped {broken}: {missing} cannot be read" in err and str(run / "analysis" / "training_curves.png") in out
    assert run_analysis(run.parent) == 0
    assert f"skipped {broken}" in capsys.readouterr().err


def truncate(model):
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def empty(model):
    (model / "model.safetensors").write_bytes(b"")


def poison(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Poison()))


def bring_code(model):
    """A model type nobody knows, whose code comes along."""
    settings = json.loads((model / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Model"}}
    (model / "config.json").write_text(json.dumps(settings))
    (model / "evil.py").write_text("print('POISON RAN')\n")


@pytest.mark.parametrize("damage", [truncate, empty, poison, bring_code])
def test_a_broken_or_hostile_model_is_one_line(tiny_flags, tiny_model, tmp_path, damage):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    damage(model)
    status, out, err = run_script("train.py", *tiny_flags, "--model_name", model)
    assert status == 2 and f"MODEL_NAME = '{model}': cannot be loaded" in one_error(err)
    assert "POISON RAN" not in out + err and not (tmp_path / "results").exists()


def test_the_code_of_a_model_does_not_run_whatever_is_typed(tiny_model, tmp_path, monkeypatch):
    """transformers would ask on the terminal, and run it after a y."""
    model, marker = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "ran"
    bring_code(model)
    code = "from transformers import DistilBertConfig as Evil, DistilBertForSequenceClassification as Model\n"
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n{code}")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="cannot be loaded: its own code is never run"):
        model_utils.load_model(config.load(["--model_name", str(model), "--max_length", "8"]))
    with pytest.raises(ValueError):
        attention_maps(str(model), ["good"], 0)
    assert not marker.exists()


def test_reports_escape_what_comes_from_data(trained, tmp_path):
    """Names of models and data, which the title, the captions and the tables show."""
    _, run = trained
    tag = "<script>alert(1)</script>|[x](http://x)"
    settings = json.loads((run / "config.json").read_text())
    settings |= {"dataset_name": tag, "label_column": tag, "attention_pattern": tag}
    environment = json.loads((run / "environment.json").read_text())
    environment["data"] |= {"kind": "hub", "id": tag}
    environment["model"] |= {"path": f"/{tag}"}
    environment |= {"git_commit": "<i>", "packages": {tag: tag}, "initial_weights_sha256": "<b>"}
    (run / "config.json").write_text(json.dumps(settings))
    (run / "environment.json").write_text(json.dumps(environment))
    assert run_analysis(run.parent) == 0
    page = (run.parent / "analysis" / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page and "<i>" not in page and "<b>" not in page


# --- Tracebacks


def test_an_unexpected_error_is_one_line_and_a_traceback_with_debug(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom harness import command_line\n"
        "def main(command):\n    raise {'a': KeyError, 'b': ValueError}[command.runs[0].model_name]('why')\n"
        "command_line.run_as_script(main, command_line.parse_or_exit(sys.argv[1:]))\n"
    )
    for kind, status, line in (("a", 1, "error: KeyError: 'why'; --debug shows where"), ("b", 2, "error: why")):
        command = [sys.executable, script, "--model_name", kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.strip()) == (status, line)
        done = subprocess.run([*command, "--debug"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "Traceback" in done.stderr and "in main" in done.stderr


def test_debug_shows_where_a_run_failed(tiny_flags, monkeypatch, capsys):
    stop_at(monkeypatch, 2, OSError("the disk is on fire"))
    assert run_training([*tiny_flags, "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "error: the disk is on fire" in err


def test_text_that_no_file_can_hold_is_refused():
    for text in ("a\0b", "run_\udcff"):
        with pytest.raises(ValueError, match=r"RESULTS_DIR = .*: must be text"):
            config.load(["--results_dir", text])


def test_out_of_memory_while_loading_is_no_damaged_checkpoint(interrupted, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_model", full)
        assert run_training(["--resume", interrupted]) == 1
    line = one_error(err := capsys.readouterr().err)
    assert line == "error: OutOfMemoryError: CUDA out of memory; --debug shows where" and "damaged" not in err
    assert read_json(interrupted / "training_statistics.json")["status"] == "failed"
    assert run_training(["--resume", interrupted]) == 0  # when there is room again


def test_a_bug_within_a_run_is_one_line_and_resume_goes_on(tiny_flags, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 4, KeyError("a bug"))
        assert run_training([*tiny_flags, *LONG, "--num_epochs", "1"]) == 1
    assert one_error(capsys.readouterr().err) == "error: KeyError: 'a bug'; --debug shows where"
    run = only_run(tmp_path / "results")
    statistics = read_json(run / "training_statistics.json")
    assert (statistics["status"], statistics["steps"]) == ("failed", 3) and not (run / "model").exists()
    assert run_training(["--resume", run]) == 0
