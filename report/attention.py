"""Attention maps of a run, before and after training."""

import re

import numpy as np

from report.figures import add_title, caption, literal, new_figure, one_line, save_figure, task

WEIGHT_COLOURS, DIFFERENCE_COLOURS = "viridis", "PuOr"
MAX_TOKENS = 24  # longer sentences are cut, for the labels of the axes to stay legible


def save_attention_maps(path, run):
    """Save the attention maps of the sample sentences as a figure, and return the path; raises as maps_of_run does."""
    return save_maps(path, maps_of_run(run), title_of(run))


def save_attention_of_several(out, runs):
    """Save attention_RULE.png of runs of different rules in the folder out, whose differences share one colour scale.

    Returns a list of (path, run); a run without maps is left out with a line.
    """
    found, saved = [], []
    for run in runs:
        name = f"attention_{run['settings']['update_rule']}"
        try:
            found.append((out / f"{name}.png", run, maps_of_run(run)))
        except (ValueError, OSError) as error:
            print(f"  no {name}: {one_line(error)}")
    largest = max((largest_difference(columns) for _, _, columns in found), default=0)
    for path, run, columns in found:
        saved.append((save_maps(path, columns, title_of(run), largest), run))
    return saved


def title_of(run):
    """The title of a run's attention maps."""
    return f"Attention of layer {first_selected_layer(run)}, mean over heads. {caption(run)}"


def maps_of_run(run):
    """Columns of save_maps for one run: before training, after training, difference, of the first selected layer.

    The model from before training is taken from the disk alone; if it is not there, only the maps after training are
    shown. Raises ValueError if there are no sentences or no saved model, ValueError or OSError if it cannot be loaded.
    """
    sentences, source = run["settings"]["sample_sentences"], run["environment"]["model"]
    if not sentences:
        raise ValueError("SAMPLE_SENTENCES is empty")
    if not (run["folder"] / "model").is_dir():
        raise ValueError("the run saved no model")
    layer = first_selected_layer(run)
    after = attention_maps(run["folder"] / "model", sentences, layer)
    try:
        before = attention_maps(source.get("path") or source["id"], sentences, layer, source.get("revision"))
    except (ValueError, OSError) as error:
        print(f"  attention after training only, the start is not available: {one_line(error)[:150]}")
        return {"after training": after}
    return {"before training": before, "after training": after, "after - before": None}


def save_attention_of_both(path, run, base):
    """Save the attention maps of two trained models side by side on one colour scale, and return the path.

    run, base: of the same model and sample sentences; raises as save_attention_maps does.
    """
    if not all((r["folder"] / "model").is_dir() for r in (run, base)):
        raise ValueError("one of the runs saved no model")
    layer, sentences = first_selected_layer(run), run["settings"]["sample_sentences"]
    maps = {r["settings"]["update_rule"]: attention_maps(r["folder"] / "model", sentences, layer) for r in (base, run)}
    name, base_name = run["settings"]["update_rule"], base["settings"]["update_rule"]
    text = f"Attention of layer {layer} after training, mean over heads, seed {run['settings']['seed']}. {task(run)}"
    return save_maps(path, {**maps, f"{name} - {base_name}": None}, text)


def largest_difference(columns):
    """The largest absolute difference between two columns of maps, as save_maps takes them; 0 for a single one."""
    *maps, _ = columns.values()
    return max((np.abs(two - one).max() for (_, one), (_, two) in zip(*maps, strict=True)), default=0) if maps else 0


def save_maps(path, columns, title, largest=None):
    """Save attention maps as a figure, a row per sentence, and return the path.

    columns: dict of title -> list of (tokens, weights), one or two of them, which share their colour scale; a third,
    whose value is None, is the second minus the first. largest: end of the differences' scale; None is their own.
    """
    *maps, _ = columns.values() if len(columns) > 1 else [*columns.values(), None]
    reach = max(largest_difference(columns) if largest is None else largest, 1e-9)
    side = max(3.2, 0.28 * max(len(tokens) for tokens, _ in maps[0]) + 1.2)
    figure = new_figure(side * len(columns) + 1.6, side * len(maps[0]) + 0.5)
    grid = figure.subplots(len(maps[0]), len(columns), squeeze=False)
    for axes, *found in zip(grid, *maps, strict=True):
        tokens, top = found[0][0], max(weights.max() for _, weights in found)
        for ax, (_, weights) in zip(axes, found, strict=False):
            plot_attention(ax, tokens, weights, (0, top), WEIGHT_COLOURS)
        if len(columns) > 1:
            plot_attention(axes[2], tokens, found[1][1] - found[0][1], (-reach, reach), DIFFERENCE_COLOURS)
        for ax, when in zip(axes, columns, strict=True):
            ax.set_title(when, fontsize=9)
        for ax in axes[len(found) - 1 :]:
            figure.colorbar(ax.images[0], ax=ax, shrink=0.8)
    add_title(figure, title)
    return save_figure(figure, path)


def first_selected_layer(run):
    """Number of the first layer whose weights were selected: as set, or the first number in the name of a weight."""
    layers = run["settings"]["attention_layers"]
    if layers != "all":
        return layers[0]
    name = next(iter(run["statistics"]["selected_weights"]), "")
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else 0


def plot_attention(ax, tokens, weights, limits, colours):
    """Plot one attention map, float (tokens, tokens): each row attends to the columns.

    limits: (lowest, highest) of the colour scale. colours: name of a colour map.
    """
    ax.imshow(weights, cmap=colours, vmin=limits[0], vmax=limits[1])
    labels = [literal(token) for token in tokens]
    ax.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=8)
    ax.set_yticks(range(len(tokens)), labels, fontsize=8)
    ax.set(xlabel="attended token", ylabel="attending token")
    return ax


def attention_maps(model_name, sentences, layer, revision=None):
    """Attention of one layer: for each sentence (tokens, weights), weights float (tokens, tokens), mean over heads.

    model_name: a folder, or the id of a model in the hub's cache; nothing is downloaded. Raises ValueError if the model
    has no such layer, ValueError or OSError if it cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer  # slow to import, and needed here alone
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = {"revision": revision or "main", "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(model_name, **where)
    # Only the eager implementation returns the attention weights.
    model = AutoModel.from_pretrained(model_name, attn_implementation="eager", **where).float().eval()
    maps = []
    for sentence in sentences:
        inputs = tokenizer(sentence, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        outputs = model(**inputs, output_attentions=True)
        layers = outputs.get("attentions") or outputs.get("encoder_attentions") or ()
        if layer >= len(layers):
            raise ValueError(f"the model returns the attention of {len(layers)} layers, not of layer {layer}")
        tokens = [
            tokenizer.convert_tokens_to_string([t]).strip() or t
            for t in tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        ]
        maps.append((tokens, layers[layer][0].mean(dim=0).detach().numpy()))
    return maps
