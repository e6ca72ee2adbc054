"""The report of a study: its content, and report.html and report.md rendered from it.

The templates stand beside this file. A table is (title, header, rows): texts and numbers, as they are shown.
"""

import base64
import json
from pathlib import Path

import jinja2

from harness.files import write_text
from report.figures import study_caption
from report.statistics import spread
from report.study import evaluation_half_width, final, seconds


def report_content(runs, arms, comparisons, sentences, figures):
    """What the report says, a dict: title, caption, sentences, note, results and records (tables), figures.

    Arms and comparisons: as in report/study.py. sentences: the conclusion. figures: list of (path, caption).
    """
    examples = runs[0]["environment"]["data"]["evaluation_examples"]
    return {
        "title": "Does the quantum part help?",
        "caption": study_caption(runs),
        "sentences": sentences,
        "note": f"Evaluated on {examples} sentences, whose own 95% half-width is "
        f"{100 * evaluation_half_width(runs[0]):.1f} points: a single "
        "accuracy is known no better than that. Intervals of means are Student's, of paired differences percentile "
        "bootstraps; p-values are sign-flip permutation tests, corrected by Holm over all comparisons here.",
        "results": [accuracy_table(arms), comparison_table(comparisons)],
        "figures": figures,
        "records": [settings_table(runs), versions_table(runs), runs_table(runs)],
    }


def accuracy_table(arms):
    """The final accuracy and loss of each arm, and the time a run took, seconds."""
    rows = []
    for label, arm in arms.items():
        mean, deviation, interval = spread([final(run, "accuracy") for run in arm.values()])
        loss, loss_deviation, _ = spread([final(run, "loss") for run in arm.values()])
        interval = interval and [min(max(end, 0.0), 1.0) for end in interval]  # Student's knows no bounds
        cells = [label, len(arm), f"{mean:.4f}", number(deviation, ".4f"), bounds(interval, ".4f")]
        cells += [f"{loss:.4f}", number(loss_deviation, ".4f")]
        rows.append([*cells, f"{spread([seconds(run) for run in arm.values()])[0]:.1f}"])
    header = ["arm", "n", "accuracy", "sd", "95% interval", "loss", "sd", "seconds"]
    return "Final accuracy, loss and time", header, rows


def comparison_table(comparisons):
    """The paired differences of final accuracy, points."""
    rows = []
    for row in comparisons:
        cells = [row["arm"], row["base"], row["n"], f"{100 * row['mean']:+.2f}"]
        cells.append(bounds(row["interval"] and [100 * end for end in row["interval"]], "+.2f"))
        small = "yes" if abs(row["mean"]) < row["half_width"] else "no"
        rows.append([*cells, number(row["p"], ".3f"), number(row["p_holm"], ".3f"), small])
    header = ["arm", "minus", "n", "difference", "95% interval", "p", "p (Holm)", "below half-width"]
    return "Paired differences of accuracy, points", header, rows


def settings_table(runs):
    """The settings that are the same in all runs; sample sentences and results folder are left out."""
    rows = []
    for name, value in runs[0]["settings"].items():
        if name not in ("results_dir", "sample_sentences") and all(run["settings"][name] == value for run in runs):
            rows.append([name, json.dumps(value)])
    return "Settings all runs share", ["setting", "value"], rows


def versions_table(runs):
    """The versions of packages in the first run."""
    return "Versions", ["package", "version"], sorted(runs[0]["environment"].get("packages", {}).items())


def runs_table(runs):
    """The commit (+: with changes), the initial weights (SHA-256, shortened) and the time of each run."""
    rows = []
    for run in runs:
        environment, settings = run["environment"], run["settings"]
        commit = (environment.get("git_commit") or "-")[:10] + ("+" if environment.get("git_dirty") else "")
        weights = environment.get("initial_weights_sha256", "-")[:10]
        name = run["folder"].name
        rows.append([name, settings["update_rule"], settings["seed"], commit, weights, f"{seconds(run):.1f}"])
    return "Runs", ["run", "rule", "seed", "commit", "initial weights", "seconds"], rows


def number(value, form):
    """A number as text; "-" for None."""
    return "-" if value is None else format(value, form)


def bounds(interval, form):
    """An interval as text, "low to high"; "-" for None."""
    return "-" if interval is None else " to ".join(format(end, form) for end in interval)


def write_report(out, content):
    """Write report.html, self-contained, and report.md, which shows the figures beside it, and return their paths.

    out: a folder. content: as report_content returns it. Everything in the HTML is escaped.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    paths = []
    for name in ("report.html", "report.md"):
        paths.append(out / name)
        write_text(paths[-1], templates.get_template(f"{name}.jinja").render(content).rstrip() + "\n")
    return paths
