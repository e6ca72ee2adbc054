"""Checkpoints: everything a run needs to go on bit for bit, in RUN/checkpoint/step_NNNNNNNN/, the last two of them."""

import contextlib
import hashlib
import json
import random
import shutil
import sys

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

import config
from harness.command_line import Stopped
from harness.files import sync, write_atomically
from harness.interrupts import obeyed, uninterrupted
from harness.process_group import rank, stopped_by_lost_process

FILES = ("model.safetensors", "training_state.pt")
PROGRESS = {"settings", "random", "step", "evaluation", "evaluation_due", "offsets"}  # see start_or_restore


def random_state():
    """Every global random state that training draws from: python, numpy, torch and CUDA (dropout). Shots and data
    order have none: they are functions of seed, step and epoch."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state):
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    for device, saved in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(saved, device)


def save(run, model, optimizer, scheduler, progress):
    """Write a checkpoint of the state after progress["step"] steps, complete or not at all, and drop the third last.

    progress: dict of plain values, see start_or_restore, with the random states at the end of that step.
    Raises OSError where it cannot be written.
    """

    def write(folder):
        folder.mkdir()
        state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "progress": progress}
        with full_disk_is_an_os_error(folder):
            save_model(model, str(folder / "model.safetensors"))
            torch.save(state, folder / "training_state.pt")
        hashes = {name: sha256(folder / name) for name in FILES}
        (folder / "sha256.json").write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")

    if not run.is_dir():
        raise FileNotFoundError(f"{run}: the run folder is gone")
    folder = run / "checkpoint"
    folder.mkdir(exist_ok=True)
    for name in progress["offsets"]:  # the checkpoint counts on them
        sync(run / name)
    with uninterrupted():
        write_atomically(folder / f"step_{progress['step']:08d}", write)
        for old in [*saved(run)[:-2], *folder.glob(".step_*")]:  # and what a killed process left half written
            shutil.rmtree(old, ignore_errors=True)


def drop(run):
    """Remove the checkpoints of a run that has finished."""
    shutil.rmtree(run / "checkpoint", ignore_errors=True)


def saved(run):
    """The checkpoint folders of a run, oldest first."""
    return sorted((run / "checkpoint").glob("step_" + 8 * "[0-9]"))


def load(run):
    """The newest whole checkpoint of a run, for `restore`: dict of "model", "optimizer", "scheduler" and "progress".

    One that is incomplete or damaged is passed over with a line that says so. Raises ValueError where none is left.
    """
    for folder in reversed(saved(run)):
        try:
            hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
            for name in FILES:
                if sha256(folder / name) != hashes[name]:
                    raise ValueError(f"{name} is not what was written")
            state = torch.load(folder / "training_state.pt", weights_only=True, map_location="cpu")
            if missing := PROGRESS - state["progress"].keys():  # of an earlier version
                raise ValueError(f"{', '.join(sorted(missing))} is missing")
            if missing := {"python", "numpy", "torch", "cuda"} - state["progress"]["random"].keys():
                raise ValueError(f"random state {', '.join(sorted(missing))} is missing")
            return state | {"model": folder / "model.safetensors"}
        except MemoryError:
            raise
        except Exception as error:  # whatever a damaged or hostile file makes the libraries raise
            why = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"checkpoint {folder.name} is damaged, trying the one before: {why}", file=sys.stderr)
    raise ValueError(f"--resume {run}: holds no whole checkpoint to resume from")


def restore(state, model, optimizer, scheduler):
    """Put a checkpoint into model, optimizer, scheduler and random states; returns its progress.

    A process on another machine than the first has no model file at hand: it gets its weights from the first. Raises
    ValueError where the checkpoint is not one of this run.
    """
    try:
        if state["model"].is_file():
            load_model(model, str(state["model"]))
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        restore_random_state(state["progress"]["random"])
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # as various as in `load`
        raise ValueError(f"{state['model'].parent}: not a checkpoint of this run: {error}") from None
    return state["progress"]


def start_or_restore(settings, model, optimizer, scheduler, state=None):
    """What is done so far, a dict: step, evaluation (the last one), evaluation_due (whether one comes before the next
    step), offsets (bytes by csv file), random (the random states) and settings (a dict, those that it depends on).

    settings: config.Settings. state: of a checkpoint, from `load`; None begins with the seed.
    """
    if state is not None:
        return restore(state, model, optimizer, scheduler)
    torch.manual_seed(settings.seed)  # dropout
    begun = {"settings": config.settings_that_affect_result(settings._asdict()), "random": random_state()}
    return begun | {"step": 0, "evaluation": None, "evaluation_due": True, "offsets": {}}


@contextlib.contextmanager
def saved_when_stopped(run, model, optimizer, scheduler, progress):
    """Yield a function that saves a checkpoint, on rank 0; it is called, too, when the block ends by anything that
    --resume can go on from: Ctrl-C, SIGTERM, SIGHUP, a spent quota, a device or another process that is gone."""

    def save_checkpoint():
        if rank() == 0:
            save(run, model, optimizer, scheduler, progress)

    try:
        with obeyed(), stopped_by_lost_process():
            yield save_checkpoint
    except (KeyboardInterrupt, Stopped, ConnectionError):
        save_checkpoint()
        raise


@contextlib.contextmanager
def full_disk_is_an_os_error(folder):
    """Give the errors of libraries that write files, which are of all kinds, the type of their cause."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"{folder.parent}: cannot be written: {error}") from error


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
