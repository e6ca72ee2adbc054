"""One run in its folder: how it begins, how it is resumed, and every way it can end."""

import contextlib
import os
import shlex
import sys
import traceback

from harness import checkpoints, command_line, run_folder
from harness.files import write_json
from harness.process_group import rank, world_size


def begin(run, settings, environment, weights):
    """Write what a run folder holds from the start. weights: the selected ones, tensors by name."""
    if rank() == 0:
        write_json(run / "environment.json", environment)
        write_json(run / "config.json", settings._asdict())
        write_json(run / "training_statistics.json", status_of(weights, "running"))


def load_to_resume(run, settings, environment):
    """(environment, checkpoint) of a run that goes on, see checkpoints.load. Raises run_folder.CannotResume."""
    environment = run_folder.resumed_environment(run, environment)
    try:
        checkpoint = checkpoints.load(run)
    except ValueError as error:
        raise run_folder.CannotResume(error) from None
    run_folder.require_rows(run, checkpoint["progress"]["offsets"])
    run_folder.require_settings(run, checkpoint["progress"]["settings"], settings)
    return environment, checkpoint


def conclude(run, weights, error, debug, show):
    """Say how a run ended and write its statistics; returns the exit status: 0, 1, or 130 where --resume can go on.

    error: the exception that ended it, or None. debug: whether to print its traceback. show: function of the run, as
    run_folder.read gives it, that shows its results. A finished run loses its checkpoints.
    """
    exit_status = command_line.exit_message(error)[1] if error else 0
    status = "finished" if error is None else "interrupted" if exit_status == 130 else "failed"
    status = "diverged" if isinstance(error, FloatingPointError) else status
    if debug and error:
        traceback.print_exception(error)
    if error:
        goes_on = status == "interrupted" or isinstance(error, OSError)  # a device, a disk: not the run's own fault
        command_line.complain(error, advice_to_resume(run) if goes_on else "")
    if rank() == 0:
        # What failed has been said; a full disk or a folder gone would only be said again.
        with contextlib.suppress(OSError, ValueError) if status == "failed" else contextlib.nullcontext():
            rows = run_folder.read_metrics(run / "metrics.csv") if (run / "metrics.csv").exists() else []
            summary = status_of(weights, status) | run_folder.summarise(rows)
            write_json(run / "training_statistics.json", summary)
            if status == "finished":
                checkpoints.drop(run)
            if rows:
                show(run_folder.read(run))
    if status == "failed" and world_size() > 1:
        sys.exit(1)  # the others are waiting somewhere in this run
    return exit_status if exit_status in (0, 130) else 1


def status_of(weights, status):
    """What training_statistics.json says from the start."""
    return {"selected_weights": {name: weight.numel() for name, weight in weights.items()}, "status": status}


def advice_to_resume(run):
    """Words to append to the line about how a run ended; "" where it left no checkpoint."""
    if not checkpoints.saved(run):
        return ""
    started = "python" if world_size() == 1 else f"torchrun --nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"
    return f"; to go on: {started} train.py --resume {shlex.quote(str(run))}"
