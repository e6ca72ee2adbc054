"""A run beside the latest one of the other kind, of the same settings and seed: classical training, where it is not."""

import json
import shlex

import config
from harness import run_folder
from report.figures import add_legend, add_title, new_figure, plot_cosine, plot_curve, save_figure, task
from report.study import compare, judge
from report.words import conclusion
from update_rules import RULES


def find_partner(run):
    """Latest finished run beside `run` that differs from it in the rule alone, as run_folder.read has it, or None.

    For a classical run that is one of any other rule, for all others a classical one. Examples and initial weights must
    be the same, too, where both runs recorded them.
    """
    own = config.settings_that_affect_result(run["settings"])
    classical = own["update_rule"] == "classical"
    for folder in reversed(run_folder.in_order(run["folder"].resolve().parent)):
        try:
            if run_folder.stored_status(folder) != "finished":
                continue
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            other = config.settings_that_affect_result(settings)
            shared = own.keys() & other.keys() - {"update_rule"}
            wanted = (other["update_rule"] == "classical") != classical
            if wanted and all(own[name] == other[name] for name in shared):
                partner = run_folder.read(folder)
                if starting_point(partner) == starting_point(run):
                    return partner
        except (ValueError, OSError, KeyError, TypeError, AttributeError):
            continue  # broken, or of another layout
    return None


def starting_point(run):
    """Hashes of the examples and of the initial weights of a run; None for what was not recorded."""
    environment = run["environment"]
    return environment["data"].get("sha256_of_examples"), environment.get("initial_weights_sha256")


def command_for_partner(run):
    """The command that makes the run which find_partner looks for, a str; flags that change nothing are left out."""
    own = "classical" if run["settings"]["update_rule"] != "classical" else "quantum"
    settings = run["settings"] | {"update_rule": own}
    names = [*config.settings_that_affect_result(settings), "eval_every", "results_dir"]
    folder = run["folder"] if run["folder"].name.startswith("run_") else run["folder"].resolve()
    settings["results_dir"] = str(folder.parent)
    wanted = {name: settings[name] for name in names}
    flags = {name: json.dumps(v) if isinstance(v, list | tuple) else str(v) for name, v in wanted.items()}

    def makes_it(flags):
        try:
            made = config.load([part for name, text in flags.items() for part in (f"--{name}", text)])._asdict()
        except ValueError:
            return False
        made = json.loads(json.dumps(made))
        return all(made[name] == value for name, value in json.loads(json.dumps(wanted)).items())

    for name in names:
        less = {other: text for other, text in flags.items() if other != name}
        if name != "update_rule" and makes_it(less):
            flags = less
    flags = {"update_rule": own} | flags
    return shlex.join(["python", "train.py", *(part for name, text in flags.items() for part in (f"--{name}", text))])


def compare_pair(run, partner):
    """What two runs of one seed, as `ordered` gives them, show, a sentence: the other rule against classical."""
    seed = run["settings"]["seed"]
    arms = {r["settings"]["update_rule"]: {seed: r} for r in (run, partner)}
    row = compare(arms, *arms)
    judge([row])
    return conclusion(row)


def ordered(run, partner):
    """The two runs, the classical one last."""
    return (partner, run) if run["settings"]["update_rule"] == "classical" else (run, partner)


def save_curves_of_both(path, run, partner):
    """Save loss, accuracy and, where it was measured, cosine of both runs over steps, overlaid, as a figure, and return
    the path."""
    runs = run, partner
    cosines = any(row["cosine"] is not None for one in runs for row in one["rows"])
    figure = new_figure(13 if cosines else 10, 4)
    axes = figure.subplots(1, 3 if cosines else 2)
    for one, width in zip(runs, (4, 1.5), strict=True):  # the first is seen where the second covers it
        rule = one["settings"]["update_rule"]
        for ax, quantity in zip(axes, ("loss", "accuracy"), strict=False):
            plot_curve(ax, one["rows"], quantity, RULES[rule].colour, rule, RULES[rule].colour, width)
        if cosines:
            plot_cosine(axes[2], one["rows"], RULES[rule].colour, width)
    add_legend(figure, axes[0], 2)
    rules = " and ".join(one["settings"]["update_rule"] for one in runs)
    add_title(figure, f"{rules}, seed {run['settings']['seed']}. {task(run)}")
    return save_figure(figure, path)
