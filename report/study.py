"""A study, a folder of runs: reading it, grouping its runs into arms, comparing arms seed by seed, in words.

An arm is a dict of seed -> run, its runs differ in nothing but the seed; arms are a dict of label -> arm. A run is what
run_folder.read returns.
"""

import itertools
import sys

import config
from harness import run_folder
from report.statistics import half_width, holm, paired
from update_rules import RULES


def read_study(folder):
    """The finished runs of a folder, a list; a broken or unfinished one is skipped with a line on stderr.

    Raises ValueError if no run is left.
    """
    runs = []
    for path in sorted(folder.glob("run_*")):
        try:
            run = run_folder.read(path)
            if run["statistics"]["status"] != "finished":
                raise ValueError(f"its status is {run['statistics']['status']}")
            runs.append(run)
        except (ValueError, OSError) as error:
            print(f"skipped {path}: {' '.join(str(error).split())}", file=sys.stderr)
    if not runs:
        raise ValueError(f"{folder}: holds no finished run")
    return runs


def group_arms(runs):
    """The arms of a list of runs, in the order of update_rules.RULES.

    A label is the update rule and those settings that differ between the runs of the study.
    """
    used = [config.settings_that_affect_result(run["settings"]) for run in runs]
    for settings in used:
        del settings["seed"]
    names = {name for settings in used for name in settings} - {"update_rule"}
    varying = [n for n in sorted(names) if len({str(settings[n]) for settings in used if n in settings}) > 1]
    rules, arms = list(RULES), {}
    for index in sorted(range(len(runs)), key=lambda i: (rules.index(used[i]["update_rule"]), str(used[i]))):
        settings, run = used[index], runs[index]
        label = ", ".join([settings["update_rule"], *(f"{n} {settings[n]}" for n in varying if n in settings)])
        arms.setdefault(label, {})[run["settings"]["seed"]] = run
    return arms


def settings_of(arm):
    """The settings of an arm, those of its first run."""
    return next(iter(arm.values()))["settings"]


def rule_of(arm):
    """The name of an arm's update rule."""
    return settings_of(arm)["update_rule"]


def final(run, name):
    """The last "accuracy" or "loss" on the evaluation set."""
    return run["statistics"]["evaluations"][-1][name]


def seconds(run):
    """The time that all steps of a run took, in seconds."""
    return sum(run["statistics"][f"seconds_{stage}"] for stage in run_folder.STAGES)


def evaluation_half_width(run):
    """Half of the 95% interval of a run's final accuracy, given the size of its evaluation set."""
    return half_width(final(run, "accuracy"), run["environment"]["data"]["evaluation_examples"])


def compare_arms(arms):
    """Paired comparisons of final accuracy, a list of dicts: each arm with classical, quantum ones with every other.

    Arms are paired seed by seed, and only if they agree in every setting that affects the results of both. The dicts
    hold arm and base (labels), rule and base_rule, n (pairs), mean (arm - base), interval, p, p_holm (adjusted over the
    whole list), half_width (of the evaluation set); interval and both p are None for one pair.
    """
    rows = []
    for (label, arm), (base_label, base) in itertools.permutations(arms.items(), 2):
        rule, base_rule = rule_of(arm), rule_of(base)
        if rule == base_rule or not (base_rule == "classical" or rule == "quantum"):
            continue
        mine, theirs = (config.settings_that_affect_result(settings_of(a)) for a in (arm, base))
        if any(mine[n] != theirs[n] for n in mine.keys() & theirs.keys() - {"update_rule", "seed"}):
            continue
        seeds = sorted(arm.keys() & base.keys())
        if not seeds:
            continue
        mean, interval, p = paired([final(arm[s], "accuracy") - final(base[s], "accuracy") for s in seeds])
        row = {"arm": label, "base": base_label, "rule": rule, "base_rule": base_rule, "n": len(seeds)}
        width = evaluation_half_width(base[seeds[0]])
        rows.append(row | {"mean": mean, "interval": interval, "p": p, "half_width": width})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def conclude(comparisons):
    """What the comparisons of quantum arms show, a list of sentences."""
    sentences = [conclusion(row) for row in comparisons if row["rule"] == "quantum"]
    return sentences or ["The study holds no pair of quantum and another rule, so there is nothing to compare."]


def conclusion(row):
    """What one comparison shows, a sentence."""
    against = f"{row['arm']} against {row['base']} ({RULES[row['base_rule']].isolates})"
    points = f"{100 * row['mean']:+.1f} points"
    if row["p"] is None:
        return f"{against}: one seed only ({points}), which allows no conclusion."
    low, high = (100 * end for end in row["interval"])
    found = "better" if row["mean"] > 0 else "worse"
    if row["p_holm"] >= 0.05:
        found = "no difference found"
    found += f" ({points}, 95% interval {low:+.1f} to {high:+.1f}, p = {row['p_holm']:.3f}, n = {row['n']})"
    if abs(row["mean"]) < row["half_width"]:
        found += f"; smaller than the evaluation set's own half-width of {100 * row['half_width']:.1f} points"
    return f"{against}: {found}."
