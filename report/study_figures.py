"""Figures of a study. Plot functions take an Axes and return it.

Arms and comparisons: as in report/study.py.
"""

import numpy as np

import config
from report import circuit_figures
from report.attention import save_attention_maps
from report.figures import STAGE_COLOURS, add_legend, new_figure, save_figure, save_or_explain, study_caption
from report.statistics import spread
from report.study import final, rule_of, settings_of
from update_rules import RULES

LINE_STYLES = ("-", "--", "-.", ":")


def save_study_figures(out, runs, arms, comparisons):
    """Save every figure of a study in the folder out, and return a list of (path, caption)."""
    saved = []
    for name, figure, text in study_figures(runs, arms, comparisons):
        saved.append((save_figure(figure, out / f"{name}.png"), f"{text} {study_caption(runs)}."))
    for rule in RULES:
        kept = [r for r in runs if r["settings"]["update_rule"] == rule and (r["folder"] / "model").is_dir()]
        for run in kept[:1]:
            text = f"Attention before and after training and their difference, {rule}, seed {run['settings']['seed']}."
            saved += [(p, text) for p in save_or_explain(save_attention_maps, out / f"attention_{rule}.png", run)]
    return saved


def study_figures(runs, arms, comparisons):
    """Yield (name, Figure, caption) of every figure that the runs of a study have data for, attention maps aside."""
    for name, column, label, text in (
        ("learning_curves", "eval_accuracy", "accuracy", "Accuracy on the evaluation set over training"),
        ("cosine", "cosine", "cosine", "Cosine between the update of the selected weights and their gradient"),
    ):
        figure = new_figure(7, 4)
        add_legend(figure, plot_over_steps(figure.subplots(), arms, column, label), 2)
        yield name, figure, f"{text}: mean over the seeds, band of one standard deviation."
    if comparisons:
        figure = new_figure(7, 1.2 + 0.35 * len(comparisons))
        plot_differences(figure.subplots(), comparisons)
        text = "Paired differences of final accuracy, 95% bootstrap intervals"
        yield "paired_differences", figure, f"{text}; grey: the evaluation set's own half-width."
    measured = [r["settings"] for r in runs if RULES[r["settings"]["update_rule"]].measures]
    for name, label in (("shots", "shots per circuit"), ("entangling_angle", "entangling angle, radians")):
        if len({settings[name] for settings in measured if name in config.settings_that_affect_result(settings)}) > 1:
            figure = new_figure(6, 4)
            ax = plot_sweep(figure.subplots(), arms, name, label)
            if name == "shots":
                ax.set_xscale("log")
            add_legend(figure, ax, 2)
            yield f"accuracy_by_{name}", figure, f"Final accuracy against {label}: mean, one standard deviation."
    devices = circuit_figures.group_by_device(runs)
    if len(devices) > 1:
        yield "devices", *circuit_figures.device_figure(devices)
    figure = new_figure(7, 1.4 + 0.35 * len(arms))
    add_legend(figure, plot_cost(figure.subplots(), arms), 4)
    yield "cost", figure, "Seconds per step and where they go; circuits per step beside the bars."
    settings = measured[0] if measured else runs[0]["settings"]
    yield "response", *circuit_figures.response_figure(settings)
    yield "covariance", *circuit_figures.covariance_figure(settings)


def plot_over_steps(ax, arms, column, label):
    """Plot a column of metrics.csv over steps, a line per arm: mean over the seeds, band of one standard deviation.

    The deviation has n - 1 in the denominator; where there is but one seed there is no band.
    """
    for index, (arm_label, arm) in enumerate(arms.items()):
        values = {}
        for run in arm.values():
            for row in run["rows"]:
                if row[column] is not None:
                    values.setdefault(row["step"], []).append(row[column])
        if not values:
            continue
        steps, colour = sorted(values), RULES[rule_of(arm)].colour
        mean = np.array([np.mean(values[step]) for step in steps])
        style = LINE_STYLES[index % len(LINE_STYLES)]
        ax.plot(steps, mean, color=colour, ls=style, label=f"{arm_label} (n = {len(arm)})")
        if len(arm) > 1:
            deviation = [np.std(values[step], ddof=1) if len(values[step]) > 1 else np.nan for step in steps]
            ax.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.1, lw=0)
    ax.set(xlabel="step", ylabel=label)
    ax.grid(alpha=0.3)
    return ax


def plot_differences(ax, comparisons):
    """Plot paired differences of accuracy, points, with bootstrap intervals; grey: the evaluation set's half-width."""
    for place, row in enumerate(reversed(comparisons)):
        colour = RULES[row["rule"]].colour
        if row["interval"]:
            ax.plot([100 * end for end in row["interval"]], [place, place], color=colour, lw=2)
        ax.plot(100 * row["mean"], place, "o", color=colour)
        width = 100 * row["half_width"]
        ax.fill_betweenx([place - 0.4, place + 0.4], -width, width, color="#DDDDDD", lw=0)
    ax.axvline(0, color="black", lw=0.8)
    labels = [f"{row['arm']} - {row['base']}" for row in reversed(comparisons)]
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_xlabel("difference of accuracy, points")
    return ax


def plot_sweep(ax, arms, name, label):
    """Plot final accuracy against the setting called name: mean and one standard deviation of each arm.

    Rules that do not use the setting are horizontal lines.
    """
    points = {}
    for arm in arms.values():
        settings, rule = config.settings_that_affect_result(settings_of(arm)), rule_of(arm)
        mean, deviation, _ = spread([final(run, "accuracy") for run in arm.values()])
        if name in settings:
            points.setdefault(rule, []).append((settings[name], mean, deviation or 0))
        else:
            ax.axhline(mean, color=RULES[rule].colour, ls="--", lw=1, label=f"{rule}, which does not use it")
    for rule, found in points.items():
        x, mean, deviation = zip(*sorted(found), strict=True)
        ax.errorbar(x, mean, deviation, color=RULES[rule].colour, marker="o", capsize=3, label=rule)
    ax.set(xlabel=label, ylabel="accuracy")
    ax.grid(alpha=0.3)
    return ax


def plot_cost(ax, arms):
    """Plot seconds per step of each arm as bars, a part per stage, with the circuits per step beside them."""
    left = np.zeros(len(arms))
    for stage, colour in STAGE_COLOURS.items():
        widths = [
            np.mean([r["statistics"][f"seconds_{stage}"] / r["statistics"]["steps"] for r in arm.values()])
            for arm in arms.values()
        ]
        ax.barh(range(len(arms)), widths, left=left, color=colour, label=stage)
        left += widths
    for place, arm in enumerate(arms.values()):
        statistics = next(iter(arm.values()))["statistics"]
        circuits = statistics["circuits"] // statistics["steps"]
        ax.text(left[place], place, f" {circuits:,} circuits", va="center", fontsize=8)
    ax.set_yticks(range(len(arms)), list(arms), fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, left.max() * 1.35)
    ax.set_xlabel("seconds per step")
    return ax
