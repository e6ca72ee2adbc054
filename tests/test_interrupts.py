"""Ctrl-C, SIGTERM, and readers that go away: whenever they come, and however many, a run is ended once and whole."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, only_run, read_json, run_script, run_training, start_training, wait_for

import train
from harness import checkpoints, interrupts, lifecycle, run_folder
from harness.command_line import Pipe


def six():
    for number in (signal.SIGINT, signal.SIGTERM) * 3:
        signal.raise_signal(number)


# --- The blocks


def test_all_wait_but_the_first_in_a_block_that_obeys(capsys):
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.held() as asked:
        six()
        with interrupts.uninterrupted():  # nothing obeys around it
            six()
        assert len(asked) == 12
        with pytest.raises(KeyboardInterrupt), interrupts.obeyed():
            raise AssertionError("one has been waiting")
    with interrupts.held() as asked:
        assert asked == []
        ending = []
        with interrupts.obeyed():
            try:
                six()
            except KeyboardInterrupt:
                six()
                ending.append("whole")
        six()
        assert ending == ["whole"] and len(asked) == 13
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_what_must_happen_whole_is_interrupted_after_it_even_where_a_library_swallowed_it():
    with interrupts.held(), interrupts.obeyed():
        done = []
        with pytest.raises(KeyboardInterrupt), interrupts.uninterrupted():
            six()
            done.append(1)
        with pytest.raises(KeyboardInterrupt), interrupts.uninterrupted():  # none has come since
            done.append(2)
        with pytest.raises(ZeroDivisionError), interrupts.uninterrupted():
            1 / 0  # noqa: B018, its error says more
        assert done == [1, 2]


# --- Runs


@pytest.mark.parametrize(
    ("module", "name", "status"),
    [
        (lifecycle, "begin", "interrupted"),
        (train.summary, "announce", "interrupted"),
        (checkpoints, "start_or_restore", "interrupted"),
        (train, "evaluate", "interrupted"),
        (train, "measure_gradients", "interrupted"),
        (train, "step_weights", "interrupted"),
        (checkpoints, "save_model", "interrupted"),
        (train, "save_model", "finished"),
        (run_folder, "summarise", "finished"),
        (train.summary, "show_results", "finished"),
    ],
)
def test_six_ctrl_c_at_any_moment_leave_what_one_does(tiny_flags, tmp_path, monkeypatch, capsys, module, name, status):
    real, save = getattr(module, name), checkpoints.save

    def interrupted(*given):
        six()
        return real(*given)

    def save_impatiently(*given):
        if interrupts.ASKED:
            six()
        save(*given)
        if interrupts.ASKED:
            six()

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        patch.setattr(checkpoints, "save", save_impatiently)
        assert run_training([*tiny_flags, "--checkpoint_every", "2", "--num_epochs", "2"]) == 130
    run, err = only_run(tmp_path / "results"), capsys.readouterr().err
    assert read_json(run / "training_statistics.json")["status"] == status
    assert not list(run.rglob(".*")) and (run / "model").exists() == (status == "finished")
    if status == "finished":
        assert err.endswith("interrupted, but this run has finished\n")
    else:
        assert err.endswith(f"interrupted; to go on: python train.py --resume {run}\n")
        assert run_training(["--resume", run]) == 0
        assert read_json(run / "training_statistics.json")["steps"] == 6


def test_six_ctrl_c_in_a_second(tiny_flags, tmp_path):
    process = start_training(tiny_flags, tmp_path / "results")
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.count("interrupted") == 1 and "to go on: python train.py --resume" in err
    steps = read_json(only_run(tmp_path / "results") / "training_statistics.json")["steps"]
    assert max((only_run(tmp_path / "results") / "checkpoint").iterdir()).name == f"step_{steps:08d}"


@pytest.mark.parametrize("name", ["show_results", "save_model"])
def test_a_study_stops_though_its_first_run_has_finished(tiny_flags, tmp_path, monkeypatch, capsys, name):
    module = train.summary if name == "show_results" else train
    real = getattr(module, name)

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(module, name, interrupted)
    assert run_training([*tiny_flags, "--seeds", "0-1"]) == 130
    assert "the same command goes on with the runs that are missing" in capsys.readouterr().out
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["status"] == "finished"


# --- Terminals and readers that go away


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
@pytest.mark.parametrize("ignored", [False, True])  # True: under nohup
def test_a_run_whose_terminal_was_closed_leaves_a_checkpoint(tiny_flags, tmp_path, ignored):
    import fcntl
    import termios

    def begin_session():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    terminal, theirs = os.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    streams |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} if ignored else {}
    command = [sys.executable, ROOT / "train.py", *tiny_flags, "--num_epochs", "80" if ignored else "5000"]
    process = subprocess.Popen(command, **streams, start_new_session=True, preexec_fn=begin_session)
    os.close(theirs)
    os.set_blocking(terminal, False)

    def saved_while_shown():
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 2**16)
        return any((tmp_path / "results").glob("*/checkpoint/step_*[1-9]*"))

    wait_for(saved_while_shown, process)
    os.close(terminal)
    assert process.wait(timeout=60) == (0 if ignored else 130)
    statistics = read_json(only_run(tmp_path / "results") / "training_statistics.json")
    assert statistics["status"] == ("finished" if ignored else "interrupted")
    if not ignored:
        saved = max((only_run(tmp_path / "results") / "checkpoint").iterdir())
        assert saved.name == f"step_{statistics['steps']:08d}"


READERS_GONE = f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
reading, writing = os.pipe()
os.close(reading)
gone = sys.argv.pop(1)
sys.argv[0] = {str(ROOT)!r} + "/" + sys.argv.pop(1)
for descriptor in map(int, gone):
    os.dup2(writing, descriptor)
sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("gone", ["1", "2", "12"])
def test_a_run_whose_reader_went_away_leaves_a_checkpoint(tiny_flags, tmp_path, gone):
    (tmp_path / "readers_gone.py").write_text(READERS_GONE)
    status, _, err = run_script(tmp_path / "readers_gone.py", gone, "train.py", *tiny_flags)
    assert status == 130
    run = only_run(tmp_path / "results")
    assert read_json(run / "training_statistics.json")["status"] == "interrupted"
    assert (run / "checkpoint" / "step_00000000").is_dir()
    if gone == "1":
        assert err.splitlines()[-1] == f"interrupted; to go on: python train.py --resume {run}"
        assert "Traceback" not in err and "BrokenPipe" not in err
    assert run_training(["--resume", run]) == 0


def test_a_study_whose_reader_goes_away_stops_as_by_ctrl_c(tiny_flags, tmp_path):
    (tmp_path / "readers_gone.py").write_text(READERS_GONE)
    status, out, err = run_script(tmp_path / "readers_gone.py", "1", "train.py", *tiny_flags, "--seeds", "0-1")
    assert (status, out, err) == (130, "", "interrupted\n") and not (tmp_path / "results").exists()
    status, out, err = run_script(tmp_path / "readers_gone.py", "2", "train.py", *tiny_flags, "--seeds", "0-1")
    assert status == 130 and err == "" and out.startswith("study:   2 runs") and "Traceback" not in out
    for run in (tmp_path / "results").glob("run_*"):
        assert read_json(run / "training_statistics.json")["status"] != "running"


def test_an_analysis_whose_reader_went_away_says_so(finished_run, tmp_path):
    (tmp_path / "readers_gone.py").write_text(READERS_GONE)
    status, _, err = run_script(tmp_path / "readers_gone.py", "1", "analyze.py", finished_run)
    assert status == 130 and err.splitlines()[-1] == "interrupted" and "Traceback" not in err


def test_a_pipe_without_a_reader_is_told_once_and_drops_what_follows():
    reading, writing = os.pipe()
    with Pipe(writing, "w") as pipe, interrupts.held() as asked:
        assert pipe.write(b"read") == 4 and os.read(reading, 9) == b"read"
        os.close(reading)
        assert pipe.write(b"dropped") == 7 and pipe.write(b"too") == 3
        assert asked == [signal.SIGINT]
