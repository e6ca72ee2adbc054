"""Run many trainings side by side, each as `python train.py` with one thread, and keep what they measured."""

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import config  # noqa: E402
from harness import run_folder  # noqa: E402
from harness.files import write_atomically, write_json, write_text  # noqa: E402
from report import statistics, study  # noqa: E402

KEPT = ("config.json", "environment.json", "metrics.csv", "predictions.csv", "training_statistics.json")


def flags_of(settings):
    """The command line of a dict of settings, a list of str: {"shots": 10} is ["--shots", "10"]."""
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def identity_of(run, names):
    """What run_folder.identity says of a dict of settings; names: see `publish`, whose runs have no paths."""
    return identity_without_paths(config.load(flags_of(run)), names)


def identity_without_paths(settings, names):
    """What run_folder.identity says of Settings once they are published, see `publish`."""
    return run_folder.identity(config.Settings(**without_paths(settings._asdict(), names)))


def run_all(runs, results_dir, lanes, reference, names, others=(), program=ROOT / "train.py"):
    """Make the runs, dicts of settings, in their order, `lanes` at a time; exits at the end where some failed.

    What was published in `reference` is skipped, what was published in one of the folders `others` is copied from
    there, what was interrupted in results_dir goes on. Every run is published as it finishes. Models are not kept.
    names: see `publish`. program: train.py, or a script with its flags.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    publish(results_dir, reference, names)
    wanted = {identity_of(run, names): run for run in runs}
    published, _ = run_folder.find_finished_and_resumable(reference)
    for run in [run for other in others for run in sorted(other.glob("run_*"))]:
        key = published_identity(run)
        if key in wanted and key not in published:
            write_atomically(free_place(reference, run.name), lambda folder, run=run: shutil.copytree(run, folder))
            published.add(key)
    _, resumable = run_folder.find_finished_and_resumable(results_dir)
    todo = [(identity_of(run, {}), run) for key, run in wanted.items() if key not in published]

    def make(job):
        key, run = job
        whole = [*flags_of(run), "--results_dir", str(results_dir)]
        goes_on = [["--resume", str(resumable[key])]] if key in resumable else []
        for flags in [*goes_on, whole]:
            command = [sys.executable, str(program), *flags]
            done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            if done.returncode:
                tqdm.write(f"{' '.join(flags)}: exit status {done.returncode}: {done.stderr.strip()[-300:]}")
            if done.returncode != 2:  # 2: refused, such as a run that cannot go on, which is then begun anew
                break
        bar.update()
        return done.returncode

    failed = 0
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(todo), unit="run", dynamic_ncols=True)
    with bar, ThreadPoolExecutor(lanes) as pool:
        for status in pool.map(make, todo):
            failed += status != 0
            publish(results_dir, reference, names)
    if failed:
        raise SystemExit(f"{failed} of {len(wanted)} runs failed; the same command makes what is missing")


def published_identity(run):
    """What run_folder.identity says of a finished run's folder; "" of any other."""
    finished = run_folder.stored_status(run) == "finished"
    return run_folder.identity(run_folder.stored_settings(run)) if finished else ""


def publish(results_dir, reference, names):
    """Copy the finished runs of results_dir to `reference`, without paths and command lines, and drop their models.

    names: dict of path -> name that takes its place. Of predictions.csv the last evaluation is kept.
    """
    reference.mkdir(parents=True, exist_ok=True)
    published, _ = run_folder.find_finished_and_resumable(reference)
    for run in sorted(results_dir.glob("run_*")):
        if run_folder.stored_status(run) != "finished":
            continue
        key = identity_without_paths(run_folder.stored_settings(run), names)
        if key not in published:
            shutil.rmtree(run / "model", ignore_errors=True)
            place = free_place(reference, run.name)
            write_atomically(place, lambda folder, run=run: copy_without_paths(run, folder, names))
            published.add(key)


def free_place(folder, name):
    """folder/name, or with _1, _2, ... appended where a run of another folder began in the same second."""
    second = re.match(r"run_\d+_\d+", name)[0]
    found = itertools.chain([folder / name], run_folder.places(folder, second))
    return next(place for place in found if not place.exists())


def copy_without_paths(run, folder, names):
    """Make `folder` the published copy of a run, see `publish`."""
    folder.mkdir()
    for name in KEPT:
        if name.endswith(".json"):
            content = json.loads((run / name).read_text(encoding="utf-8"))
            write_json(folder / name, without_paths(content, names))
        elif name == "predictions.csv":
            header, *rows = (run / name).read_text(encoding="utf-8").splitlines()
            last = rows[-1].partition(",")[0] + ","
            kept = [header, *(row for row in rows if row.startswith(last))]
            write_text(folder / name, "\n".join(kept) + "\n")
        else:
            shutil.copy(run / name, folder / name)


def without_paths(content, names):
    """JSON content with every path of `names` replaced, argv and the results folder taken out."""
    for part in (content, *content.get("resumed", [])):
        part.pop("argv", None)
    text = json.dumps(content)
    for path, name in names.items():
        text = text.replace(json.dumps(str(path))[1:-1], name)
    content = json.loads(text)
    if "results_dir" in content:
        content["results_dir"] = "results"
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def tune(arms, setting, values, common, seeds, results_dir, lanes, reference, names):
    """Run every arm with every value of a setting on the tuning seeds, and choose: (table, chosen).

    arms, common: settings, dicts. table: rows of arm, setting, value, mean accuracy, and the accuracies by seed.
    chosen: for every arm, the value of the highest mean accuracy. Exits where runs are missing. Runs are published in
    `reference`, see run_all.
    """
    grid = [(arm, value) for arm in arms for value in values]
    runs = [common | arm | {setting: value, "seed": seed} for seed in seeds for arm, value in grid]
    run_all(runs, results_dir, lanes, reference, names)
    accuracy, table = final_accuracies(reference), []
    for arm, value in grid:
        found = [accuracy.get(identity_of(common | arm | {setting: value, "seed": seed}, names)) for seed in seeds]
        if None in found:
            raise SystemExit(f"{arm}, {setting} {value}: {found.count(None)} tuning runs are missing")
        table.append(arm | {setting: value, "accuracy": sum(found) / len(found), "by_seed": found})
    best = [max((row for row in table if arm.items() <= row.items()), key=lambda row: row["accuracy"]) for arm in arms]
    return table, [row[setting] for row in best]


def choose_rates(classical, frozen, measured, rates, quantum_rates, common, seeds, work, lanes, reference, names):
    """(settings of classical, of frozen, of measured): the learning rates of the highest mean accuracy, dicts.

    LEARNING_RATE for classical and frozen from `rates`, then QUANTUM_LEARNING_RATE for `measured`, an arm with SGD,
    whose other weights take the rate of frozen. Made once: reference/tuning.json holds the grid and what was chosen.
    """
    tuned = reference / "tuning.json"
    if not tuned.exists():
        where = seeds, work / "tuning", lanes, reference / "tuning", names
        grid, (adamw, head) = tune([classical, frozen], "learning_rate", rates, common, *where)
        common = common | {"learning_rate": head}
        more, (sgd,) = tune([measured], "quantum_learning_rate", quantum_rates, common, *where)
        chosen = [{"learning_rate": adamw}, {"learning_rate": head}]
        chosen.append({"learning_rate": head, "quantum_learning_rate": sgd})
        write_json(tuned, {"chosen": chosen, "grid": grid + more})
    return read_chosen(tuned)


def read_chosen(tuned):
    """What was chosen in a tuning.json, a list; exits where there is none, as its experiment has to run first."""
    if not tuned.exists():
        raise SystemExit(f"{tuned} is missing: run experiments/{tuned.parent.name}.py first")
    return json.loads(tuned.read_text(encoding="utf-8"))["chosen"]


def final_accuracies(reference):
    """The final accuracy of every finished run of a folder, a dict by the identity of its settings."""
    accuracy = {}
    for run in reference.glob("run_*"):
        if key := published_identity(run):
            measured = json.loads((run / "training_statistics.json").read_text(encoding="utf-8"))
            accuracy[key] = measured["evaluations"][-1]["accuracy"]
    return accuracy


def judge(rows, margin):
    """Add to rows of paired differences what statistics.paired and report.study.judge say of them.

    rows: dicts with `differences` and `examples`, the number of those evaluated; the first is the primary comparison,
    the others are one family. margin: within which two arms are equivalent.
    """
    for row in rows:
        tests = statistics.paired(row["differences"], margin, 1 / row["examples"])
        row |= {"margin": margin, "discordant": None, **tests}
    for family in (rows[:1], rows[1:]):
        study.judge(family)


def on_data(settings, given, data, name):
    """(settings of runs with the model of the command line on a folder of data, names for `publish`): two dicts.

    given: see `arguments`. name: of the data.
    """
    model = given.model.resolve()
    return settings | {"model_name": model, "dataset_name": data}, {model: "all-MiniLM-L6-v2", data: name}


def ask(reference, question):
    """Write question.json, see report.study.read_question, before the runs that answer it."""
    reference.mkdir(parents=True, exist_ok=True)
    write_json(reference / "question.json", question)


def arguments(description):
    """The command line of an experiment: model, sst2 and lanes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--sst2", required=True, type=Path, help="folder of GLUE's train.tsv and dev.tsv")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, one thread each")
    return parser.parse_args()
