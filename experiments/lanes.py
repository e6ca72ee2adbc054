"""Run many trainings side by side, each as `python train.py` with one thread, and keep what they measured."""

import json
import os
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
from harness.files import write_json, write_text  # noqa: E402

KEPT = ("config.json", "environment.json", "metrics.csv", "predictions.csv", "training_statistics.json")


def flags_of(settings):
    """The command line of a dict of settings, a list of str: {"shots": 10} is ["--shots", "10"]."""
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def run_all(runs, results_dir, lanes):
    """Make the runs, dicts of settings, in their order, `lanes` at a time; what is finished in results_dir is skipped
    and what was interrupted goes on. Models are not kept. Returns the number of runs that failed."""
    finished, resumable = run_folder.find_finished_and_resumable(results_dir)
    todo = {run_folder.identity(config.load(flags_of(run))): run for run in runs}
    missing = [(key, run) for key, run in todo.items() if key not in finished]
    results_dir.mkdir(parents=True, exist_ok=True)

    def make(job):
        key, run = job
        flags = [*flags_of(run), "--results_dir", str(results_dir)]
        if key in resumable:
            flags = ["--resume", str(resumable[key])]
        command = [sys.executable, str(ROOT / "train.py"), *flags]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            tqdm.write(f"{' '.join(flags)}: exit status {done.returncode}: {done.stderr.strip()[-300:]}")
        for model in results_dir.glob("run_*/model"):
            if run_folder.stored_status(model.parent) == "finished":
                shutil.rmtree(model, ignore_errors=True)
        bar.update()
        return done.returncode

    bar = tqdm(total=len(todo), initial=len(todo) - len(missing), unit="run", dynamic_ncols=True)
    with bar, ThreadPoolExecutor(lanes) as pool:
        return sum(status != 0 for status in pool.map(make, missing))


def publish(results_dir, reference, names):
    """Copy the finished runs of results_dir to `reference`, without models, paths and command lines.

    names: dict of path -> name that takes its place. Of predictions.csv the last evaluation is kept.
    """
    for run in sorted(results_dir.glob("run_*")):
        if run_folder.stored_status(run) != "finished" or (reference / run.name).exists():
            continue
        (reference / run.name).mkdir(parents=True)
        for name in KEPT:
            if name.endswith(".json"):
                content = json.loads((run / name).read_text(encoding="utf-8"))
                write_json(reference / run.name / name, without_paths(content, names))
            elif name == "predictions.csv":
                header, *rows = (run / name).read_text(encoding="utf-8").splitlines()
                last = rows[-1].partition(",")[0] + ","
                kept = [header, *(row for row in rows if row.startswith(last))]
                write_text(reference / run.name / name, "\n".join(kept) + "\n")
            else:
                shutil.copy(run / name, reference / run.name / name)


def without_paths(content, names):
    """JSON content with every path of `names` replaced, argv and the results folder taken out."""
    text = json.dumps({key: value for key, value in content.items() if key != "argv"})
    for path, name in names.items():
        text = text.replace(json.dumps(str(path))[1:-1], name)
    content = json.loads(text)
    if "results_dir" in content:
        content["results_dir"] = "results"
    return content


def final_accuracy(results_dir):
    """{(identity of settings): final accuracy} of the finished runs of a folder."""
    accuracy = {}
    for run in results_dir.glob("run_*"):
        if run_folder.stored_status(run) == "finished":
            statistics = json.loads((run / "training_statistics.json").read_text(encoding="utf-8"))
            accuracy[run_folder.identity(run_folder.stored_settings(run))] = statistics["evaluations"][-1]["accuracy"]
    return accuracy


def tune(arms, grid, seeds, common, results_dir, lanes):
    """Run every arm with every value of its setting on the tuning seeds, and choose: (table, chosen).

    arms: dict of name -> settings. grid: dict of name -> (setting, values). table: rows of arm, setting, value, mean
    accuracy and accuracies by seed. chosen: dict of name -> {setting: value of the highest mean accuracy}.
    """
    runs = [
        common | arms[name] | {setting: value, "seed": seed}
        for seed in seeds
        for name, (setting, values) in grid.items()
        for value in values
    ]
    run_all(runs, results_dir, lanes)
    accuracy = final_accuracy(results_dir)
    table, chosen = [], {}
    for name, (setting, values) in grid.items():
        means = {}
        for value in values:
            keys = [
                run_folder.identity(config.load(flags_of(common | arms[name] | {setting: value, "seed": seed})))
                for seed in seeds
            ]
            found = [accuracy[key] for key in keys if key in accuracy]
            if len(found) < len(seeds):
                raise SystemExit(f"{name}, {setting} {value}: {len(found)} of {len(seeds)} tuning runs have finished")
            means[value] = sum(found) / len(found)
            row = {"arm": name, "setting": setting, "value": value, "accuracy": means[value], "by_seed": found}
            table.append(row)
        chosen[name] = {setting: max(means, key=means.get)}
    return table, chosen
