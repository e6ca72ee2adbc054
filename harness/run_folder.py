"""The run folder, the one contract between train.py and analyze.py: its making, writing, reading and going on with."""

import contextlib
import csv
import json
import os
import re
import time
from pathlib import Path

import config

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

METRICS = [
    *("step", "epoch", "loss", "accuracy", "learning_rate"),
    *("cosine", "gradient_norm", "update_norm", "coverage", "circuits", "shots"),
    *("seconds_forward", "seconds_backward", "seconds_quantum", "seconds_other"),
    *("eval_loss", "eval_accuracy"),
]


# --- Writing


def create(results_dir):
    """A new folder run_YYYYmmdd_HHMMSS, with _1, _2, ... appended where that second is taken.

    Where the clock has been set back it gets the second of the last run: the last by name is the last begun.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    second, number = time.strftime("%Y%m%d_%H%M%S"), 0
    last_second, last_number, _ = max(by_name(results_dir, "config.json"), default=("", 0, None))
    if last_second >= second:
        second, number = last_second, last_number + 1
    while True:
        folder = results_dir / f"run_{second}{f'_{number}' if number else ''}"
        try:
            folder.mkdir()  # fails where another process was faster
            return folder
        except FileExistsError:
            number += 1


class CannotGoOn(ValueError):
    """What a run holds does not let it go on."""


@contextlib.contextmanager
def alone(folder):
    """Hold a run folder for this process, as long as it lives; ValueError where another one trains in it."""
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


def write_json(path, content):
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    config.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_row(metrics, file, row):
    """A row of metrics.csv, on its way to the disk before the next step begins."""
    metrics.writerow({name: f"{value:.9g}" if isinstance(value, float) else value for name, value in row.items()})
    try:
        file.flush()
    except OSError as error:  # a full disk does not say which file
        raise OSError(error.errno, error.strerror, file.name) from None


@contextlib.contextmanager
def open_metrics(path, measured, position):
    """(writer, file) of a metrics.csv from byte `position` on; what a killed run wrote after that is cut off."""
    if position and path != Path(os.devnull):
        os.truncate(path, position)
    with open(path, "a" if position else "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, METRICS + [seconds_of(name) for name in measured])
        if not position:
            writer.writeheader()
        yield writer, file


def seconds_of(name):
    """The column of metrics.csv for the seconds that the circuits of one weight took."""
    return f"seconds_quantum {name}"


# --- Reading


def by_name(results_dir, holding):
    """[(second, number in it, folder)] of the run folders that hold something of the name `holding` ("" for all)."""
    found = []
    for folder in results_dir.glob("run_*"):
        name = re.fullmatch(r"run_(\d{8}_\d{6})(?:_(\d+))?", folder.name, re.ASCII)
        if name and folder.is_dir() and (folder / holding).exists():
            found.append((name[1], int(name[2] or 0), folder))
    return found


def most_recent(results_dir, holding=""):
    """The latest run folder by name, and number within its second, that holds something of the name `holding`.

    ValueError where there is none.
    """
    found = by_name(results_dir, holding)
    if not found:
        what = f"run folder with {holding}/" if holding else "run folder"
        raise ValueError(f"RESULTS_DIR = {str(results_dir)!r}: holds no {what}, `python train.py` makes one")
    return max(found)[-1]


def read(folder):
    """A run as a dict: folder, settings, environment, statistics, rows of metrics.csv. A broken one is a ValueError."""
    run = {"folder": folder}
    if not folder.is_dir():
        raise ValueError("no such run folder")
    needed = {
        "config": set(config.Settings._fields),
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
    run["rows"] = read_metrics(folder / "metrics.csv")
    if run["statistics"]["status"] == "running":  # or killed, before it could sum up
        try:
            run["statistics"] |= summarise(run["rows"])
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"metrics.csv cannot be read: {error}") from None
    if lacking := {"steps", "evaluations"} - run["statistics"].keys():
        raise ValueError(f"training_statistics.json lacks {', '.join(sorted(lacking))}: of an older layout")
    return run


def read_metrics(path):
    """Rows of a metrics.csv as dicts of float, None for empty cells; a half-written last row is left out."""
    try:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        rows = [row for row in csv.DictReader(whole.splitlines()) if None not in row.values()]
        if rows and set(METRICS) - rows[0].keys():
            raise ValueError("its columns are not those of a run")
        return [{name: float(value) if value else None for name, value in row.items()} for row in rows]
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def summarise(rows):
    """What training_statistics.json says beside the status, from the rows of metrics.csv: counts, sums, evaluations."""
    steps = [row for row in rows if row["loss"] is not None]
    cosines = [row["cosine"] for row in steps if row["cosine"] is not None]
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


# --- Going on


def identity(settings):
    """Text that two runs share if and only if they compute the same."""
    return json.dumps(config.counting(settings._asdict()), sort_keys=True)


def stored_settings(folder):
    """The settings that a run folder holds; ValueError where they cannot be read, or are of another layout."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: config.json cannot be read, or is of another layout: {error}") from None


def kept(results_dir):
    """(finished, unfinished): the identities of the runs of a folder that finished, a set, and those of the others that
    can go on, a dict of identity -> folder. What cannot be read, or is of an older layout, is neither."""
    finished, unfinished = set(), {}
    for folder in sorted(results_dir.glob("run_*")):
        try:
            statistics = json.loads((folder / "training_statistics.json").read_text(encoding="utf-8"))
            environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            status, key = statistics["status"], identity(stored_settings(folder))
            if "extended_from_epochs" in environment:
                continue  # its learning rates are not those of a run planned that long
        except (ValueError, OSError, TypeError, KeyError):
            continue
        if status == "finished":
            finished.add(key)
        elif status in ("running", "interrupted", "failed") and any(folder.glob("checkpoint/step_*")):
            unfinished[key] = folder
    return finished, unfinished


def resumed(named, runs, given):
    """(folder, settings) of the run to go on with: named by its folder, or "latest". Its settings are its own.

    Flags (given: their names; runs: the settings with them) may raise NUM_EPOCHS and change what no result depends on.
    """
    folder = Path(os.path.expanduser(runs[0].results_dir if named == "latest" else named))
    folder = most_recent(folder, "checkpoint") if named == "latest" else folder
    try:
        settings = stored_settings(folder)
    except ValueError as error:
        raise ValueError(f"--resume {error}") from None
    if not any(folder.glob("checkpoint/step_*")):
        raise ValueError(f"--resume {folder}: holds no checkpoint")
    if len(runs) > 1:
        raise ValueError(f"--resume {folder}: these settings describe a study of {len(runs)} runs: allowed is one")
    for name in sorted(given - {"results_dir"}):
        ours, theirs = getattr(settings, name), getattr(runs[0], name)
        raised = name == "num_epochs" and theirs > ours
        if ours != theirs and name in config.counting(settings._asdict()) and not raised:
            raise ValueError(f"--resume {folder}: {name.upper()} = {theirs!r} is not the run's own {ours!r}")
        settings = settings._replace(**{name: theirs})
    return folder, settings


def continued_environment(folder, now, settings):
    """environment.json of a run that goes on: as it began, with what is different now appended to `resumed`."""
    try:
        before = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        known = before["data"]["sha256_of_examples"], before["initial_weights_sha256"]
        epochs = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_epochs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--resume {folder}: environment.json cannot be read: {error}") from None
    for name, ours, theirs in (
        ("data", known[0], now["data"]["sha256_of_examples"]),
        ("model", known[1], now["initial_weights_sha256"]),
    ):
        if ours != theirs:
            raise ValueError(f"--resume {folder}: the {name} is not what the run began with")
    if settings.num_epochs != epochs:  # its learning rates are not those of a run planned that long
        before.setdefault("extended_from_epochs", epochs)
    changed = {key: value for key, value in now.items() if before.get(key) != value}
    return before | {"resumed": [*before.get("resumed", []), changed]}
