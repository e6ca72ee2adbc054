"""Attention maps of a run, before and after training."""

import re

import numpy as np

from report.figures import add_title, caption, literal, new_figure, one_line, save_figure

WEIGHT_COLOURS, DIFFERENCE_COLOURS = "viridis", "PuOr"
MAX_TOKENS = 24  # longer sentences are cut, for the labels of the axes to stay legible


def save_attention_maps(path, run):
    """Save the attention maps of the sample sentences as a figure, and return the path.

    A row per sentence: before training, after training, difference, of the first selected layer, averaged over heads.
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
            plot_attention(ax, tokens, values, limits, DIFFERENCE_COLOURS if difference else WEIGHT_COLOURS)
            ax.set_title(when, fontsize=9)
            if when != "before training":
                figure.colorbar(ax.images[0], ax=ax, shrink=0.8)
    add_title(figure, f"Attention of layer {layer}, mean over heads. {caption(run)}")
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
    where = {"revision": revision or "main", "local_files_only": True}
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
