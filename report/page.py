"""The report of a study: its content, and report.html and report.md rendered from it.

The templates stand beside this file. A table is (title, header, rows): texts and numbers, as they are shown.
"""

import base64
import json
from pathlib import Path

import jinja2
import numpy as np

from harness import run_folder
from harness.files import write_text
from report.figures import study_caption
from report.statistics import SMALLEST_N, spread
from report.study import compared, final
from report.words import clipped, headroom_in_words, p_in_words

JUDGED = (
    "Intervals are Student's, over seeds: they say nothing about other sentences than those evaluated. The verdict is"
    " that of Student's paired test and of two one-sided tests against the margin (at 5% each: the 90% interval lies "
    "within it); the sign-flip test, which assumes that differences are symmetric rather than normal, stands beside "
    "it. {family} With fewer than"
    " {least} seeds a sign-flip test cannot reach p < 0.05: such comparisons are no part of the Holm family, their p "
    "are corrected by Bonferroni for all secondary comparisons. One seed is judged by exact McNemar on its predictions."
    " Corrected intervals hold together with 95% (Bonferroni); Holm's tests can find what they do not. A planned number"
    " of seeds aims at a power of 80%."
)

MOST_UNSAID = 3  # sentences that say no more than that seeds are too few


def report_content(study, figures):
    """What the report says of one study, a dict: title, caption, sentences (head), others (sentences), note, results
    and records (tables), figures. study: as study.read_study returns it. figures: list of (path, caption).

    Comparisons of few seeds that are undecided stand in the table alone where they are many.
    """
    question, runs, rows = study["question"], study["runs"], study["comparisons"]
    head = [f"Expected before the runs: {question['prediction']}"] if "prediction" in question else []
    head += [f"Primary comparison: {row['conclusion']}" for row in rows if row["part"] == "primary"]
    head += headroom_in_words(study["headroom"])
    secondary = [row for row in rows if row["part"] != "primary"]
    others = [row["conclusion"] for row in secondary]
    unsaid = [row["conclusion"] for row in secondary if row["verdict"] == "undecided" and row["n"] < SMALLEST_N]
    if len(unsaid) > MOST_UNSAID:
        others = [sentence for sentence in others if sentence not in unsaid]
        others.append(f"{len(unsaid)} comparisons of fewer than {SMALLEST_N} seeds are undecided, see the table.")
    missing = study["missing"] if len(study["missing"]) <= MOST_UNSAID else [f"{len(study['missing'])} comparisons"]
    others += [f"{text}: no runs to compare yet." for text in missing]
    family = [f"{row['arm']} against {row['base']}" for row in rows if row["family"] == "secondary"]
    size = max((row["family_size"] for row in rows if row["family"] == "secondary"), default=0)
    number_of = f"{len(family)} of {size} comparisons (the others have fewer seeds or no runs yet, and count as p = 1)"
    number_of = number_of if size > len(family) else f"{size} comparisons"
    named = f"The Holm family, {number_of}: {'; '.join(family)}." if family else "No Holm family."
    results = [accuracy_table(study["arms"]), comparison_table(rows), recovered_table(study["recovered"])]
    if not rows:
        others.append("No two arms of the study differ in one respect and share a seed: nothing to compare.")
    return {
        "title": question.get("question") or f"{compared(study['arms'])}: compared seed by seed",
        "caption": study_caption(runs),
        "sentences": head,
        "others": others,
        "note": JUDGED.format(family=named, least=SMALLEST_N) if rows else "",
        "results": [table for table in results if table[2]],
        "figures": figures,
        "records": [settings_table(runs), seconds_table(study["arms"]), versions_table(runs), runs_table(runs)],
    }


def accuracy_table(arms):
    """The final accuracy and loss of each arm."""
    rows = []
    for label, arm in arms.items():
        mean, deviation, interval = spread([final(run, "accuracy") for run in arm.values()])
        loss, loss_deviation, _ = spread([final(run, "loss") for run in arm.values()])
        cells = [label, len(arm), f"{mean:.4f}", number(deviation, ".4f"), bounds(clipped(interval, 0, 1), ".4f")]
        rows.append([*cells, f"{loss:.4f}", number(loss_deviation, ".4f")])
    return "Final accuracy and loss", ["arm", "n", "accuracy", "sd", "95% interval", "loss", "sd"], rows


def comparison_table(comparisons):
    """The paired differences of final accuracy, points, and the tests of them."""
    rows = []
    for row in comparisons:
        interval = row["interval"] and [100 * end for end in clipped(row["interval"])]
        cells = [
            row["family"],
            row["arm"],
            row["base"],
            row["n"],
            f"{100 * row['mean']:+.2f}",
            bounds(interval, "+.2f"),
        ]
        tests = [p_in_table(row[f"{name}_adjusted"]) for name in ("p", "p_flip", "p_equal")]
        shown = "> 100" if (row["smallest_effect"] or 0) > 1 else number(row["smallest_effect"], ".2%").rstrip("%")
        rows.append([*cells, *tests, shown, row["seeds"] or "-", row["verdict"]])
    header = ["family", "arm", "minus", "n", "difference", "95% interval", "p", "p (sign flips)", "p (not equivalent)"]
    return "Paired differences of accuracy, points", [*header, "could show", "n to decide", "verdict"], rows


def recovered_table(recovered):
    """The part of the headroom that each arm recovers."""
    rows = []
    for row in recovered:
        bases = f"{row['classical']}; {row['frozen']}"
        cell = bounds(row["interval"], ".2f") if row["interval"] else "no bounds"
        rows.append([row["arm"], bases, row["n"], number(row["fraction"], ".2f"), cell])
    header = ["arm", "between", "n", "fraction", "95% interval (Fieller)"]
    return "Recovered fraction of the headroom, (rule - frozen) / (classical - frozen)", header, rows


def settings_table(runs):
    """The settings that are the same in all runs; sample sentences and results folder are left out."""
    rows = []
    for name, value in runs[0]["settings"].items():
        if name not in ("results_dir", "sample_sentences") and all(run["settings"].get(name) == value for run in runs):
            rows.append([name, json.dumps(value)])
    return "Settings all runs share", ["setting", "value"], rows


def seconds_table(arms):
    """The mean seconds per step of each arm by stage, and its circuits per step."""
    rows = []
    for label, arm in arms.items():
        found = [run["statistics"] for run in arm.values()]
        seconds = [np.mean([s[f"seconds_{stage}"] / s["steps"] for s in found]) for stage in run_folder.STAGES]
        circuits = np.mean([s["circuits"] / s["steps"] for s in found])
        rows.append([label, *(f"{value:.3f}" for value in [*seconds, sum(seconds)]), f"{circuits:,.0f}"])
    header = ["arm", *run_folder.STAGES, "together", "circuits per step"]
    return "Seconds per step, whatever else the machine did meanwhile", header, rows


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
        seconds = sum(run["statistics"][f"seconds_{stage}"] for stage in run_folder.STAGES)
        name = run["folder"].name
        rows.append([name, settings["update_rule"], settings["seed"], commit, weights, f"{seconds:.1f}"])
    return "Runs", ["run", "rule", "seed", "commit", "initial weights", "seconds"], rows


def number(value, form):
    """A number as text; "-" for None."""
    return "-" if value is None else format(value, form)


def p_in_table(p):
    """A p-value as a table has it; "-" for None."""
    return "-" if p is None else p_in_words(p).removeprefix("p ").removeprefix("= ")


def bounds(interval, form):
    """An interval as text, "low to high"; "-" for None."""
    return "-" if interval is None else " to ".join(format(end, form) for end in interval)


def write_report(out, contents):
    """Write report.html, self-contained, and report.md, which shows the figures beside it, and return their paths.

    out: a folder. contents: list of (heading, content), a section each, as study.headings and report_content return
    them; a single one needs no heading. Everything in the HTML is escaped.
    """
    sections = [{"heading": heading, **content} for heading, content in contents]
    title = sections[0]["title"] if len(sections) == 1 else f"Runs of {len(sections)} tasks, each compared by itself"
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    templates.filters["beside"] = lambda path: path.relative_to(out).as_posix()
    paths = []
    for name in ("report.html", "report.md"):
        paths.append(out / name)
        text = templates.get_template(f"{name}.jinja").render(title=title, sections=sections)
        write_text(paths[-1], text.rstrip() + "\n")
    return paths
