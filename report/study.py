"""A study, a folder of runs: reading it and its question, grouping its runs into arms, comparing arms seed by seed.

An arm is a dict of seed -> run, its runs differ in nothing but the seed; arms are a dict of label -> arm. A run is what
run_folder.read returns. What is said about a comparison is in report/words.py.
"""

import itertools
import json
import sys

import numpy as np

import config
from harness import run_folder
from report import labels
from report.figures import IN_TASK, one_line, study_caption
from report.statistics import (
    ALPHA,
    EQUIVALENCE_MARGIN,
    SMALLEST_N,
    adjusted,
    discordant,
    paired,
    recovered_fraction,
    seeds_to_decide,
    smallest_discordant_effect,
    smallest_effect,
    student_interval,
)
from report.words import conclusion, listed
from update_rules import RULES

# Settings that runs must share for a comparison to mean something: the model, the data, and how much of them is seen.
TASK = ("model_name", "model_revision", "num_labels", "dataset_name", "dataset_config", "dataset_revision")
TASK += ("text_columns", "label_column", "train_size", "eval_size", "max_length", "num_epochs")


def read_study(folder):
    """The study of a folder of runs, see analyse. Raises ValueError if no finished run is there, or question.json is of
    no use."""
    return analyse(read_runs(folder), read_question(folder / "question.json"))


def read_studies(folder):
    """The studies in a folder of runs, a list: one where question.json says what is compared, else one for each task,
    the largest first. Raises as read_study does."""
    if (folder / "question.json").exists():
        return [read_study(folder)]
    tasks = {}
    for run in read_runs(folder):
        tasks.setdefault(str(task_settings(run)), []).append(run)
    return [analyse(runs, {}) for runs in sorted(tasks.values(), key=len, reverse=True)]


def task_settings(run):
    """Those settings of a run that say what its task is, a dict."""
    used = labels.used_settings(run["settings"])
    return {name: used[name] for name in TASK if name in used}


def headings(studies):
    """A text for each study of a folder: its task, with what else of it differs between them."""
    tasks = [task_settings(study["runs"][0]) for study in studies]
    rest = [name for name in labels.varying(tasks) if name not in IN_TASK]
    return [
        ", ".join([study_caption(study["runs"]), *(labels.in_words(name, task[name]) for name in rest if name in task)])
        for study, task in zip(studies, tasks, strict=True)
    ]


def analyse(runs, question):
    """All that a report says of finished runs, a dict: question, runs, arms, comparisons, missing, headroom, recovered.

    question: as read_question returns it. comparisons, headroom: lists of rows as `compare` makes them, with what
    `judge` adds and, of the former, `conclusion`, a sentence. missing: texts, comparisons asked for whose runs are not
    there. recovered: see recovered_rows.
    """
    arms = group_arms(runs)
    headroom = [
        compare(arms, name, base, "headroom")
        for name, arm in arms.items()
        if rule_of(arm) == "classical" and (base := beside(arms, name, "frozen"))
    ]
    margin = question.get("margin_points", 100 * EQUIVALENCE_MARGIN) / 100
    comparisons, missing, unseen = [], [], 0
    for part, arm, base in named_pairs(arms, question):
        if arm in arms and base in arms and arms[arm].keys() & arms[base].keys():
            comparisons.append(compare(arms, arm, base, part, margin))
        else:
            missing.append(f"{arm} against {base}")
            unseen += part != "primary"
    together = unseen + sum(row["part"] == "secondary" for row in comparisons)
    for family in [[row] for row in headroom] + families(comparisons):
        judge(family, together - len(family) if family[0]["part"] == "secondary" else 0)
    for row in comparisons:
        row["conclusion"] = conclusion(row)
    return {
        **{"question": question, "runs": runs, "arms": arms, "comparisons": comparisons, "missing": missing},
        **{"headroom": headroom, "recovered": recovered_rows(arms, headroom)},
    }


def summary(study):
    """What comparisons.json holds of a study: no runs, but the seeds of each arm."""
    kept = {name: value for name, value in study.items() if name not in ("runs", "arms")}
    return {"arms": {label: sorted(arm) for label, arm in study["arms"].items()}, **kept}


def read_runs(folder):
    """The finished runs of a folder, a list; a broken or unfinished one is skipped with a line on stderr.

    Raises ValueError if no run is left.
    """
    runs, first = [], {}
    for path in sorted(folder.glob("run_*"), key=run_folder.by_number):
        try:
            run = run_folder.read(path)
            if run["statistics"]["status"] != "finished":
                raise ValueError(f"its status is {run['statistics']['status']}")
            same = first.setdefault((str(task_settings(run)), run["settings"]["seed"]), run)
            if examples_of(same) != examples_of(run):
                raise ValueError(f"its examples are not those of {same['folder'].name}, which has the same settings")
            runs.append(run)
        except (ValueError, OSError) as error:
            print(f"skipped {path}: {one_line(error)}", file=sys.stderr)
    if not runs:
        raise ValueError(f"{folder}: holds no finished run")
    return runs


def examples_of(run):
    """What tells the examples of a run from others: their hash, None where none was recorded, and how many are
    evaluated."""
    data = run["environment"]["data"]
    return data.get("sha256_of_examples"), data["evaluation_examples"]


def read_question(path):
    """What question.json asks of a folder of runs, a dict; {} where there is no such file.

    It is written before the runs are made, and says which comparisons count:

        {"question": "Does AdamW's step on the measured gradient train attention?",
         "primary": [{"update_rule": "quantum", "quantum_optimizer": "adamw", "shots": 1000}, "classical"],
         "secondary": [["frozen", "classical"], ...],
         "margin_points": 1.0,
         "prediction": "Equivalent: 1000 shots add 2% to the noise of the minibatches."}

    question: title of the report. primary: [ARM, BASE], ARM minus BASE, reported first and not corrected. An ARM is a
    dict of settings, as config.json has them, that exactly one arm of the folder uses; a text is an update rule, short
    for {"update_rule": text}. secondary (optional): list of pairs, the Holm family; without it the family is what the
    report compares by itself, see choose_pairs. margin_points (optional, 1.0): points within which two arms are
    equivalent. prediction (optional): what is expected, shown beside what came. An ARM that no run uses yet is reported
    as missing. Raises ValueError where a key, a setting or a rule is unknown, or something is of the wrong kind.
    """
    if not path.exists():
        return {}
    try:
        question = json.loads(path.read_text(encoding="utf-8"))
        if unknown := question.keys() - {"question", "primary", "secondary", "margin_points", "prediction"}:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        secondary = question.get("secondary", [])
        for pair in [question["primary"], *secondary]:
            first, second = pair
            for arm in (first, second):
                check_arm({"update_rule": arm} if isinstance(arm, str) else arm)
        if not isinstance(question["question"], str) or not 0 < question.get("margin_points", 1) < 100:
            raise ValueError("question must be a text, margin_points a number of points above 0")
    except KeyError as error:
        raise ValueError(f"{path.name} lacks {error}") from None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path.name} cannot be used: {error}") from None
    return question


def check_arm(wanted):
    """Raise ValueError unless an ARM of question.json, a dict, names settings that there are."""
    if unknown := wanted.keys() - set(config.Settings._fields):
        raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
    for name, value in wanted.items():
        config.checked(name.upper(), value)


# --- Arms


def group_arms(runs):
    """The arms of a list of runs, in the order of update_rules.RULES and of the values of the settings that differ.

    A label says in words the update rule and those settings that differ between the runs of the study. Of two runs that
    differ in nothing that affects a result the later one counts.
    """
    used = [labels.used_settings(run["settings"]) for run in runs]
    names, rules, arms = labels.varying(used), list(RULES), {}

    def place(index):
        values = [used[index].get(name, "") for name in names]
        return rules.index(used[index]["update_rule"]), [sort_key(value) for value in values]

    for index in sorted(range(len(runs)), key=place):
        arms.setdefault(labels.label(used[index], names), {})[runs[index]["settings"]["seed"]] = runs[index]
    return arms


def sort_key(value):
    """A key by which values of one setting can be sorted: numbers by size, before all others by their text."""
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def matches(arm, wanted):
    """Whether an arm's result depends on the settings of the dict `wanted`, and uses these values."""
    used = labels.used_settings(settings_of(arm))
    return all(name in used and used[name] == value for name, value in wanted.items())


def compared(arms):
    """What a study compares, as text: its rules, and the settings that differ between its arms."""
    names = labels.varying([labels.used_settings(settings_of(arm)) for arm in arms.values()])
    rules = listed(list(dict.fromkeys(map(rule_of, arms.values()))))
    return f"{rules} by {listed(list(map(labels.name_in_words, names)))}" if names else rules


def settings_of(arm):
    """The settings of an arm, those of its first run."""
    return next(iter(arm.values()))["settings"]


def rule_of(arm):
    """The name of an arm's update rule."""
    return settings_of(arm)["update_rule"]


def final(run, name):
    """The last "accuracy" or "loss" on the evaluation set."""
    return run["statistics"]["evaluations"][-1][name]


def differing(arm, base):
    """Names of the settings that both arms' results depend on, and in which they differ, a set; the seed left out."""
    mine, theirs = (labels.used_settings(settings_of(a)) for a in (arm, base))
    return {name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]}


# --- Which arms are compared


def named_pairs(arms, question):
    """The comparisons to make, a list of (part, arm, base): "primary" or "secondary", and two labels.

    Where question.json names an arm that no run uses, its description takes the label's place. Raises ValueError where
    it names several.
    """

    def find(wanted):
        wanted = {"update_rule": wanted} if isinstance(wanted, str) else wanted
        found = [name for name, arm in arms.items() if matches(arm, wanted)]
        if len(found) > 1:
            raise ValueError(f"question.json: {json.dumps(wanted)} is {len(found)} arms: {'; '.join(found)}")
        return found[0] if found else labels.label(wanted, [name for name in wanted if name != "update_rule"])

    pairs = [("primary", *map(find, question["primary"]))] if question else []
    chosen = (
        [tuple(map(find, pair)) for pair in question["secondary"]] if "secondary" in question else choose_pairs(arms)
    )
    if any(arm == base for arm, base in [*chosen, *(pair[1:] for pair in pairs)]):
        raise ValueError("question.json: both sides of a comparison are the same arm")
    said = [set(pair[1:]) for pair in pairs]
    return pairs + [("secondary", *pair) for pair in dict.fromkeys(chosen) if set(pair) not in said]


def choose_pairs(arms):
    """Pairs of labels (arm, base) of the arms that differ in one respect and whose difference means something.

    Every arm against classical and against frozen, quantum against each control, and neighbours along one setting that
    differs within a rule. Frozen against classical is left out, it is the headroom.
    """
    pairs = [
        (name, base_name)
        for rule, base_rule in itertools.product(RULES, RULES)
        if rule not in (base_rule, "frozen", "classical")
        and (rule == "quantum" or base_rule in ("classical", "frozen"))
        for (name, arm), (base_name, base) in itertools.product(arms.items(), arms.items())
        if (rule_of(arm), rule_of(base)) == (rule, base_rule)
        and differing(arm, base) == {"update_rule"}
        and arm.keys() & base.keys()
    ]
    above = {}
    for base, arm in itertools.combinations(arms, 2):  # in the order of the values: the first found is the next one
        changed = differing(arms[arm], arms[base])
        if len(changed) == 1 and "update_rule" not in changed:
            above.setdefault((base, *changed), arm)
    return pairs + [(arm, base) for (base, _), arm in above.items() if arms[arm].keys() & arms[base].keys()]


# --- What a comparison shows


def compare(arms, arm, base, part="secondary", margin=EQUIVALENCE_MARGIN):
    """A comparison of final accuracies, paired by seed, a dict: part, arm and base (labels), rule, base_rule,
    optimizer (of the rule), margin, changed (settings that differ, the rule left out), examples (evaluated; where
    they differ, the fewer), and what statistics.paired returns.

    With one seed p is McNemar's, of the predictions in `discordant`, (gained, lost); both None where none were kept.
    """
    mine, theirs = arms[arm], arms[base]
    seeds = sorted(mine.keys() & theirs.keys())
    examples = min(examples_of(found[seeds[0]])[1] for found in (mine, theirs))
    differences = [final(mine[seed], "accuracy") - final(theirs[seed], "accuracy") for seed in seeds]
    row = {
        **{"part": part, "arm": arm, "base": base, "rule": rule_of(mine), "base_rule": rule_of(theirs)},
        "optimizer": settings_of(mine)["quantum_optimizer"],
        **{"changed": sorted(differing(mine, theirs) - {"update_rule"}), "margin": margin, "examples": examples},
        **paired(differences, margin, 1 / examples),
        "discordant": None,
    }
    if row["n"] == 1:
        mine, theirs = (final_predictions(a[seeds[0]]) for a in (mine, theirs))
        if mine and theirs and np.array_equal(mine[0], theirs[0]):
            *row["discordant"], row["p"] = discordant(mine[1], theirs[1])
    return row


def final_predictions(run):
    """(labels, margins) of a run's last evaluation; None where they were not kept or, with a line on stderr, are
    broken."""
    try:
        found = run_folder.read_predictions(run["folder"] / "predictions.csv")
    except ValueError as error:
        print(f"{run['folder']}: judged without its predictions: {one_line(error)}", file=sys.stderr)
        return None
    return found.get(run["statistics"]["evaluations"][-1]["step"])


def families(comparisons):
    """The comparisons by how they are tested, a list of lists, and `family` in each, its name.

    The primary comparison stands alone. Those with too few seeds for a sign-flip test are no part of the Holm family,
    nor are those of one seed, or of one without predictions.
    """
    found = {}
    for row in comparisons:
        row["family"] = "primary" if row["part"] == "primary" else "secondary"
        if row["part"] != "primary" and row["n"] < SMALLEST_N:
            row["family"] = "few seeds" if row["n"] > 1 else "one seed" if row["discordant"] else "not tested"
        found.setdefault(row["family"], []).append(row)
    return list(found.values())


def judge(rows, unseen=0):
    """Add to the rows of one family what follows from it: alpha, interval, adjusted p-values, plan and verdict.

    unseen: secondary comparisons beside these, of other families or without runs: they count as p = 1, so that all of
    them together err at most at the rate of 5% in what they call different, and 5% in what they call equivalent.
    family_size: their number and that of the rows. alpha: 0.05 / family_size; interval: Student's at level 1 - alpha,
    so that all of them together hold with 95%. p_adjusted, p_flip_adjusted, p_equal_adjusted: by Holm; in rows with
    fewer than six seeds by Bonferroni, and without p_flip_adjusted. smallest_effect: that n could show with 80% power;
    seeds: that would decide, None if unknown or more than 1000. verdict: "equivalent" if that is shown, else "better"
    or "worse" if that is shown, else "undecided".
    """
    alpha, many = ALPHA / (len(rows) + unseen), all(row["n"] >= SMALLEST_N for row in rows)
    for name in ("p", "p_flip", "p_equal"):
        found = [row[name] for row in rows]
        known = None not in found and (many or name != "p_flip")
        values = adjusted(found + [1.0] * unseen, "holm" if many else "bonferroni") if known else [None] * len(rows)
        for row, value in zip(rows, values, strict=False):
            row[f"{name}_adjusted"] = value
    for row in rows:
        row |= {"alpha": alpha, "family_size": len(rows) + unseen, "interval": student_interval(row, alpha)}
        row |= {"smallest_effect": None, "seeds": None}
        if row["n"] > 1:
            row["smallest_effect"] = smallest_effect(row["deviation"], row["n"], alpha)
            row["seeds"] = seeds_to_decide(row["mean"], row["deviation"], row["margin"], alpha)
        elif row["discordant"]:
            row["smallest_effect"] = smallest_discordant_effect(*row["discordant"], row["examples"], alpha)
        row["verdict"] = "undecided"
        if row["p_equal_adjusted"] is not None and row["p_equal_adjusted"] < ALPHA:
            row["verdict"] = "equivalent"
        elif row["p_adjusted"] is not None and row["p_adjusted"] < ALPHA:
            row["verdict"] = "better" if row["mean"] > 0 else "worse"


def beside(arms, name, rule):
    """The label of the arm of that rule that stands beside an arm for the headroom; None where there is none, or more.

    It shares a seed, and differs in the rule alone or, where no arm does, in learning rates too: each rule's own best.
    """
    arm = arms[name]
    found = {n: differing(arm, a) for n, a in arms.items() if rule_of(a) == rule and arm.keys() & a.keys()}
    for allowed in ({"update_rule"}, {"update_rule", "learning_rate"}):
        fitting = [other for other, changed in found.items() if changed <= allowed]
        if fitting:
            return fitting[0] if len(fitting) == 1 else None
    return None


def recovered_rows(arms, headroom):
    """What part of the headroom each arm recovers, a list of dicts: arm, classical, frozen (labels), rule, n, fraction,
    interval; see statistics.recovered_fraction. headroom: rows of comparisons of classical (arm) with frozen (base).
    """
    rows = []
    for row, (name, arm) in itertools.product(headroom, arms.items()):
        others = [arms[row["arm"]], arms[row["base"]]]
        seeds = sorted(arm.keys() & others[0].keys() & others[1].keys())
        bases = [beside(arms, name, rule) for rule in ("classical", "frozen")]
        if seeds and rule_of(arm) not in ("classical", "frozen") and bases == [row["arm"], row["base"]]:
            values, classical, frozen = ([final(a[seed], "accuracy") for seed in seeds] for a in (arm, *others))
            resolution = 1 / min(examples_of(a[seeds[0]])[1] for a in (arm, *others))
            fraction, interval = recovered_fraction(values, frozen, classical, resolution)
            found = {"arm": name, "classical": row["arm"], "frozen": row["base"], "rule": rule_of(arm)}
            rows.append(found | {"n": len(seeds), "fraction": fraction, "interval": interval})
    return rows
