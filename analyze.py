"""Plot runs and compare rules: `python analyze.py` for the most recent run, or `python analyze.py FOLDER [FOLDER ...]`.

A run folder gets its curves and attention maps. A folder of runs, such as results/, is a study: its rules are compared
seed by seed, in tables, figures and report.html. Output goes to FOLDER/analysis/. Plot functions take an Axes.
"""

import base64
import html
import itertools
import json
import os
import re
import sys
import textwrap
from pathlib import Path

import numpy as np

import config
import run_folder

# Okabe & Ito's colour-blind safe colours; what is classical is black everywhere.
PALETTE = {
    "quantum": "#0072B2",
    "independent": "#D55E00",
    "exact": "#009E73",
    "classical": "#000000",
    "frozen": "#CC79A7",
    "batch": "#BBBBBB",
}
RULES = [name for name in PALETTE if name != "batch"]
ISOLATES = {  # what a comparison with the rule isolates
    "independent": "the correlations that entanglement makes",
    "exact": "the shot noise",
    "classical": "the whole idea",
    "frozen": "whether those weights matter",
}
STAGE_COLOURS = {"forward": "#56B4E9", "backward": "#E69F00", "quantum": "#0072B2", "other": "#999999"}
LINE_STYLES = ("-", "--", "-.", ":")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:0}main{max-width:60rem;margin:auto;"
    "padding:1.5rem}table{border-collapse:collapse;font-size:.85rem}th,td{border-bottom:1px solid #bbb;"
    "padding:.25rem .6rem;text-align:left}.wide{overflow-x:auto}figure{margin:1.5rem 0;break-inside:avoid}"
    "img{max-width:100%;background:#fff;padding:.4rem;box-sizing:border-box}figcaption,.caption{font-size:.9rem;color:#555}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}figcaption,.caption{color:#aaa}"
    "th,td{border-color:#444}}@media print{body{font-size:11px;color:#000;background:#fff}}"
)
ATTENTION_COLOURS, DIFFERENCE_COLOURS = "viridis", "PuOr"
MOST_TOKENS = 24  # what is longer is cut: more do not fit legibly on the axes of an attention map


def main(argv):
    parser = config.OneLineParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run folders, or folders of runs; default: the most recent run"
    )
    parser.add_argument(
        "--results_dir", default=config.load([]).results_dir, help="where run folders are [%(default)s]"
    )
    arguments = parser.parse_args(argv)
    folders = [Path(name) for name in arguments.runs] or [
        run_folder.most_recent(Path(os.path.expanduser(arguments.results_dir)))
    ]
    analysed = 0
    for folder in folders:
        try:
            is_study = not (folder / "config.json").exists() and any(folder.glob("run_*/config.json"))
            for path in analyze_study(folder) if is_study else analyze_run(run_folder.read(folder)):
                print(f"  {path}")
            analysed += 1
        except (ValueError, OSError) as error:
            print(f"skipped {folder}: {one_line(error)}", file=sys.stderr)
    return 0 if analysed else 2


# --- Figures ----------------------------------------------------------------------------------------------------------


def analyze_run(run):
    """Make a run's figures and return their paths; one that cannot be made is said, the others are."""
    folder, statistics = run["folder"], run["statistics"]
    out = folder / "analysis"
    out.mkdir(exist_ok=True)
    print(f"{folder}: {caption(run)}; {statistics['status']} after {statistics['steps']} steps")
    figures = []
    for name, save in (("training_curves", save_curves), ("attention_maps", save_attention_maps)):
        try:
            figures.append(save(out / f"{name}.png", run))
        except (ValueError, OSError) as error:
            print(f"  no {name}: {one_line(error)}")
    return figures


def one_line(text):
    return " ".join(str(text).split())


def plain(text):
    """Text for a figure: a dollar sign is a dollar sign, not the beginning of a formula."""
    return text.replace("$", r"\$")


def caption(run):
    """What was trained, on what, how: the line that stands with every figure of a run."""
    settings, model, data = run["settings"], run["environment"]["model"], run["environment"]["data"]
    names = [settings["model_name"], f"{settings['dataset_name']} {settings['dataset_config']}".strip()]
    for index, source in enumerate((model, data)):
        if source["kind"] == "local":
            names[index] = Path(source["path"]).name
        elif source["kind"] == "embedded":
            stands_in = f" (in place of {source['stands_in_for']})" if "stands_in_for" in source else ""
            names[index] = ("embedded model", "embedded sentences")[index] + stands_in
    rule = settings["update_rule"]
    if config.measures(rule):
        rule += f" ({settings['circuit']}, {settings['num_qubits']} qubits, {settings['shots']} shots)"
    return f"{' on '.join(names)}, {settings['train_size'] or 'all'} examples, {rule}"


def new_figure(width, height):
    """A Figure without pyplot, so that nothing global is touched and nothing waits for a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def add_title(figure, text):
    """A title over the whole figure, wrapped to its width."""
    figure.suptitle(plain(textwrap.fill(text, int(13 * figure.get_figwidth()))), fontsize=9)


def add_legend(figure, ax, columns):
    """The legend of ax below the whole figure, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    columns = columns if max(map(len, labels), default=0) <= 44 else 1  # two long ones side by side would be cut off
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def save_figure(figure, path):
    config.write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))
    return path


def save_curves(path, run):
    """The figure of loss and accuracy over the steps of one run, saved to path."""
    if not run["rows"]:
        raise ValueError("metrics.csv has no rows")
    figure = new_figure(9, 3.8)
    for ax, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        plot_curve(ax, run["rows"], quantity, PALETTE[run["settings"]["update_rule"]])
    add_legend(figure, ax, 2)
    add_title(figure, caption(run))
    return save_figure(figure, path)


def plot_curve(ax, rows, quantity, color):
    """Training batches (thin) and evaluation set (marked, in the rule's colour) of "loss" or "accuracy" over steps."""
    steps = [row for row in rows if row["loss"] is not None]
    evaluated = [row for row in rows if row[f"eval_{quantity}"] is not None]
    batches = [row["step"] for row in steps], [row[quantity] for row in steps]
    ax.plot(*batches, color=PALETTE["batch"], lw=0.9, label="training batch")
    points = [row["step"] for row in evaluated], [row[f"eval_{quantity}"] for row in evaluated]
    ax.plot(*points, color=color, marker="o", ms=5, label="evaluation set")
    ax.set(xlabel="step", ylabel=quantity)
    if quantity == "accuracy":
        ax.set_ylim(0, 1.02)
    ax.grid(alpha=0.3)
    return ax


def save_attention_maps(path, run):
    """Attention of the first selected layer, averaged over heads: a row per sentence; before, after, difference."""
    sentences, source = run["settings"]["sample_sentences"], run["environment"]["model"]
    if not sentences:
        raise ValueError("SAMPLE_SENTENCES is empty")
    if not (run["folder"] / "model").is_dir():
        raise ValueError("the run saved no model")
    layer = first_layer(run)
    after = attention(run["folder"] / "model", sentences, layer)
    try:
        before = attention(source.get("path") or source["id"], sentences, layer, source.get("revision"))
    except (ValueError, OSError) as error:
        print(f"  attention after training only, the start is not available: {one_line(error)[:150]}")
        before = None
    columns = 1 if before is None else 3
    side = max(3.2, 0.28 * max(len(tokens) for tokens, _ in after) + 1.2)
    figure = new_figure(side * columns + 1.6, side * len(after) + 0.5)
    grid = figure.subplots(len(after), columns, squeeze=False)
    for row, (tokens, weights) in enumerate(after):
        shown = {"after training": weights}
        if before is not None:
            shown = {"before training": before[row][1], **shown, "after - before": weights - before[row][1]}
        top = max(shown[when].max() for when in shown if when != "after - before")
        for ax, (when, values) in zip(grid[row], shown.items(), strict=True):
            difference = when == "after - before"
            limits = (-np.abs(values).max(), np.abs(values).max()) if difference else (0, top)
            image = plot_attention(ax, tokens, values, limits, DIFFERENCE_COLOURS if difference else ATTENTION_COLOURS)
            ax.set_title(when, fontsize=9)
            if when != "before training":
                figure.colorbar(image, ax=ax, shrink=0.8)
    add_title(figure, f"Attention of layer {layer}, mean over heads. {caption(run)}")
    return save_figure(figure, path)


def first_layer(run):
    """Number of the first selected layer: as set, or where a pattern selected, the first number in a weight's name."""
    layers = run["settings"]["attention_layers"]
    if layers != "all":
        return layers[0]
    name = next(iter(run["statistics"]["selected_weights"]), "")
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else 0


def plot_attention(ax, tokens, weights, limits, colours):
    """One attention map, float (tokens, tokens): rows attend to columns. Returns the image, for a colour bar."""
    image = ax.imshow(weights, cmap=colours, vmin=limits[0], vmax=limits[1])
    labels = [plain(token) for token in tokens]
    ax.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=8)
    ax.set_yticks(range(len(tokens)), labels, fontsize=8)
    ax.set(xlabel="attended token", ylabel="attending token")
    return image


def attention(model_name, sentences, layer, revision=None):
    """[(tokens, weights)] per sentence: weights float (tokens, tokens), averaged over the heads of a layer."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = {"revision": revision or "main", "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(model_name, **where)
    # Only the eager implementation hands the attention weights out.
    model = AutoModel.from_pretrained(model_name, attn_implementation="eager", **where).float().eval()
    maps = []
    for sentence in sentences:
        inputs = tokenizer(sentence, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        outputs = model(**inputs, output_attentions=True)
        layers = outputs.get("attentions") or outputs.get("encoder_attentions") or ()
        if layer >= len(layers):
            raise ValueError(f"the model hands out the attention of {len(layers)} layers, not of layer {layer}")
        tokens = [
            tokenizer.convert_tokens_to_string([t]).strip() or t
            for t in tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        ]
        maps.append((tokens, layers[layer][0].mean(dim=0).detach().numpy()))
    return maps


# --- Studies: many runs, rules compared seed by seed ------------------------------------------------------------------


def read_study(folder):
    """The finished runs of a results folder, a list of runs; broken and unfinished ones are skipped with a line."""
    runs = []
    for path in sorted(folder.glob("run_*")):
        try:
            run = run_folder.read(path)
            if run["statistics"]["status"] != "finished":
                raise ValueError(f"its status is {run['statistics']['status']}")
            runs.append(run)
        except (ValueError, OSError) as error:
            print(f"skipped {path}: {one_line(error)}", file=sys.stderr)
    if not runs:
        raise ValueError(f"{folder}: holds no finished run")
    return runs


def group_arms(runs):
    """Arms of a study, a dict of label -> runs by seed: runs that differ in nothing but the seed share an arm.

    A label is the update rule and those settings that differ between the runs of the study.
    """
    counted = [config.counting(run["settings"]) for run in runs]
    for settings in counted:
        del settings["seed"]
    names = {name for settings in counted for name in settings} - {"update_rule"}
    varying = [n for n in sorted(names) if len({str(settings[n]) for settings in counted if n in settings}) > 1]
    arms = {}
    order = sorted(range(len(runs)), key=lambda i: (RULES.index(counted[i]["update_rule"]), str(counted[i])))
    for index in order:
        settings, run = counted[index], runs[index]
        label = ", ".join([settings["update_rule"], *(f"{n} {settings[n]}" for n in varying if n in settings)])
        arms.setdefault(label, {})[run["settings"]["seed"]] = run
    return arms


def rule_of(arm):
    return next(iter(arm.values()))["settings"]["update_rule"]


def final(run, name):
    return run["statistics"]["evaluations"][-1][name]


def seconds(run):
    return sum(run["statistics"][f"seconds_{stage}"] for stage in ("forward", "backward", "quantum", "other"))


def spread(values):
    """(mean, standard deviation, (low, high)) with Student's 95% interval; of one value the mean alone."""
    from scipy import stats

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    deviation = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / np.sqrt(len(values))
    return mean, deviation, (mean - half, mean + half)


def paired(differences):
    """(mean, (low, high), p) of paired differences: bootstrap 95% interval, sign-flip permutation test, two-sided.

    The interval is the percentile bootstrap of the mean, 10,000 resamples with a fixed seed; p enumerates all 2^n flips
    of sign up to n = 13 and samples beyond. Fewer than two differences have neither.
    """
    from scipy import stats

    differences = np.asarray(differences, dtype=float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None, None
    if np.ptp(differences) == 0:
        interval = (mean, mean)
    else:
        drawn = stats.bootstrap((differences,), np.mean, n_resamples=10_000, method="percentile", rng=0)
        interval = (float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))
    flips = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=10_000, alternative="two-sided", rng=0
    )
    return mean, interval, float(flips.pvalue)


def holm(p_values):
    """Holm's step-down adjustment (Scand. J. Statist. 6, 65, 1979) of a family of p-values; None stays None."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted, highest = [None] * len(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted


def half_width(run, examples):
    """Half of the 95% binomial interval of an accuracy measured on that many examples."""
    accuracy = final(run, "accuracy")
    return 1.96 * np.sqrt(accuracy * (1 - accuracy) / examples)


def compare_arms(arms):
    """Paired comparisons of final accuracy, as dicts: each arm with classical, and quantum ones with every control.

    Arms pair seed by seed, and only where they agree in every setting that both rules use.
    """
    rows = []
    for (label, arm), (base_label, base) in itertools.permutations(arms.items(), 2):
        rule, base_rule = rule_of(arm), rule_of(base)
        if rule == base_rule or not (base_rule == "classical" or rule == "quantum"):
            continue
        mine, theirs = (config.counting(next(iter(a.values()))["settings"]) for a in (arm, base))
        if any(mine[n] != theirs[n] for n in mine.keys() & theirs.keys() - {"update_rule", "seed"}):
            continue
        seeds = sorted(arm.keys() & base.keys())
        if not seeds:
            continue
        differences = [final(arm[s], "accuracy") - final(base[s], "accuracy") for s in seeds]
        mean, interval, p = paired(differences)
        width = half_width(base[seeds[0]], base[seeds[0]]["environment"]["data"]["evaluation_examples"])
        row = {"arm": label, "base": base_label, "rule": rule, "base_rule": base_rule, "n": len(seeds)}
        rows.append(row | {"mean": mean, "interval": interval, "p": p, "half_width": width})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def conclude(comparisons):
    """Sentences in plain words: what the numbers allow to conclude, and what they do not."""
    sentences = []
    for row in comparisons:
        if row["rule"] != "quantum":
            continue
        against = f"{row['arm']} against {row['base']} ({ISOLATES[row['base_rule']]})"
        points = f"{100 * row['mean']:+.1f} points"
        if row["p"] is None:
            sentences.append(f"{against}: one seed only ({points}), which allows no conclusion.")
            continue
        low, high = row["interval"]
        numbers = (
            f"{points}, 95% interval {100 * low:+.1f} to {100 * high:+.1f}, p = {row['p_holm']:.3f}, n = {row['n']}"
        )
        if row["p_holm"] >= 0.05:
            found = f"no difference found ({numbers})"
        else:
            found = f"{'better' if row['mean'] > 0 else 'worse'} ({numbers})"
        within = abs(row["mean"]) < row["half_width"]
        caveat = f"; smaller than the evaluation set's own half-width of {100 * row['half_width']:.1f} points"
        sentences.append(f"{against}: {found}{caveat if within else ''}.")
    return sentences or ["The study holds no pair of quantum and another rule, so there is nothing to compare."]


def plot_by_rule(ax, arms, column, label):
    """A column of metrics.csv over steps, one line per arm: mean over seeds, band of one standard deviation."""
    for arm_label, arm in arms.items():
        table = {}
        for run in arm.values():
            for row in run["rows"]:
                if row[column] is not None:
                    table.setdefault(row["step"], []).append(row[column])
        if not table:
            continue
        steps = sorted(table)
        mean = np.array([np.mean(table[step]) for step in steps])
        deviation = np.array([np.std(table[step]) for step in steps])
        style = {"color": PALETTE[rule_of(arm)], "ls": LINE_STYLES[list(arms).index(arm_label) % len(LINE_STYLES)]}
        ax.plot(steps, mean, label=f"{arm_label} (n = {len(arm)})", **style)
        ax.fill_between(steps, mean - deviation, mean + deviation, color=style["color"], alpha=0.1, lw=0)
    ax.set(xlabel="step", ylabel=label)
    ax.grid(alpha=0.3)
    return ax


def plot_differences(ax, comparisons):
    """Paired differences of accuracy in points with bootstrap intervals; grey: the evaluation set's own half-width."""
    for place, row in enumerate(reversed(comparisons)):
        color = PALETTE[row["rule"]]
        if row["interval"]:
            ax.plot([100 * end for end in row["interval"]], [place, place], color=color, lw=2)
        ax.plot(100 * row["mean"], place, "o", color=color)
        ax.fill_betweenx(
            [place - 0.4, place + 0.4], *(100 * s * row["half_width"] for s in (-1, 1)), color="#DDDDDD", lw=0
        )
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(
        range(len(comparisons)), [f"{row['arm']} - {row['base']}" for row in reversed(comparisons)], fontsize=8
    )
    ax.set_xlabel("difference of accuracy, points")
    return ax


def plot_sweep(ax, arms, name, label):
    """Final accuracy against a swept setting: mean and one standard deviation per arm, rules that use it in colour."""
    points = {}
    for arm in arms.values():
        settings = config.counting(next(iter(arm.values()))["settings"])
        mean, deviation, _ = spread([final(run, "accuracy") for run in arm.values()])
        rule = settings["update_rule"]
        if name in settings:
            points.setdefault(rule, []).append((settings[name], mean, deviation or 0))
        else:
            ax.axhline(mean, color=PALETTE[rule], ls="--", lw=1, label=f"{rule}, which does not use it")
    for rule, found in points.items():
        x, mean, deviation = zip(*sorted(found), strict=True)
        ax.errorbar(x, mean, deviation, color=PALETTE[rule], marker="o", capsize=3, label=rule)
    ax.set(xlabel=label, ylabel="accuracy")
    ax.grid(alpha=0.3)
    return ax


def plot_cost(ax, arms):
    """Seconds per step of each arm by stage, stacked; circuits per step beside the bar."""
    left = np.zeros(len(arms))
    for stage, color in STAGE_COLOURS.items():
        widths = [
            np.mean([r["statistics"][f"seconds_{stage}"] / r["statistics"]["steps"] for r in arm.values()])
            for arm in arms.values()
        ]
        ax.barh(range(len(arms)), widths, left=left, color=color, label=stage)
        left += widths
    for place, arm in enumerate(arms.values()):
        statistics = next(iter(arm.values()))["statistics"]
        ax.text(
            left[place], place, f" {statistics['circuits'] // statistics['steps']:,} circuits", va="center", fontsize=8
        )
    ax.set_yticks(range(len(arms)), list(arms), fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, left.max() * 1.35)
    ax.set_xlabel("seconds per step")
    return ax


def plot_response(ax, ansatz, shots, name):
    """Decoded mean of a qubit against its encoded x, the others at 0 and at x, with the band of the shots."""
    import quantum_circuits

    n = ansatz.circuit.num_qubits
    shown = min(1, n - 1)  # not the first: in `chain` its neighbours disturb it least
    xs = np.linspace(-1, 1, 41)
    for others, label, color in ((0.0, "other qubits at 0", "#0072B2"), (1.0, "other qubits at x", "#D55E00")):
        groups = others * np.repeat(xs[:, None], n, axis=1)
        groups[:, shown] = xs
        probabilities = [quantum_circuits.outcome_probabilities(ansatz, group) for group in groups]
        means = (np.array(probabilities) @ quantum_circuits.minus_z(n) @ ansatz.inverse.T)[:, shown]
        noise = [np.sqrt(decoded_covariance(ansatz, p)[shown, shown] / shots) for p in probabilities]
        ax.plot(xs, means, color=color, label=label, ls="-" if others == 0 else "--")
        ax.fill_between(xs, means - 2 * np.array(noise), means + 2 * np.array(noise), color=color, alpha=0.15, lw=0)
    ax.plot([-1, 1], [-1, 1], color="black", lw=0.8, label="unbiased")
    ax.set(xlabel="encoded x", title=name)
    return ax


def plot_by_device(ax, arms, value, label):
    """Mean and one standard deviation over the seeds of value(run), an arm per device."""
    for place, arm in enumerate(arms.values()):
        mean, deviation, _ = spread([value(run) for run in arm.values()])
        ax.errorbar(mean, place, xerr=deviation or 0, color=PALETTE["quantum"], marker="o", capsize=4)
    ax.set_yticks(range(len(arms)), list(arms), fontsize=8)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_device_response(ax, arms, groups=24):
    """Decoded means of random groups against their x, measured now on each simulated device: slope 1 is unbiased."""
    import devices
    import quantum_circuits

    colours = itertools.cycle(("#0072B2", "#D55E00", "#009E73", "#CC79A7"))
    for label, arm in arms.items():
        s = config.Settings(**next(iter(arm.values()))["settings"])
        if s.backend == "aer" or s.backend.startswith("ibm"):
            continue
        ansatz = quantum_circuits.build_ansatz(s.circuit, s.num_qubits, s.entangling_angle)
        device, _ = devices.open_device(s.backend, s.num_qubits, s.device_noise == "on")
        backend = devices.DeviceBackend(ansatz, device, mitigation=s.mitigation)
        x = np.random.default_rng(0).uniform(-1, 1, (groups, s.num_qubits))
        decoded = backend.measure(np.arcsin(ansatz.encoding_range * x), s.shots, (0, 1, 0)) @ ansatz.inverse.T
        slope = float((decoded * x).sum() / (x * x).sum())
        text = f"{label.replace(chr(10), ' ')}: slope {slope:.2f}"
        ax.plot(x.ravel(), decoded.ravel(), ".", ms=3, color=next(colours), label=text)
    ax.plot([-1, 1], [-1, 1], color="black", lw=0.8)
    ax.set(xlabel="encoded x", ylabel="decoded mean")
    ax.legend(fontsize=7, frameon=False)
    return ax


def by_device(runs):
    """Quantum runs by device, {name: {seed: run}}: BACKEND, and whether its noise is off or its readout mitigated."""
    found = {}
    for run in runs:
        s = run["settings"]
        if s["update_rule"] == "quantum":
            extras = ["no noise"] * (s["device_noise"] == "off") + ["mitigated"] * (s["mitigation"] == "readout")
            found.setdefault("\n".join([s["backend"], *extras]), {})[s["seed"]] = run
    return found


def decoded_covariance(ansatz, probabilities):
    """Covariance of the measured gradient in one shot, R^-1 Sigma R^-T, float64 (n, n), for max |g| = 1."""
    import quantum_circuits

    return ansatz.inverse @ quantum_circuits.noise_covariance(probabilities) @ ansatz.inverse.T


def plot_covariance(ax, covariance, title):
    """A covariance matrix with its numbers; the colours span twice the off-diagonal entries, to show these."""
    n = len(covariance)
    covariance = np.round(covariance, 2) + 0.0  # without the sign of a zero
    top = max(2 * np.abs(covariance - np.diag(np.diag(covariance))).max(), 0.01)
    ax.imshow(covariance, cmap=DIFFERENCE_COLOURS, vmin=-top, vmax=top)
    for (row, column), value in np.ndenumerate(covariance):
        color = "white" if abs(value) > 0.6 * top else "black"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    ax.set(title=title, xlabel="qubit", ylabel="qubit", xticks=range(n), yticks=range(n))
    return ax


def study_title(runs):
    """What the runs of a study share: model, data and number of examples."""
    return " | ".join(dict.fromkeys(caption(run).split(" examples, ")[0] + " examples" for run in runs))


def save_study_figures(out, runs, arms, comparisons):
    """Every figure of a study, a list of (path, caption)."""
    import quantum_circuits

    figures, title = [], study_title(runs)

    def keep(name, figure, text):
        figures.append((save_figure(figure, out / f"{name}.png"), f"{text} {title}."))

    for name, column, label, text in (
        ("learning_curves", "eval_accuracy", "accuracy", "Accuracy on the evaluation set over training"),
        ("cosine", "cosine", "cosine", "Cosine between the update of the selected weights and their gradient"),
    ):
        figure = new_figure(7, 4)
        ax = plot_by_rule(figure.subplots(), arms, column, label)
        add_legend(figure, ax, 2)
        keep(name, figure, f"{text}: mean over the seeds, band of one standard deviation.")
    if comparisons:
        figure = new_figure(7, 1.2 + 0.35 * len(comparisons))
        plot_differences(figure.subplots(), comparisons)
        text = (
            "Paired differences of final accuracy, 95% bootstrap intervals; grey: the evaluation set's own half-width."
        )
        keep("paired_differences", figure, text)
    for name, label in (("shots", "shots per circuit"), ("entangling_angle", "entangling angle, radians")):
        measured = [r["settings"] for r in runs if name in config.counting(r["settings"])]
        if len({settings[name] for settings in measured}) > 1:
            figure = new_figure(6, 4)
            ax = plot_sweep(figure.subplots(), arms, name, label)
            if name == "shots":
                ax.set_xscale("log")
            add_legend(figure, ax, 2)
            keep(f"accuracy_by_{name}", figure, f"Final accuracy against {label}: mean, one standard deviation.")
    on_devices = by_device(runs)
    if len(on_devices) > 1:
        figure = new_figure(11, 3.8)
        left, middle, right = figure.subplots(1, 3)
        plot_by_device(left, on_devices, lambda run: final(run, "accuracy"), "final accuracy")
        plot_by_device(middle, on_devices, lambda run: run["statistics"]["mean_cosine"], "cosine to the whole gradient")
        middle.set_yticklabels([])
        plot_device_response(right, on_devices)
        text = (
            "What the noise of a device does: accuracy and cosine, mean and one standard deviation over the seeds, and "
            "decoded means of random groups, where a slope below 1 is the bias of the noise."
        )
        keep("devices", figure, text)
    figure = new_figure(7, 1.4 + 0.35 * len(arms))
    ax = plot_cost(figure.subplots(), arms)
    add_legend(figure, ax, 4)
    keep("cost", figure, "Seconds per step and where they go; circuits per step beside the bars.")

    settings = next((r["settings"] for r in runs if config.measures(r["settings"]["update_rule"])), None)
    settings = settings or runs[0]["settings"]
    n, angle, shots = settings["num_qubits"], settings["entangling_angle"], settings["shots"]
    figure = new_figure(10, 3.2)
    axes = figure.subplots(1, len(quantum_circuits.CIRCUITS), sharey=True)
    for ax, name in zip(np.atleast_1d(axes), quantum_circuits.CIRCUITS, strict=True):
        plot_response(ax, quantum_circuits.build_ansatz(name, n, angle), shots, name)
    np.atleast_1d(axes)[0].set_ylabel(f"decoded mean of qubit {min(1, n - 1)}")
    add_legend(figure, ax, 3)
    keep("response", figure, f"Response of each circuit, {n} qubits, band of two standard deviations at {shots} shots.")

    ansatz = quantum_circuits.build_ansatz(settings["circuit"], n, angle)
    together = decoded_covariance(ansatz, quantum_circuits.outcome_probabilities(ansatz, np.full(n, 0.6)))
    figure = new_figure(7.5, 3.8)
    left, right = figure.subplots(1, 2)
    plot_covariance(left, together, "quantum")
    # With independent counts Sigma keeps its diagonal only.
    sigma = ansatz.response @ together @ ansatz.response.T
    plot_covariance(right, ansatz.inverse @ np.diag(np.diag(sigma)) @ ansatz.inverse.T, "independent")
    text = f"Covariance of the measured gradient in one shot, {settings['circuit']}, every x = 0.6 and max |g| = 1."
    keep("covariance", figure, text)

    for rule in RULES:
        kept = next(
            (r for r in runs if r["settings"]["update_rule"] == rule and (r["folder"] / "model").is_dir()), None
        )
        if kept:
            try:
                path = save_attention_maps(out / f"attention_{rule}.png", kept)
                seed = kept["settings"]["seed"]
                figures.append(
                    (path, f"Attention before and after training and their difference, {rule}, seed {seed}.")
                )
            except (ValueError, OSError) as error:
                print(f"  no attention maps of {rule}: {one_line(error)}")
    return figures


def analyze_study(folder):
    """Tables, figures and report.html / report.md of all finished runs in a results folder, in FOLDER/analysis/."""
    runs = read_study(folder)
    arms = group_arms(runs)
    comparisons = compare_arms(arms)
    sentences = conclude(comparisons)
    out = folder / "analysis"
    out.mkdir(exist_ok=True)
    figures = save_study_figures(out, runs, arms, comparisons)
    content = report_content(runs, arms, comparisons, sentences, figures)
    write_report(out, content)
    summary = {"arms": {label: sorted(arm) for label, arm in arms.items()}, "comparisons": comparisons}
    text = json.dumps(summary | {"conclusion": sentences}, indent=2, default=float) + "\n"
    config.write_atomically(out / "comparisons.json", lambda path: path.write_text(text, encoding="utf-8"))
    for title, header, rows in content["tables"][:2]:
        print(f"\n{title}")
        widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows]:
            print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))
    print()
    for sentence in sentences:
        print(f"- {sentence}")
    return [path for path, _ in figures] + [out / "report.html", out / "report.md", out / "comparisons.json"]


def report_content(runs, arms, comparisons, sentences, figures):
    """What both reports say: conclusion, tables as (title, header, rows of text), and figures as (path, caption)."""

    def number(value, form):
        return "-" if value is None else form.format(value)

    def bounds(interval, form):
        return "-" if interval is None else " to ".join(form.format(end) for end in interval)

    per_arm = []
    for label, arm in arms.items():
        mean, deviation, interval = spread([final(run, "accuracy") for run in arm.values()])
        loss, loss_deviation, _ = spread([final(run, "loss") for run in arm.values()])
        time_taken = spread([seconds(run) for run in arm.values()])[0]
        interval = interval and [min(max(end, 0.0), 1.0) for end in interval]  # Student knows no bounds, accuracy does
        cells = [label, len(arm), f"{mean:.4f}", number(deviation, "{:.4f}"), bounds(interval, "{:.4f}")]
        per_arm.append([*cells, f"{loss:.4f}", number(loss_deviation, "{:.4f}"), f"{time_taken:.1f}"])
    pairs = []
    for row in comparisons:
        small = "yes" if abs(row["mean"]) < row["half_width"] else "no"
        cells = [row["arm"], row["base"], row["n"], f"{100 * row['mean']:+.2f}"]
        cells += [bounds(row["interval"] and [100 * end for end in row["interval"]], "{:+.2f}")]
        pairs.append([*cells, number(row["p"], "{:.3f}"), number(row["p_holm"], "{:.3f}"), small])
    examples = runs[0]["environment"]["data"]["evaluation_examples"]
    width = half_width(runs[0], examples)
    shared = {
        name: value
        for name, value in runs[0]["settings"].items()
        if all(run["settings"][name] == value for run in runs) and name not in ("results_dir", "sample_sentences")
    }
    provenance = []
    for run in runs:
        environment = run["environment"]
        commit = (environment.get("git_commit") or "-")[:10] + ("+" if environment.get("git_dirty") else "")
        cells = [run["folder"].name, run["settings"]["update_rule"], run["settings"]["seed"], commit]
        provenance.append([*cells, environment.get("initial_weights_sha256", "-")[:10], f"{seconds(run):.1f}"])
    packages = runs[0]["environment"].get("packages", {})
    return {
        "title": "Does the quantum part help?",
        "caption": study_title(runs),
        "sentences": sentences,
        "note": f"Evaluated on {examples} sentences, whose own 95% half-width is {100 * width:.1f} points: a single "
        "accuracy is known no better than that. Intervals of means are Student's, of paired differences percentile "
        "bootstraps; p-values are sign-flip permutation tests, corrected by Holm over all comparisons here.",
        "tables": [
            (
                "Final accuracy, loss and time",
                ["arm", "n", "accuracy", "sd", "95% interval", "loss", "sd", "seconds"],
                per_arm,
            ),
            (
                "Paired differences of accuracy, points",
                ["arm", "minus", "n", "difference", "95% interval", "p", "p (Holm)", "below half-width"],
                pairs,
            ),
            ("Settings all runs share", ["setting", "value"], [[k, json.dumps(v)] for k, v in shared.items()]),
            ("Versions", ["package", "version"], sorted(packages.items())),
            ("Runs", ["run", "rule", "seed", "commit", "initial weights", "seconds"], provenance),
        ],
        "figures": figures,
    }


def write_report(out, content):
    """report.html, one file with everything inside, and report.md beside its figures, from the same content."""
    escape = html.escape
    parts = [
        f"<h1>{escape(content['title'])}</h1><p class=caption>{escape(content['caption'])}</p><h2>Conclusion</h2><ul>"
    ]
    parts += [f"<li>{escape(sentence)}</li>" for sentence in content["sentences"]]
    parts.append(f"</ul><p>{escape(content['note'])}</p>")
    lines = [f"# {content['title']}", "", content["caption"], "", "## Conclusion", ""]
    lines += [f"- {sentence}" for sentence in content["sentences"]] + ["", content["note"], ""]

    def add_table(title, header, rows):
        cells = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{escape(title)}</h2><div class=wide><table><tr>{cells}</tr>{body}</table></div>")
        lines.extend([f"## {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)])
        lines.extend("| " + " | ".join(str(c).replace("|", r"\|") for c in row) + " |" for row in rows)
        lines.append("")

    for table in content["tables"][:2]:
        add_table(*table)
    parts.append("<h2>Figures</h2>")
    lines += ["## Figures", ""]
    for path, text in content["figures"]:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">')
        parts.append(f"<figcaption>{escape(text)}</figcaption></figure>")
        lines += [f"![{text}]({path.name})", "", text, ""]
    for table in content["tables"][2:]:
        add_table(*table)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(content['title'])}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style><main>{''.join(parts)}</main></html>\n"
    )
    config.write_atomically(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    markdown = "\n".join(lines)
    config.write_atomically(out / "report.md", lambda path: path.write_text(markdown, encoding="utf-8"))


if __name__ == "__main__":
    config.run_as_script(main)
