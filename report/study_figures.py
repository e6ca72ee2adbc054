"""Figures of a study. Plot functions take an Axes and return it. A study: as report/study.py reads it."""

import numpy as np
from matplotlib.colors import to_rgb

from report import circuit_figures, labels
from report.attention import save_attention_of_several
from report.figures import add_legend, add_note, add_title, new_figure, save_figure, study_caption, wrapped
from report.statistics import mean_and_scatter, spread, student_interval
from report.study import compared, final, rule_of, settings_of
from report.words import with_n
from update_rules import RULES

LINE_STYLES = ("-", "--", "-.", ":")
MOST_PANELS, MOST_ROWS = 12, 40  # comparisons shown over training, and at its end
MARGIN_COLOUR = "#DDDDDD"


def save_study_figures(out, study):
    """Save every figure of a study in the folder out, and return a list of (path, caption)."""
    saved, task = [], study_caption(study["runs"])
    for name, figure, text in study_figures(study):
        add_title(figure, text)
        saved.append((save_figure(figure, out / f"{name}.png"), f"{text}. {task}."))
    first = {}
    for run in study["runs"]:
        if (run["folder"] / "model").is_dir():
            first.setdefault(run["settings"]["update_rule"], run)
    for path, run in save_attention_of_several(out, [first[rule] for rule in RULES if rule in first]):
        rule, seed = run["settings"]["update_rule"], run["settings"]["seed"]
        saved.append((path, f"Attention before and after training and their difference, {rule}, seed {seed}."))
    return saved


def study_figures(study):
    """Yield (name, Figure, title) of every figure that the runs of a study have data for, attention maps aside.

    Figures that measure circuits or devices anew are left out, with a line that says why, where that fails.
    """
    runs, arms, rows = study["runs"], study["arms"], study["comparisons"]
    everyone = compared(arms)
    if rows:
        yield (
            "paired_differences",
            forest_figure(rows),
            f"Final accuracy, paired differences on the same seeds: {everyone}",
        )
        yield (
            "differences_over_training",
            differences_figure(arms, rows),
            f"Difference of accuracy over training: {everyone}",
        )
    if bounded := [row for row in study["recovered"] if row["interval"]]:
        names = [with_n(row["arm"], row["n"]) for row in bounded]
        figure = rows_figure(names)
        plot_recovered(figure.subplots(), bounded, names)
        add_note(figure, "Bar: Fieller's 95% interval. Dashed: none of it, and all of it.")
        yield "recovered_fraction", figure, "Part of the headroom recovered, (rule - frozen) / (classical - frozen)"
    alike, seeds = of_shared_seeds(arms)
    for name, column, label, text in (
        ("learning_curves", "eval_accuracy", "accuracy", f"Accuracy on the evaluation set: {everyone}"),
        ("cosine", "cosine", "cosine", f"Cosine of the selected weights' update and gradient: {everyone}"),
    ):
        figure = new_figure(8, 3.6)
        ax = plot_over_steps(figure.subplots(), alike, column, label)
        add_legend(
            figure, ax, 2, f"Lines: means over the n seeds {seeds}. Where lines coincide the first is the widest."
        )
        yield name, figure, text
    for name in swept(arms):
        figure = new_figure(7, 3.6)
        ax = plot_sweep(figure.subplots(), alike, name)
        note = f"Bars: Student's 95% interval over the n seeds {seeds}. Without points: does not use the setting."
        add_legend(figure, ax, 2, note)
        yield f"accuracy_by_{name}", figure, f"Final accuracy by {labels.name_in_words(name)}"
    yield from circuit_figures.figures_of_circuits(runs)
    yield from circuit_figures.figures_of_devices(arms)


def rows_figure(names, extra=1.2):
    """An empty Figure for a row of data to each name: high and wide enough for the names beside the axis."""
    lines = [line for name in wrapped(names) for line in name.split("\n")]
    return new_figure(4.8 + 0.07 * max(map(len, lines)), extra + 0.2 * len(lines) + 0.15 * len(names))


def name_rows(ax, names):
    """Write names, wrapped, beside the rows 0, 1, ... of an axis, the first on top."""
    ax.set_yticks(range(len(names)), wrapped(names), fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    return ax


def forest_figure(rows):
    """Paired differences of final accuracy, the primary one on top."""
    first = "primary: " if any(row["part"] == "primary" for row in rows) else ""
    total, rows = len(rows), sorted(rows, key=lambda row: row["part"])[:MOST_ROWS]
    names = [with_n(f"{first * (r['part'] == 'primary')}{r['arm']} - {r['base']}", r["n"]) for r in rows]
    figure = rows_figure(names, 1.6)
    plot_differences(figure.subplots(), rows, names)
    note = "Point: mean. Bar: Student's 95% interval"
    if any(row["alpha"] < 0.05 for row in rows):
        note += ", simultaneous for all rows that are corrected together"
    note += f"; one seed has none, at an edge it goes on. Grey: the margin, ±{100 * rows[0]['margin']:g} points."
    if total > len(rows):
        note += f" The first {len(rows)} of {total} comparisons."
    add_note(figure, note)
    return figure


def plot_differences(ax, rows, names):
    """Plot paired differences of final accuracy, points, with their intervals, a row for each comparison."""
    ax.axvspan(-100 * rows[0]["margin"], 100 * rows[0]["margin"], color=MARGIN_COLOUR, lw=0)
    ax.axvline(0, color="black", lw=0.8)
    for place, row in enumerate(rows):
        colour = RULES[row["rule"]].colour
        if row["interval"]:
            ax.plot([100 * end for end in row["interval"]], [place, place], color=colour, lw=2)
        ax.plot(100 * row["mean"], place, "o", color=colour)
        if row["part"] == "primary" and len(rows) > 1:
            ax.axhline(place + 0.5, color="black", lw=0.8)
    edge = min(100, max(5, 200 * rows[0]["margin"], *(400 * abs(row["mean"]) for row in rows)))
    low, high = ax.get_xlim()
    ax.set_xlim(max(low, -edge), min(high, edge))
    name_rows(ax, names).set_xlabel("difference of accuracy, points")
    return ax


def differences_figure(arms, rows):
    """Differences of accuracy at every evaluation, a panel for each comparison."""
    shown = sorted(rows, key=lambda row: row["part"])[:MOST_PANELS]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(max(3.6 * columns, 5), 2.3 * lines + 0.9)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    reach = 0
    for index, (ax, row) in enumerate(zip(axes.flat, shown, strict=False)):
        plot_difference_over_steps(ax, arms, row)
        reach = max(reach, *(np.abs(line.get_ydata()).max() for line in ax.get_lines()))
        ax.set_title("\n".join(wrapped([with_n(f"{row['arm']} - {row['base']}", row["n"])], 38)), fontsize=8)
        if index + columns < len(shown):
            ax.set_xlabel("")
        ax.tick_params(labelbottom=index + columns >= len(shown))
    reach = min(100, max(5, 200 * shown[0]["margin"], 2.5 * reach))
    axes[0, 0].set_ylim(-reach, reach)
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    for line in axes:
        line[0].set_ylabel("points")
    note = "Line: mean of paired differences. Band: Student's interval as in the table, for each step by itself; at an "
    note += f"edge it goes on. Grey: ±{100 * shown[0]['margin']:g} points."
    if len(rows) > len(shown):
        note += f" The first {len(shown)} of {len(rows)} comparisons."
    add_note(figure, note)
    return figure


def by_step(runs, column):
    """(steps, values) of a column of metrics.csv: steps at which all runs have a value; floats (steps, runs)."""
    found = [{row["step"]: row[column] for row in run["rows"] if row[column] is not None} for run in runs]
    steps = sorted(set.intersection(*map(set, found)))
    return steps, np.array([[values[step] for values in found] for step in steps])


def plot_difference_over_steps(ax, arms, row):
    """Plot the difference of evaluation accuracy of a comparison, points, over steps: mean over seeds and the interval
    that the table has of the last step. Arms of different numbers of steps have none, which is said."""
    arm, base = arms[row["arm"]], arms[row["base"]]
    seeds = sorted(arm.keys() & base.keys())
    last = {a[seeds[0]]["statistics"]["steps"] for a in (arm, base)}
    if len(last) > 1:
        ax.text(0.5, 0.5, f"{' and '.join(map(str, sorted(last)))} steps", transform=ax.transAxes, ha="center")
        return ax
    steps, values = by_step([a[seed] for a in (arm, base) for seed in seeds], "eval_accuracy")
    differences = values[:, : len(seeds)] - values[:, len(seeds) :]
    colour = RULES[row["rule"]].colour
    ax.axhspan(-100 * row["margin"], 100 * row["margin"], color=MARGIN_COLOUR, lw=0)
    ax.axhline(0, color="black", lw=0.8)
    ax.plot(steps, 100 * differences.mean(axis=1), color=colour, marker="o" if len(steps) < 20 else None, ms=3)
    if len(seeds) > 1:
        scatters = [mean_and_scatter(found, 1 / row["examples"]) for found in differences]
        low, high = 100 * np.array([student_interval(scatter, row["alpha"]) for scatter in scatters]).T
        ax.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
    ax.set_xlabel("step")
    return ax


def plot_recovered(ax, rows, names):
    """Plot the recovered fraction of the headroom, with its interval, a row for each arm; all have one."""
    for place, row in enumerate(rows):
        colour = RULES[row["rule"]].colour
        ax.plot(row["interval"], [place, place], color=colour, lw=2)
        ax.plot(row["fraction"], place, "o", color=colour)
    for end in (0, 1):
        ax.axvline(end, color="black", lw=0.8, ls="--")
    name_rows(ax, names).set_xlabel("recovered fraction: 0 = as frozen, 1 = as classical")
    return ax


def styles(arms):
    """Colour, line style and width of each arm, a dict by label: the rule's colour, paler for each further arm of the
    rule; each next line is narrower, so that it does not hide what it covers."""
    found, seen = {}, {}
    widths = np.linspace(3.4, 1.2, len(arms)) if len(arms) > 1 else [1.5]
    for index, (name, arm) in enumerate(arms.items()):
        number = seen[rule_of(arm)] = seen.get(rule_of(arm), -1) + 1
        pale = min(0.18 * number, 0.6)
        colour = tuple(pale + (1 - pale) * part for part in to_rgb(RULES[rule_of(arm)].colour))
        found[name] = {"color": colour, "ls": LINE_STYLES[index % len(LINE_STYLES)], "lw": widths[index]}
    return found


def of_shared_seeds(arms):
    """(arms, text): the arms with the seeds that all of them have, or as they are where no seed is shared."""
    shared = set.intersection(*map(set, arms.values()))
    if not shared:
        return arms, "of each arm, not the same in all"
    same = all(arm.keys() == shared for arm in arms.values())
    alike = {name: {seed: arm[seed] for seed in sorted(shared)} for name, arm in arms.items()}
    return alike, "of each arm" if same else "that all arms have"


def plot_over_steps(ax, arms, column, label):
    """Plot a column of metrics.csv over steps, a line per arm: mean over its seeds, where all of them have a value."""
    for name, style in styles(arms).items():
        steps, values = by_step(arms[name].values(), column)
        if steps:
            ax.plot(steps, values.mean(axis=1), label=with_n(name, len(arms[name])), **style)
    ax.set(xlabel="step", ylabel=label)
    ax.grid(alpha=0.3)
    return ax


def lines_over(arms, name):
    """The arms that use the setting called name, by all else that they use: label -> list of (value, arm), by value."""
    used = {label: labels.used_settings(settings_of(arm)) for label, arm in arms.items()}
    rest = [other for other in labels.varying(used.values()) if other != name]
    lines = {}
    for arm, settings in used.items():
        if name in settings:
            lines.setdefault(labels.label(settings, rest), []).append((settings[name], arm))
    return {line: sorted(found) for line, found in lines.items()}


def swept(arms):
    """Names of the settings that are numbers and take three values or more between arms that are alike in all else."""
    names = {n for arm in arms.values() for n, v in settings_of(arm).items() if type(v) in (int, float)}
    return sorted(n for n in names if any(len(found) > 2 for found in lines_over(arms, n).values()))


def plot_sweep(ax, arms, name):
    """Plot final accuracy against the setting called name, a line for the arms that differ in nothing else: mean and
    Student's 95% interval. Rules that do not use the setting are horizontal lines."""
    lines = {line: found for line, found in lines_over(arms, name).items() if len(found) > 1}
    looks, using = styles(arms), {arm for found in lines_over(arms, name).values() for _, arm in found}
    for arm in arms:
        if arm not in using:
            mean, _, _ = spread([final(run, "accuracy") for run in arms[arm].values()])
            ax.axhline(mean, **looks[arm], label=with_n(arm, len(arms[arm])))
    for index, (line, found) in enumerate(lines.items()):
        results = [spread([final(run, "accuracy") for run in arms[arm].values()]) for _, arm in found]
        half = [interval[1] - mean if interval else np.nan for mean, _, interval in results]  # one seed has no bar
        x, style = [value for value, _ in found], LINE_STYLES[index % len(LINE_STYLES)]
        colour = RULES[rule_of(arms[found[0][1]])].colour
        y = [mean for mean, _, _ in results]
        label = with_n(line, *(len(arms[arm]) for _, arm in found))
        ax.errorbar(x, y, half, color=colour, marker="o", capsize=3, label=label, ls=style)
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 0), min(high, 1))
    places = [value for found in lines.values() for value, _ in found]
    if min(places) > 0 and max(places) > 20 * min(places):
        ax.set_xscale("log")
    ax.set(xlabel=labels.name_in_words(name), ylabel="accuracy")
    ax.grid(alpha=0.3)
    return ax
