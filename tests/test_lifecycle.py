"""How a run is concluded: status, exit status and line for everything that can end it."""

import pytest
import torch
from conftest import read_json

import devices
from harness import checkpoints, lifecycle
from harness.command_line import Stopped

WEIGHTS = {"w": torch.zeros(2, 3)}


def conclude(run, error, debug=False):
    shown = []
    status = lifecycle.conclude(run, WEIGHTS, error, debug, shown.append)
    assert not shown  # there are no rows
    return status


@pytest.mark.parametrize(
    ("error", "exit_status", "status", "line"),
    [
        (None, 0, "finished", ""),
        (KeyboardInterrupt(), 130, "interrupted", "interrupted\n"),
        (Stopped("quota spent"), 130, "interrupted", "stopped: quota spent\n"),
        (FloatingPointError("the loss is not finite"), 1, "diverged", "error: diverged: the loss is not finite\n"),
        (OSError(28, "No space left on device", "a"), 1, "failed", "error: [Errno 28] No space left on device: 'a'\n"),
        (ValueError("two\nlines"), 1, "failed", "error: two lines\n"),
        (KeyError("k"), 1, "failed", "error: KeyError: 'k'; --debug shows where\n"),
    ],
)
def test_every_end_has_its_status_and_one_line(tmp_path, capsys, error, exit_status, status, line):
    assert conclude(tmp_path, error) == exit_status
    written = read_json(tmp_path / "training_statistics.json")
    assert written["status"] == status and written["selected_weights"] == {"w": 6} and written["steps"] == 0
    assert capsys.readouterr().err == line


def test_a_traceback_with_debug_alone(tmp_path, capsys):
    try:
        raise KeyError("k")
    except KeyError as error:
        conclude(tmp_path, error, debug=True)
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("error: KeyError: 'k'; --debug shows where\n")


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (None, False),
        (KeyboardInterrupt(), True),
        (devices.DeviceError("job 7 failed"), True),
        (OSError(28, "No space left on device", "a"), True),
        (FloatingPointError("nan"), True),
        (ValueError("bug"), True),
    ],
)
def test_only_a_finished_run_loses_its_checkpoints_and_how_to_go_on_is_said_where_it_helps(
    tmp_path, capsys, error, stays
):
    (tmp_path / "checkpoint" / "step_00000004").mkdir(parents=True)
    conclude(tmp_path, error)
    assert (tmp_path / "checkpoint").exists() == stays
    advised = f"; to go on: python train.py --resume {tmp_path}" in capsys.readouterr().err
    assert advised == isinstance(error, KeyboardInterrupt | OSError)


def test_a_run_folder_that_is_gone_is_told_once(tmp_path, capsys):
    assert conclude(tmp_path / "gone", FileNotFoundError("the run folder is gone")) == 1
    assert capsys.readouterr().err == "error: the run folder is gone\n"


def test_several_processes_are_advised_to_start_as_many_on_each_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(lifecycle, "world_size", lambda: 6)  # on two machines
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert lifecycle.advice_to_resume(tmp_path) == ""  # no checkpoint, no advice
    run = tmp_path / "a run"
    (run / "checkpoint" / "step_00000004").mkdir(parents=True)
    assert checkpoints.saved(run)
    advice = f"; to go on: torchrun --nproc_per_node=3 train.py --resume '{run}'"
    assert lifecycle.advice_to_resume(run) == advice


def test_a_spent_quota_is_no_failure(tmp_path):
    """What train.measure_gradients makes of devices.QuotaReached."""
    assert issubclass(devices.QuotaReached, Exception) and not issubclass(devices.QuotaReached, ValueError | OSError)
    assert conclude(tmp_path, Stopped(devices.QuotaReached("spent"))) == 130
