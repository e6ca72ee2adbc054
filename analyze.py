"""Plot runs: `python analyze.py` for the most recent one, `python analyze.py RUN [RUN ...]` for those named.

Figures go to RUN/analysis/. Plot functions take an Axes and return it.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import config

# Okabe & Ito's colour-blind safe colours; what is classical is black everywhere.
PALETTE = {"quantum": "#0072B2", "classical": "#000000", "train": "#999999"}
ATTENTION_COLOURS = "viridis"
MOST_TOKENS = 24  # more do not fit legibly on the axes of an attention map


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders; default: the most recent in --results_dir")
    parser.add_argument(
        "--results_dir", default=config.load([]).results_dir, help="where run folders are [%(default)s]"
    )
    arguments = parser.parse_args(argv)
    folders = [Path(name) for name in arguments.runs] or [most_recent(Path(arguments.results_dir))]
    analysed = 0
    for folder in folders:
        try:
            for figure in analyze_run(read_run(folder)):
                print(f"  {figure}")
            analysed += 1
        except (ValueError, OSError) as error:
            print(f"skipped {folder}: {' '.join(str(error).split())}", file=sys.stderr)
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
    for key, name in (("settings", "config"), ("environment", "environment"), ("statistics", "training_statistics")):
        try:
            run[key] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}.json cannot be read: {error}") from None
    run["rows"] = read_metrics(folder / "metrics.csv")
    return run


def read_metrics(path):
    """Rows of a metrics.csv as dicts of float, None for empty cells; a half-written last row is left out."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [{name: float(value) if value else None for name, value in row.items()} for row in rows]
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


# --- Figures ----------------------------------------------------------------------------------------------------------


def analyze_run(run):
    """Make a run's figures and return their paths."""
    folder, settings, statistics = run["folder"], run["settings"], run["statistics"]
    out = folder / "analysis"
    out.mkdir(exist_ok=True)
    print(f"{folder}: {settings['update_rule']}, {statistics['status']} after {len(run['rows']) - 1} steps")
    figures = [save_curves(out / "training_curves.png", run["rows"], caption(run))]
    if (folder / "model").is_dir() and settings["sample_sentences"]:
        figures.append(save_attention_maps(out / "attention_maps.png", run))
    else:
        print("  no attention maps: the run saved no model, or SAMPLE_SENTENCES is empty")
    return figures


def caption(run):
    """What was trained, on what, how: the line that stands with every figure of a run."""
    settings, model, data = run["settings"], run["environment"]["model"], run["environment"]["data"]
    model_name = Path(model["path"]).name if model["kind"] == "local" else settings["model_name"]
    data_name = f"{settings['dataset_name']} {settings['dataset_config']}"
    if data["kind"] == "local":
        data_name = Path(data["path"]).name
    rule = settings["update_rule"]
    if rule == "quantum":
        rule += f" ({settings['circuit']}, {settings['num_qubits']} qubits, {settings['shots']} shots)"
    return f"{model_name} on {data_name.strip()}, {settings['train_size'] or 'all'} examples, {rule}"


def new_figure(width, height):
    """A Figure without pyplot, so that nothing global is touched and nothing waits for a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path):
    config.write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))
    return path


def save_curves(path, rows, title):
    """The figure of loss and accuracy over the steps of one run, saved to path."""
    figure = new_figure(9, 3.6)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    plot_curve(loss_axes, rows, "loss")
    plot_curve(accuracy_axes, rows, "accuracy")
    accuracy_axes.set_ylim(0, 1.02)
    figure.suptitle(title, fontsize=9)
    return save_figure(figure, path)


def plot_curve(ax, rows, quantity):
    """Training batches (thin) and evaluation set (marked) of "loss" or "accuracy" over steps."""
    steps = [row for row in rows if row["step"]]
    evaluated = [row for row in rows if row[f"eval_{quantity}"] is not None]
    ax.plot(
        [row["step"] for row in steps], [row[quantity] for row in steps], color=PALETTE["train"], lw=0.9, label="batch"
    )
    points = [row["step"] for row in evaluated], [row[f"eval_{quantity}"] for row in evaluated]
    ax.plot(*points, color=PALETTE["quantum"], marker="o", ms=5, label="evaluation set")
    ax.set(xlabel="step", ylabel=quantity)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return ax


def save_attention_maps(path, run):
    """Attention of the first selected layer, averaged over heads: a row per sentence, before and after training."""
    settings = run["settings"]
    layer = 0 if settings["attention_layers"] == "all" else settings["attention_layers"][0]
    source = run["environment"]["model"]
    after = attention(run["folder"] / "model", settings["sample_sentences"], layer)
    maps = [("after", after)]
    try:
        maps.insert(0, ("before", attention(source.get("path") or source["id"], settings["sample_sentences"], layer)))
    except (ValueError, OSError) as error:
        print(f"  attention after training only, the start is not available: {' '.join(str(error).split())[:150]}")
    rows, longest = len(after), max(len(tokens) for tokens, _ in after)
    side = max(3.2, 0.28 * longest + 1.2)
    figure = new_figure(side * len(maps) + 0.8, side * rows)
    grid = figure.subplots(rows, len(maps), squeeze=False)
    for column, (when, sentences) in enumerate(maps):
        for row, (tokens, weights) in enumerate(sentences):
            top = max(sentence_maps[row][1].max() for _, sentence_maps in maps)
            ax, image = plot_attention(grid[row][column], tokens, weights, top)
            ax.set_title(f"{when} training", fontsize=9)
            if column == len(maps) - 1:
                figure.colorbar(image, ax=list(grid[row]), shrink=0.8, label="attention (mean over heads)")
    figure.suptitle(f"Layer {layer}. {caption(run)}", fontsize=9)
    return save_figure(figure, path)


def plot_attention(ax, tokens, weights, top):
    """One attention map, float (tokens, tokens), rows attend to columns, colours from 0 to top; returns (ax, image)."""
    image = ax.imshow(weights, cmap=ATTENTION_COLOURS, vmin=0, vmax=top)
    ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    ax.set_yticks(range(len(tokens)), tokens, fontsize=8)
    ax.set(xlabel="attended token", ylabel="attending token")
    return ax, image


def attention(model_name, sentences, layer):
    """[(tokens, weights)] per sentence: weights float (tokens, tokens), averaged over the heads of a layer."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_name, local_files_only=True)
    # Only the eager implementation hands the attention weights out.
    model = AutoModel.from_pretrained(model_name, attn_implementation="eager", local_files_only=True).float().eval()
    maps = []
    for sentence in sentences:
        inputs = tokenizer(sentence, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        weights = model(**inputs, output_attentions=True).attentions[layer][0].mean(dim=0)
        tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        maps.append(([token.lstrip("Ġ▁") or token for token in tokens], weights.detach().numpy()))
    return maps


if __name__ == "__main__":
    config.run_as_script(main)
