"""What a program says when it ends, and with which exit status."""

import os
import signal
import sys
import time
from typing import NamedTuple

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from harness import command_line


class Given(NamedTuple):
    debug: bool = False


@pytest.fixture(autouse=True)
def handlers_and_streams_are_put_back(monkeypatch):
    """Which a script sets for as long as it lives."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)  # which can be reconfigured
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    yield
    signal.signal(signal.SIGINT, before)


def ending(error, debug=False):
    """The exit status of a script whose main raises the error, or returns it where it is a number."""

    def main(command):
        if isinstance(error, BaseException):
            raise error
        return error

    with pytest.raises(SystemExit) as end:
        command_line.run_as_script(main, Given(debug))
    return end.value.code


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (130, 130, ""),
        (ValueError("SHOTS = 0: must be more"), 2, "error: SHOTS = 0: must be more\n"),
        (FileNotFoundError(2, "No such file", "a"), 2, "error: [Errno 2] No such file: 'a'\n"),
        (FloatingPointError("the loss\nis not finite"), 1, "error: diverged: the loss is not finite\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (command_line.Stopped("quota spent"), 130, "stopped: quota spent\n"),
        (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero; --debug shows where\n"),
    ],
)
def test_an_end_is_one_line_and_an_exit_status(capfd, error, status, line):
    assert ending(error) == status
    assert capfd.readouterr().err == line
    os.kill(os.getpid(), signal.SIGINT)  # nothing is left to interrupt


def test_a_program_may_be_started_without_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert ending(0) == 0 and ending(ValueError("nobody reads this")) == 2


def test_debug_lets_the_traceback_through():
    with pytest.raises(ZeroDivisionError):
        command_line.run_as_script(lambda command: 1 / 0, Given(debug=True))


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("as everywhere"), ""),
        (KeyboardInterrupt(), ""),
        (FloatingPointError("as everywhere"), ""),
        (ZeroDivisionError("here alone"), "rank 1: error: ZeroDivisionError: here alone; --debug shows where\n"),
    ],
)
def test_another_rank_says_only_what_rank_zero_may_not_know(monkeypatch, capfd, error, shown):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    command_line.complain(error)
    assert capfd.readouterr().err == shown


def test_a_rank_that_a_scheduler_has_set_silences_nothing(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    command_line.complain(ValueError("NUM_EPOCHS = 0"))
    assert capfd.readouterr().err == "error: NUM_EPOCHS = 0\n"


def test_torchrun_is_told_what_failed_but_not_what_can_go_on(monkeypatch, tmp_path, capfd):
    """In the file that it reads its report of the root cause from."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    command_line.complain(KeyboardInterrupt())  # often of torchrun itself, since another process has failed
    command_line.complain(command_line.Stopped("another process is gone"))
    assert not file.exists()
    command_line.complain(ValueError("SHOTS = 0: must be more"))
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(file))
    assert failure.message == "error: SHOTS = 0: must be more" and abs(failure.timestamp - time.time()) < 60
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    command_line.complain(ValueError("SHOTS = 0: must be more"))  # the report lacks it, that is all


def test_refused_settings_end_before_the_imports(capfd):
    def refuse(argv):
        raise ValueError(f"no {argv[0]}")

    with pytest.raises(SystemExit) as end:
        command_line.parse_or_exit(["flag"], refuse)
    assert end.value.code == 2 and capfd.readouterr().err == "error: no flag\n"
    assert command_line.parse_or_exit(["flag"], lambda argv: argv) == ["flag"]
    assert signal.getsignal(signal.SIGINT) is command_line.quit_at_once


def test_ctrl_c_while_loading_ends_at_once_and_only_then(monkeypatch, capfd):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    before = signal.getsignal(signal.SIGINT)
    with command_line.quit_on_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
    assert left == [130] and capfd.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before
