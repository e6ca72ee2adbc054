"""Plot runs: `python analyze.py` for the most recent one, `python analyze.py RUN [RUN ...]` for those named.

Figures go to RUN/analysis/. Plot functions take an Axes and return it.
"""

import csv
import json
import os
import re
import sys
import textwrap
from pathlib import Path

import numpy as np

import config

# Okabe & Ito's colour-blind safe colours; what is classical is black everywhere.
PALETTE = {
    "quantum": "#0072B2",
    "independent": "#D55E00",
    "exact": "#009E73",
    "classical": "#000000",
    "frozen": "#CC79A7",
    "batch": "#BBBBBB",
}
ATTENTION_COLOURS, DIFFERENCE_COLOURS = "viridis", "PuOr"
MOST_TOKENS = 24  # what is longer is cut: more do not fit legibly on the axes of an attention map


def main(argv):
    parser = config.OneLineParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders; default: the most recent in --results_dir")
    parser.add_argument(
        "--results_dir", default=config.load([]).results_dir, help="where run folders are [%(default)s]"
    )
    arguments = parser.parse_args(argv)
    folders = [Path(name) for name in arguments.runs] or [most_recent(Path(os.path.expanduser(arguments.results_dir)))]
    analysed = 0
    for folder in folders:
        try:
            for figure in analyze_run(read_run(folder)):
                print(f"  {figure}")
            analysed += 1
        except (ValueError, OSError) as error:
            print(f"skipped {folder}: {one_line(error)}", file=sys.stderr)
    return 0 if analysed else 2


# --- Reading ----------------------------------------------------------------------------------------------------------


def most_recent(results_dir):
    """The run folder whose name, and number within its second, is the latest; ValueError where there is none."""
    found = []
    for folder in results_dir.glob("run_*_*"):
        date, clock, *number = folder.name.removeprefix("run_").split("_")
        if folder.is_dir() and all(part.isdigit() for part in (date, clock, *number)):
            found.append((date, clock, int(number[0]) if number else 0, folder))
    if not found:
        raise ValueError(f"RESULTS_DIR = {str(results_dir)!r}: holds no run folder, `python train.py` makes one")
    return max(found)[-1]


def read_run(folder):
    """A run as a dict: folder, settings, environment, statistics, rows of metrics.csv. A broken one is a ValueError."""
    run = {"folder": folder}
    if not folder.is_dir():
        raise ValueError("no such run folder")
    needed = {
        "config": set(config.Settings._fields),
        "environment": {"model", "data"},
        "training_statistics": {"status", "steps", "evaluations", "selected_weights"},
    }
    for key, name in (("settings", "config"), ("environment", "environment"), ("statistics", "training_statistics")):
        try:
            run[key] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}.json cannot be read: {error}") from None
        if not isinstance(run[key], dict) or needed[name] - run[key].keys():
            lacking = sorted(needed[name] - set(run[key] if isinstance(run[key], dict) else ()))
            raise ValueError(f"{name}.json lacks {', '.join(lacking)}: of an older layout, or not of a run that began")
    run["rows"] = read_metrics(folder / "metrics.csv")
    return run


def read_metrics(path):
    """Rows of a metrics.csv as dicts of float, None for empty cells; a half-written last row is left out."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        if rows and {"step", "loss", "accuracy", "eval_loss", "eval_accuracy"} - rows[0].keys():
            raise ValueError("its columns are not those of a run")
        return [{name: float(value) if value else None for name, value in row.items()} for row in rows]
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


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
    if rule not in ("classical", "frozen"):
        rule += f" ({settings['circuit']}, {settings['num_qubits']} qubits, {settings['shots']} shots)"
    return f"{' on '.join(names)}, {settings['train_size'] or 'all'} examples, {rule}"


def new_figure(width, height):
    """A Figure without pyplot, so that nothing global is touched and nothing waits for a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def add_title(figure, text):
    """A title over the whole figure, wrapped to its width."""
    figure.suptitle(plain(textwrap.fill(text, int(13 * figure.get_figwidth()))), fontsize=9)


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
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
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


if __name__ == "__main__":
    config.run_as_script(main)
