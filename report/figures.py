"""Figures: colours, captions, what all figures share, and the curves of one run.

Plot functions take an Axes and return it. train.py uses this module at the end of every run: its imports are few.
"""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from harness.files import write_atomically
from report.labels import in_words
from update_rules import RULES

# Okabe & Ito's colours, distinguishable by the colour-blind; a rule's own colour is in update_rules.RULES.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
BATCH_COLOUR = "#BBBBBB"

IN_TASK = ("model_name", "dataset_name", "dataset_config", "train_size")  # settings that `task` names


def task(run):
    """The model, the data and the number of examples of a run, as text."""
    settings, model, data = run["settings"], run["environment"]["model"], run["environment"]["data"]
    names = [settings["model_name"], f"{settings['dataset_name']} {settings['dataset_config']}".strip()]
    for index, source in enumerate((model, data)):
        if source["kind"] == "local":
            names[index] = Path(source["path"]).name
        elif source["kind"] == "embedded":
            stands_in = f" (in place of {source['stands_in_for']})" if "stands_in_for" in source else ""
            names[index] = ("embedded model", "embedded sentences")[index] + stands_in
    return f"{' on '.join(names)}, {settings['train_size'] or 'all'} examples"


def caption(run):
    """The task of a run and its update rule, with the circuits if the rule measures any, and the optimizer that they
    feed: for every figure of a run."""
    settings = run["settings"]
    rule, details = RULES[settings["update_rule"]], []
    if rule.measures:
        details += [settings["circuit"], f"{settings['num_qubits']} qubits"]
    if rule.draws_shots:
        spent = " on average, optimally allocated" if settings["shot_allocation"] == "optimal" else ""
        details.append(f"{settings['shots']} shots{spent}")
    if rule.stepped_by == "quantum_optimizer":
        details.append(in_words("quantum_optimizer", settings["quantum_optimizer"]))
    return f"{task(run)}, {settings['update_rule']}" + (f" ({', '.join(details)})" if details else "")


def study_caption(runs):
    """The tasks of several runs, each once: for every figure of a study."""
    # By settings, not by text: of the same task some runs may stand in for another, and say so.
    return " | ".join({str([run["settings"][name] for name in IN_TASK]): task(run) for run in runs}.values())


def literal(text):
    """Text for matplotlib in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def one_line(error):
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())


def new_figure(width, height):
    """An empty Figure, inches, made without pyplot: no global state, no window."""
    return Figure(figsize=(width, height), layout="constrained")


def add_title(figure, text):
    """Put a title over the whole figure, wrapped to its width."""
    figure.suptitle(literal(textwrap.fill(text, int(13 * figure.get_figwidth()))), fontsize=9)


def add_legend(figure, ax, columns, note=None):
    """Put the legend of ax below the whole figure, which grows by its rows; over it a note, as add_note does."""
    handles, names = ax.get_legend_handles_labels()
    columns = columns if max(map(len, names), default=0) <= 44 else 1  # two long ones side by side would be cut off
    names = [textwrap.fill(literal(name), int(13 * figure.get_figwidth())) for name in names]
    note = note and textwrap.fill(note, int(15 * figure.get_figwidth()))
    lines = sum(name.count("\n") + 1 for name in names)
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-lines // columns) + 0.15 * (note or "").count("\n"))
    legend = figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=4,  # a marker hides the middle of a line: its style shows beside it
        fontsize=8,
        title=note,
        title_fontsize=8,
    )
    legend.get_title().set_multialignment("center")


def add_note(figure, text):
    """Put what bands and bars mean below the axes of a figure."""
    figure.supxlabel(literal(textwrap.fill(text, int(15 * figure.get_figwidth()))), fontsize=8, color="#444444")


def wrapped(names, width=44):
    """Labels for the ticks of an axis, each in lines of at most that many characters."""
    return [literal(textwrap.fill(name, width)) for name in names]


def save_figure(figure, path):
    """Write a figure as a file, 150 dots per inch, and return the path."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))
    return path


def save_or_explain(save, path, *runs):
    """[path] of the figure that save(path, *runs) writes; [], and a line that says why, if it cannot be made."""
    try:
        return [save(path, *runs)]
    except (ValueError, OSError) as error:
        print(f"  no {path.stem}: {one_line(error)}")
        return []


def save_curves(path, run):
    """Save loss, accuracy and, where it was measured, cosine over the steps of a run as a figure, and return the path.

    Raises ValueError if metrics.csv has no rows.
    """
    if not run["rows"]:
        raise ValueError("metrics.csv has no rows")
    colour, measured = RULES[run["settings"]["update_rule"]].colour, any(r["cosine"] is not None for r in run["rows"])
    figure = new_figure(12 if measured else 9, 3.8)
    axes = figure.subplots(1, 3 if measured else 2)
    for ax, quantity in zip(axes, ("loss", "accuracy"), strict=False):
        plot_curve(ax, run["rows"], quantity, colour)
    if measured:
        plot_cosine(axes[2], run["rows"], colour)
    add_legend(figure, axes[0], 2)
    add_title(figure, caption(run))
    return save_figure(figure, path)


def plot_curve(ax, rows, quantity, colour, name="", batch_colour=BATCH_COLOUR, width=1.5):
    """Plot "loss" or "accuracy" over steps: training batches, thin, and evaluation set, in the colour given.

    rows: of metrics.csv, dicts. name: of the run, for the legend where there are several. width: of the line, points.
    """
    steps = [row for row in rows if row["loss"] is not None]
    evaluated = [row for row in rows if row[f"eval_{quantity}"] is not None]
    batches = [row["step"] for row in steps], [row[quantity] for row in steps]
    prefix = f"{name}, " if name else ""
    ax.plot(*batches, color=batch_colour, lw=0.6 * width, alpha=0.5 if name else 1, label=f"{prefix}training batch")
    points = [row["step"] for row in evaluated], [row[f"eval_{quantity}"] for row in evaluated]
    size = (3 if len(evaluated) < 20 else 1) + 1.5 * width
    ax.plot(*points, color=colour, lw=width, marker="o", ms=size, label=f"{prefix}evaluation set")
    ax.set(xlabel="step", ylabel=quantity)
    if quantity == "accuracy":
        ax.set_ylim(0, 1.02)
    ax.grid(alpha=0.3)
    return ax


def plot_cosine(ax, rows, colour, width=1.2):
    """Plot the cosine of the selected weights' update and gradient over steps. rows: of metrics.csv, dicts."""
    steps = [row for row in rows if row["cosine"] is not None]
    ax.plot([row["step"] for row in steps], [row["cosine"] for row in steps], color=colour, lw=width)
    ax.set(xlabel="step", ylabel="cosine of update and gradient", ylim=(min(0, *ax.get_ylim()), 1.02))
    ax.grid(alpha=0.3)
    return ax
