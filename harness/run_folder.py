"""The run folder, the one contract between train.py and analyze.py: its making, writing, reading and resuming."""

import contextlib
import csv
import itertools
import json
import math
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np

import config
from update_rules import RULES

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STAGES = ("forward", "backward", "quantum", "other")  # of a step, whose seconds are recorded
METRICS = [
    *("step", "epoch", "loss", "accuracy", "learning_rate"),
    *("cosine", "gradient_norm", "update_norm", "coverage", "circuits", "shots", "allocation_gain"),
    *(f"seconds_{stage}" for stage in STAGES),
    *("eval_loss", "eval_accuracy"),
]
# Settings and columns that came after runs were published, which are read as what those did.
LATER_SETTINGS = {"shot_allocation": "equal", "device_selection": "largest"}
LATER_METRICS = {"allocation_gain"}
PREDICTIONS = ["step", "example", "label", "margin"]  # columns of predictions.csv, see model_utils.evaluate


# --- Writing


def require_writable(results_dir):
    """Raise ValueError where no run folder can be made in a results folder, which need not be there yet; leave it so.

    A folder made and removed in what is there of its path: what the permissions say is not sure, for root above all.
    """
    there = next((path for path in (results_dir, *results_dir.parents) if os.path.lexists(path)), results_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=there):
            pass
    except OSError as error:
        allowed = "must be a folder, or a new name, where folders can be made"
        raise ValueError(f"RESULTS_DIR = {str(results_dir)!r}: {allowed}: {error.strerror}") from None


def create(results_dir):
    """Make and return a new folder run_YYYYmmdd_HHMMSS, with _1, _2, ... appended where that second is taken."""
    results_dir.mkdir(parents=True, exist_ok=True)
    for folder in places(results_dir, time.strftime("run_%Y%m%d_%H%M%S")):
        with contextlib.suppress(FileExistsError):  # where another process was faster
            folder.mkdir()
            return folder


def places(results_dir, name):
    """Yield results_dir/name, and that with _1, _2, ... appended, without end."""
    yield results_dir / name
    for number in itertools.count(1):
        yield results_dir / f"{name}_{number}"


@contextlib.contextmanager
def locked(folder):
    """Hold a run folder for this process; ValueError where another process trains in it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is training in it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def seconds_of(name):
    """The column of metrics.csv for the seconds that the circuits of one weight took."""
    return f"seconds_quantum {name}"


# --- Reading


def most_recent(results_dir, unfinished=False):
    """The latest run folder by its name's second and number; with `unfinished`, of those that --resume can go on with,
    if possible one that no process is training in.

    Raises ValueError where there is none.
    """
    found = [folder for folder in in_order(results_dir) if not unfinished or is_resumable(folder)]
    if not found:
        what = "unfinished run with a checkpoint" if unfinished else "run folder, `python train.py` makes one"
        raise ValueError(f"RESULTS_DIR = {str(results_dir)!r}: holds no {what}")
    free = [folder for folder in found if not is_locked(folder)] if unfinished else []
    return (free or found)[-1]


def is_locked(folder):
    """Whether another process trains in a run folder."""
    try:
        with locked(folder):
            return False
    except ValueError:
        return True


def in_order(results_dir):
    """The run folders in results_dir by the second and number in their names, the latest last, a list."""
    pattern = re.compile(r"run_\d{8}_\d{6}(_\d+)?", re.ASCII)
    return sorted((f for f in results_dir.glob("run_*") if pattern.fullmatch(f.name) and f.is_dir()), key=by_number)


def by_number(path):
    """A key that sorts names by the numbers in them: run_1_2 before run_1_10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split("([0-9]+)", path.name))]


def read(folder):
    """A run as a dict: folder, settings, environment, statistics, rows of metrics.csv. A broken one is a ValueError."""
    run = {"folder": folder}
    if not folder.is_dir():
        raise ValueError("no such run folder")
    needed = {
        "config": set(config.Settings._fields) - LATER_SETTINGS.keys(),
        "environment": {"model", "data"},
        "training_statistics": {"status", "selected_weights"},
    }
    for key, name in (("settings", "config"), ("environment", "environment"), ("statistics", "training_statistics")):
        try:
            run[key] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}.json cannot be read: {error}") from None
        if not isinstance(run[key], dict) or needed[name] - run[key].keys():
            lacking = sorted(needed[name] - set(run[key] if isinstance(run[key], dict) else ()))
            raise ValueError(f"{name}.json lacks {', '.join(lacking)}: of an older layout, or not of a run that began")
    model, data = run["environment"]["model"], run["environment"]["data"]

    def is_told(source):
        return isinstance(source, dict) and "kind" in source and (source["kind"] != "local" or "path" in source)

    if not (is_told(model) and is_told(data) and "evaluation_examples" in data):
        raise ValueError("environment.json does not say what model and data were used")
    run["settings"] = LATER_SETTINGS | run["settings"]
    if str(rule := run["settings"]["update_rule"]) not in RULES:
        raise ValueError(f"UPDATE_RULE = {rule!r}: there is no such rule, there are {', '.join(RULES)}")
    run["rows"] = read_metrics(folder / "metrics.csv")
    if run["statistics"]["status"] == "running":  # or killed, before it could sum up
        try:
            run["statistics"] |= summarise(run["rows"])
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"metrics.csv cannot be read: {error}") from None
    if lacking := {"steps", "evaluations", *(f"seconds_{stage}" for stage in STAGES)} - run["statistics"].keys():
        raise ValueError(f"training_statistics.json lacks {', '.join(sorted(lacking))}: of an older layout")
    if run["statistics"]["status"] == "finished":
        accuracies = [row["eval_accuracy"] for row in run["rows"] if row["eval_accuracy"] is not None]
        if not accuracies or accuracies != [row["accuracy"] for row in run["statistics"]["evaluations"] or ()]:
            raise ValueError("metrics.csv has not the evaluations of training_statistics.json")
    return run


def read_metrics(path):
    """Rows of a metrics.csv as dicts of float, None for empty cells; a half-written last row is left out."""
    try:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        rows = [row for row in csv.DictReader(whole.splitlines()) if None not in row.values()]
        if rows and set(METRICS) - rows[0].keys() - LATER_METRICS:
            raise ValueError("its columns are not those of a run")
        return [{name: float(value) if value else None for name, value in row.items()} for row in rows]
    except (ValueError, TypeError, OSError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def read_predictions(path):
    """The evaluations that a predictions.csv holds, a dict: step -> (labels, margins), by number of the example.

    labels: int64 (examples,). margins: float64 (examples,), logit of the label minus the largest other one, above 0
    where the prediction is correct. A half-written last evaluation is left out. {} where there is no such file, as in
    runs of an older layout; ValueError where it cannot be read.
    """
    if not path.exists():
        return {}
    try:
        header, _, whole = path.read_text(encoding="utf-8").rpartition("\n")[0].partition("\n")
        if header.split(",") != PREDICTIONS:
            raise ValueError("its columns are not those of a run")
        values = np.fromstring(whole.replace("\n", ","), sep=",").reshape(-1, len(PREDICTIONS))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    starts = np.flatnonzero(values[:, 1] == 0)
    evaluations = np.split(values, starts[1:]) if len(starts) else []
    size = max(map(len, evaluations), default=0)
    return {int(rows[0, 0]): (rows[:, 2].astype(int), rows[:, 3].copy()) for rows in evaluations if len(rows) == size}


def summarise(rows):
    """What training_statistics.json says beside the status, from the rows of metrics.csv: counts, sums, evaluations."""
    steps = [row for row in rows if row["loss"] is not None]
    cosines = [row["cosine"] for row in steps if row["cosine"] is not None and math.isfinite(row["cosine"])]
    evaluated = [row for row in rows if row["eval_accuracy"] is not None]
    evaluations = [
        {"step": int(row["step"]), "loss": row["eval_loss"], "accuracy": row["eval_accuracy"]} for row in evaluated
    ]
    sums = {name: sum(row[name] for row in steps) for name in METRICS if name.startswith("seconds_")}
    by_weight = {name: sum(row[name] for row in steps) for name in (rows[0] if rows else ()) if " " in name}
    return {
        "steps": len(steps),
        "evaluations": evaluations,
        "train_loss": steps[-1]["loss"] if steps else None,
        "mean_cosine": sum(cosines) / len(cosines) if cosines else None,
        "coverage": steps[-1]["coverage"] if steps else None,
        "circuits": int(sum(row["circuits"] for row in steps)),
        "shots": int(sum(row["shots"] for row in steps)),
        **sums,
        **by_weight,
        "seconds_per_step": sum(sums.values()) / len(steps) if steps else None,
    }


# --- Resuming


class CannotResume(ValueError):
    """A run cannot go on from what its folder holds."""


def identity(settings):
    """Text of the settings that affect the result or when it is evaluated: runs of the same text record the same."""
    affecting = config.settings_that_affect_result(settings._asdict()) | {"eval_every": settings.eval_every}
    return json.dumps(affecting, sort_keys=True)


def stored_settings(folder):
    """The Settings that a run folder holds; ValueError where they cannot be read, or are of another layout."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if stored_status(folder) == "finished":  # one that is to go on must be of this layout
            values = LATER_SETTINGS | values
        return config.Settings(**{name: config.checked(name.upper(), value) for name, value in values.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: config.json cannot be read, or is of another layout: {error}") from None


def stored_status(folder):
    """The status that a run folder holds, "" where it cannot be read."""
    try:
        return json.loads((folder / "training_statistics.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def is_resumable(folder):
    """Whether a run folder holds a checkpoint of a run that has neither finished nor diverged."""
    return stored_status(folder) not in ("finished", "diverged") and any(folder.glob("checkpoint/step_*"))


def find_finished_and_resumable(results_dir):
    """(finished, resumable): identities of the finished runs of a folder, a set, and a dict of identity -> folder of
    the runs that can go on. What cannot be read, or has another layout, is neither; nor is a diverged run."""
    finished, resumable = set(), {}
    for folder in sorted(results_dir.glob("run_*")):
        try:
            status, key = stored_status(folder), identity(stored_settings(folder))
        except (ValueError, KeyError, TypeError):
            continue
        if status == "finished":
            finished.add(key)
        elif is_resumable(folder):
            resumable[key] = folder
    return finished, resumable


def find_run_to_resume(command):
    """(folder, settings) of the run that `--resume` names, by its folder or as "latest", the latest unfinished one.

    command: config.Command. Its flags may change only what no result depends on. Raises ValueError.
    """
    results_dir = Path(os.path.expanduser(command.runs[0].results_dir))
    latest = command.resume == "latest"
    folder = most_recent(results_dir, unfinished=True) if latest else Path(os.path.expanduser(command.resume))
    if not folder.is_dir():
        raise ValueError(f"--resume {folder}: no such run folder")
    try:
        settings = stored_settings(folder)
    except ValueError as error:
        raise ValueError(f"--resume {error}") from None
    if stored_status(folder) == "diverged":
        raise ValueError(f"--resume {folder}: has diverged, and would again; begin anew, with a lower learning rate")
    if stored_status(folder) == "finished":
        raise ValueError(f"--resume {folder}: has finished; a longer run must be begun anew, with more NUM_EPOCHS")
    if not is_resumable(folder):
        raise ValueError(f"--resume {folder}: holds no checkpoint")
    if len(command.runs) > 1:
        raise ValueError(f"--resume {folder}: these settings describe a study of {len(command.runs)} runs, must be one")
    for name in sorted(command.given - {"results_dir"}):
        own, flag = getattr(settings, name), getattr(command.runs[0], name)
        if own != flag and name in config.settings_that_affect_result(settings._asdict()):
            raise ValueError(f"--resume {folder}: {name.upper()} = {flag!r} must be the run's own {own!r}")
        settings = settings._replace(**{name: flag})
    config.check_together(settings, command.given)
    return folder, settings


def resumed_environment(folder, now):
    """environment.json of a run that goes on: as it began, with what is different now appended to `resumed`.

    Raises CannotResume where it cannot be read, or data or initial weights are not what the run began with.
    """
    try:
        before = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        known = {"data": before["data"]["sha256_of_examples"], "model": before["initial_weights_sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotResume(f"--resume {folder}: environment.json cannot be read: {error}") from None
    current = {"data": now["data"]["sha256_of_examples"], "model": now["initial_weights_sha256"]}
    for name, value in known.items():
        if value != current[name]:
            raise CannotResume(f"--resume {folder}: the {name} is not what the run began with")
    changed = {key: value for key, value in now.items() if before.get(key) != value}
    return before | {"resumed": [*before.get("resumed", []), changed]}


def require_rows(folder, offsets):
    """Raise CannotResume where a csv file is shorter than it was at the checkpoint. offsets: bytes by file name."""
    for name, offset in offsets.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size < offset:
            raise CannotResume(f"--resume {folder}: {name} lacks rows that were there at the checkpoint")


def require_settings(folder, trained_with, settings):
    """Raise CannotResume where the settings are not those that the checkpoint was trained with, a dict by name of those
    that the result depends on."""
    for name, before in trained_with.items():
        if (value := getattr(settings, name, None)) != before:
            raise CannotResume(
                f"--resume {folder}: {name.upper()} = {value!r}: the checkpoint was trained with {before!r}"
            )
