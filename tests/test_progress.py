"""The timer of a step's stages, and the progress bar."""

import os
import sys

import pytest
import torch
from conftest import read_json, run_script

from harness import progress
from harness.run_folder import METRICS, STAGES


@pytest.fixture
def clock(monkeypatch):
    """A clock, a list of one number, that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_the_timer_adds_up_by_stage(clock):
    timer = progress.StageTimer(torch.device("cpu"))
    for stage, took in (("forward", 1.0), ("backward", 2.0), ("forward", 4.0), ("quantum", 0.5)):
        with timer(stage):
            clock[0] += took
        clock[0] += 64.0  # between stages, nobody's
    assert timer.seconds == {"forward": 5.0, "backward": 2.0, "quantum": 0.5, "other": 0.0}
    assert timer.columns() == {f"seconds_{stage}": took for stage, took in timer.seconds.items()}
    assert list(timer.seconds) == list(STAGES) and timer.columns().keys() <= set(METRICS)
    assert progress.StageTimer(torch.device("cpu")).seconds == dict.fromkeys(STAGES, 0.0)  # each has its own


def test_the_timer_refuses_what_is_no_stage():
    with pytest.raises(KeyError), progress.StageTimer(torch.device("cpu"))("coffee"):
        pass


def test_the_timer_waits_for_a_cuda_device(clock, monkeypatch):
    """Whose work is queued: at both ends of a stage."""

    def wait(device):
        waited.append(device)
        clock[0] += 10.0  # what was still in the queue

    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    timer = progress.StageTimer(torch.device("cuda", 0))
    with timer("quantum"):
        clock[0] += 1.0
    assert waited == [torch.device("cuda", 0)] * 2
    assert timer.seconds["quantum"] == 11.0


def test_the_bar_shows_a_step_and_stands_where_a_resumed_run_does(capsys):
    with progress.progress_bar(total=40, done=7) as bar:
        row = {"cosine": None, "loss": 0.25, "learning_rate": 1e-5}
        progress.show_step(bar, row, {"eval_accuracy": 0.5})
        progress.show_step(bar, row | {"cosine": 0.9876}, {"eval_accuracy": 0.75})
        bar.refresh()
    err = capsys.readouterr().err
    assert "7/40" in err and "9/40" in err and "cos=0.988" in err and "loss=0.250" in err and "acc=0.750" in err


def test_a_log_gets_plain_lines_and_the_last_one_is_the_summarys(tiny_flags, tmp_path):
    status, out, err = run_script("train.py", *tiny_flags)
    assert status == 0 and "\r" not in err and "\x1b" not in err
    last = err.splitlines()[-1]
    (run,) = (tmp_path / "results").glob("run_*")
    statistics = read_json(run / "training_statistics.json")
    assert "3/3" in last and f"acc={statistics['evaluations'][-1]['accuracy']:.3f}" in last
    assert f"mean cosine of update and gradient {statistics['mean_cosine']:.3f}" in out
    assert out.splitlines()[-1] == f"next: python analyze.py {run}"


@pytest.mark.parametrize("size", [(0, 0), (40, 100)])
def test_a_terminal_gets_a_bar_even_where_it_does_not_know_its_size(monkeypatch, size):
    """As that of `script`, and of some containers."""
    termios = pytest.importorskip("termios")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, size)
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.progress_bar(total=3, done=0) as bar:
            bar.update(3)
        shown = ""
        while not shown.endswith("\n"):
            shown += os.read(ours, 10_000).decode(errors="replace")
    os.close(ours)
    assert "0/3" in shown and "3/3" in shown.rstrip().rpartition("\r")[2]


def test_many_steps_are_few_lines(capsys):
    with progress.progress_bar(total=500, done=0) as bar:
        for _ in range(500):
            bar.update()
    assert len(capsys.readouterr().err.splitlines()) == 2  # at the start and at the end


def test_only_rank_zero_shows_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress, "rank", lambda: 1)
    with progress.progress_bar(total=2, done=0) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
