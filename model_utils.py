"""Model, tokenizer, data set, selected attention weights, evaluation.

transformers and datasets are imported inside the functions that need them: they are slow to import, and
read HF_HUB_OFFLINE once, at import, after hub.hub_problem has had the chance to set it.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

import config
from harness import hub, tables

USUAL_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
EVALUATION_SPLITS = ("validation", "validation_matched", "dev", "valid", "val", "test")
MANY_UNKNOWN = 0.05  # part of the tokens
HELD_OUT = 0.2  # part of the training rows that becomes the evaluation split if there is none
# The small model and the sentences in this repository, and the published ones that they replace without a hub.
EMBEDDED = Path(__file__).parent / "embedded"
PUBLISHED_MODEL = "distilbert-base-uncased"
PUBLISHED_DATA = ("glue", "sst2")

# Names of the attention weights of one layer; the group is the layer's number. In ALBERT layers share sets.
FUSED = ("c_attn", "in_proj")  # one weight that holds q, k and v
ATTENTION_WEIGHTS = (
    r"(?:^|\.)transformer\.layer\.(\d+)\.attention\.(?:q|k|v|out)_lin\.weight$",  # DistilBERT
    r"(?:^|\.)encoder\.layer\.(\d+)\.attention\."  # BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa, Longformer
    r"(?:self\.(?:(?:query|key|value)(?:_proj|_global)?|in_proj)|output\.dense)\.weight$",
    r"(?:^|\.)albert_layer_groups\.(\d+)\.albert_layers\.\d+\.attention\.(?:query|key|value|dense)\.weight$",  # ALBERT
    r"(?:^|\.)h\.(\d+)\.attn\.c_(?:attn|proj)\.weight$",  # GPT-2
)


class Example(NamedTuple):
    """A labelled text, or pair of texts; label from 0."""

    text: str
    pair: str | None
    label: int


class Data(NamedTuple):
    """Training and evaluation examples, drawn without overlap, and where they come from (for environment.json)."""

    train: list[Example]
    evaluation: list[Example]
    source: dict


# --- Data -------------------------------------------------------------------------------------------------------------


def load_data(settings):
    """Read the data set and draw a run's Data. Raises OutOfReach if the hub cannot give it, else ValueError."""
    name = settings.dataset_name
    if config.is_local(name):
        path = EMBEDDED / "sentences" if name == "embedded" else Path(os.path.expanduser(name))
        train, evaluation, source = read_local(path, settings.seed)
        source["kind"] = "embedded" if name == "embedded" else "local"
    else:
        train, evaluation, source = read_hub(settings)
    columns = text_columns(settings, train.columns)
    sizes = {"TRAIN_SIZE": train, "EVAL_SIZE": evaluation}
    if wrong := [line for name, rows in sizes.items() for line in misfits(rows, columns, settings, name)]:
        raise ValueError("; ".join(wrong))
    drawn = [draw_examples(rows, columns, settings, name) for name, rows in sizes.items()]
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    sizes = {"training_examples": len(drawn[0]), "evaluation_examples": len(drawn[1])}
    return Data(*drawn, source | sizes | {"columns": columns, "sha256_of_examples": digest})


def read_local(path, seed):
    """Read a folder with train.* and validation.*, or one file: (training rows, evaluation rows, source).

    Rows are DataFrames, see tables.read_table. Without an evaluation file it is HELD_OUT of the training rows, drawn.
    """
    if not path.exists():
        raise ValueError(f"DATASET_NAME = {str(path)!r}: no such file or folder")
    files = {"train": path}
    if path.is_dir():
        splits = ("train", *EVALUATION_SPLITS)
        found = [file for file in sorted(path.iterdir()) if file.stem in splits and file.suffix in config.FILE_ENDINGS]
        files = {file.stem: file for file in found}
        if "train" not in files or len(files) < len(found):
            endings, names = ", ".join(config.FILE_ENDINGS), ", ".join(file.name for file in found) or "none"
            required = f"must hold one train file ({endings}) and at most one of any other split, holds {names}"
            raise ValueError(f"DATASET_NAME = {str(path)!r}: {required}")
    train = tables.read_table(files["train"])
    split = next((split for split in EVALUATION_SPLITS if split in files), None)
    if split:
        return train, tables.read_table(files[split]), {"path": str(path), "evaluation": split}
    if len(train) < 2:
        raise ValueError(f"{path}: must hold at least two rows, one of them for evaluation")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round(HELD_OUT * len(order)))
    source = {"path": str(path), "evaluation": f"{HELD_OUT:.0%} held out of train"}
    return train.iloc[order[held:]], train.iloc[order[:held]], source


def read_hub(settings):
    """Read a hub data set: (training rows, evaluation rows, source), as read_local. Raises OutOfReach or ValueError.

    source["revision"] is the commit that DATASET_REVISION, "" for the newest, stands for.
    """
    name, subset, revision = settings.dataset_name, settings.dataset_config, settings.dataset_revision
    hub_id = hub.HUB_IDS.get(name, name)
    problem = hub.hub_problem(f"datasets/{hub_id}/resolve/{revision or 'main'}/README.md")
    import datasets

    datasets.utils.logging.set_verbosity_error()
    try:
        splits = datasets.load_dataset(hub_id, subset or None, revision=revision or None)
    except Exception as error:  # the hub's libraries raise many kinds; each means that the data cannot be had
        what = f"DATASET_NAME = {name!r}, DATASET_CONFIG = {subset!r}"
        raise hub.OutOfReach(what, hub.hub_reason(error, problem)) from error
    evaluation = next((split for split in EVALUATION_SPLITS if split in splits), None)
    if "train" not in splits or evaluation is None:
        raise ValueError(f"DATASET_NAME = {name!r}: must have train and validation or test, has {', '.join(splits)}")
    tables = [splits[split].to_pandas().rename_axis(f"{name} {split}") for split in ("train", evaluation)]
    for table in tables:
        table.index += 1
    files = splits["train"].cache_files
    commit = Path(files[0]["filename"]).parent.name if files else None  # its folder is named by the commit
    return *tables, {"kind": "hub", "id": hub_id, "revision": commit, "config": subset, "evaluation": evaluation}


def text_columns(settings, columns):
    """The one or two names of columns that hold the texts: TEXT_COLUMNS, those of the GLUE task, or the usual ones."""
    if settings.text_columns:
        return settings.text_columns
    if config.is_glue(settings.dataset_name):
        return config.GLUE[settings.dataset_config][1]
    for usual in USUAL_COLUMNS:
        if set(usual) <= set(columns):
            return usual
    raise ValueError(
        f"TEXT_COLUMNS = []: no column has a usual name, must be one or two of {', '.join(map(str, columns))}"
    )


def misfits(rows, columns, settings, size_name):
    """What of the settings does not fit rows of data: sentences, a list. Arguments as those of draw_examples."""
    where, size = rows.index.name, getattr(settings, size_name.lower())
    names = ", ".join(map(str, rows.columns))
    missing = [column for column in (*columns, settings.label_column) if column not in rows.columns]
    wrong = [f"{where}: has no column {column!r}, must be one of {names}" for column in missing]
    if size > len(rows):
        wrong.append(f"{size_name} = {size}: must be from 0 to {len(rows)}, the rows of {where} (0 = all)")
    return wrong


def draw_examples(rows, columns, settings, size_name):
    """Draw as many rows as the setting size_name says (0 = all), with SEED: a list of Examples.

    columns: names of the one or two columns of text. Raises ValueError if any label, or a drawn text, is not valid.
    """
    size = getattr(settings, size_name.lower())
    for index, label in rows[settings.label_column].items():
        read_label(label, settings.num_labels, tables.place(rows, index))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    drawn = rows[[settings.label_column, *columns]].iloc[order[: size or None]]
    examples = []
    for index, label, *texts in drawn.itertuples(name=None):
        if not all(isinstance(text, str) and not re.search("[\ud800-\udfff]", text) for text in texts):
            raise ValueError(f"{tables.place(rows, index)}: {', '.join(columns)} = {texts} must be text")
        examples.append(Example(texts[0], (*texts, None)[1], read_label(label, settings.num_labels, "")))
    return examples


def read_label(label, num_labels, where):
    """A label, of any type, as an int; ValueError, saying where it stands, if it is none of 0 to num_labels - 1."""
    try:
        number = int(label)
        if 0 <= number < num_labels and (isinstance(label, str) or number == label):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    required = f"must be a whole number from 0 to {num_labels - 1} (NUM_LABELS = {num_labels})"
    raise ValueError(f"{where}: label {label!r} {required}")


def tokenize(tokenizer, examples, max_length):
    """Tokenize Examples, cut to max_length tokens: a list of dicts for `tokenizer.pad`, each with its "label".

    Raises ValueError if a text has no token.
    """
    texts = [example.text for example in examples]
    pairs = [example.pair for example in examples] if examples and examples[0].pair is not None else None
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    for example, ids in zip(examples, encoded["input_ids"], strict=True):
        if not ids:
            raise ValueError(f"the text {example.text!r} has no token, must have at least one")
    columns = {"label": [example.label for example in examples], **encoded}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_vocabulary(tokenizer, encoded, model, warn):
    """Raise ValueError if tokenized examples have ids that the model has no embedding for; warn(line) where more than
    MANY_UNKNOWN of their tokens are unknown to the tokenizer."""
    ids = [number for item in encoded for number in item["input_ids"]]
    size = model.get_input_embeddings().num_embeddings
    if max(ids) >= size:
        raise ValueError(f"the tokenizer gives id {max(ids)}: must be below {size}, the model's vocabulary")
    unknown = ids.count(tokenizer.unk_token_id) / len(ids) if tokenizer.unk_token_id is not None else 0
    if unknown > MANY_UNKNOWN:
        warn(loud(f"{unknown:.0%} of the tokens are unknown to the tokenizer: another model, or other data?"))


def collate(tokenizer, encoded, device):
    """Pad tokenized examples to the longest one: (inputs, labels) on the device.

    inputs: dict of int64 tensors, shape (batch, length). labels: int64 tensor, shape (batch,).
    """
    inputs = tokenizer.pad(encoded, return_tensors="pt").to(device)
    return inputs, inputs.pop("label")


# --- Model ------------------------------------------------------------------------------------------------------------


def load_model(settings):
    """Load the model, float32 weights on the CPU, and its tokenizer: (model, tokenizer, source).

    A head that the model does not bring is drawn with SEED. source: where both come from, a dict for environment.json.
    Raises OutOfReach if the hub cannot give the model, ValueError if it is unreadable or does not fit the settings.
    """
    name = settings.model_name
    local = config.is_local(name)
    path = str(EMBEDDED / "model") if name == "embedded" else os.path.expanduser(name) if local else name
    if local and not Path(path).is_dir():
        raise ValueError(f"MODEL_NAME = {name!r}: no such folder")
    if local and (Path(path) / "metrics.csv").exists():
        raise ValueError(f"MODEL_NAME = {name!r}: is a run folder, give its model/ folder")
    revision = settings.model_revision or "main"
    problem = "" if local else hub.hub_problem(f"{name}/resolve/{revision}/config.json")
    import huggingface_hub
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not local:
        huggingface_hub.utils.enable_progress_bars()  # of downloads: the weights are hundreds of megabytes
    # Without the last, transformers asks on the terminal whether to run a model's code.
    where = {"local_files_only": local or bool(problem), "revision": revision, "trust_remote_code": False}
    head = {"num_labels": settings.num_labels, "ignore_mismatched_sizes": True}  # another head is refused below
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        own_config = AutoConfig.from_pretrained(path, **where)
        torch.manual_seed(settings.seed)  # the head is drawn from the global random state
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, **head, **where
        )
    except Exception as error:  # loaders raise many kinds; each means that this model cannot be had
        if "custom code" in str(error):
            raise ValueError(f"MODEL_NAME = {name!r}: cannot be loaded: its own code is never run") from error
        if local:
            raise ValueError(f"MODEL_NAME = {name!r}: cannot be loaded: {error}") from error
        raise hub.OutOfReach(f"MODEL_NAME = {name!r}: cannot be loaded", hub.hub_reason(error, problem)) from error
    refuse_bad_weights(name, settings.num_labels, model, loaded, own_config)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"MODEL_NAME = {name!r}: its tokenizer knows no words, must have its tokenizer's files")
    if tokenizer.pad_token is None:  # GPT-2 has none; its classification head reads the last token before padding
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, *positions(model))
    if settings.max_length > longest:
        raise ValueError(f"MAX_LENGTH = {settings.max_length}: must be at most {longest} with {name}")
    source = {"kind": "embedded" if name == "embedded" else "local", "path": str(Path(path).resolve())}
    if not local:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        commit = Path(cached).parent.name if isinstance(cached, str) else None  # its folder is named by the commit
        source = {"kind": "hub", "id": name, "revision": commit}
    fresh = sorted(loaded["missing_keys"])
    return model, tokenizer, source | {"parameters": sum(p.numel() for p in model.parameters()), "fresh_weights": fresh}


def refuse_bad_weights(name, num_labels, model, loaded, own_config):
    """Raise ValueError if the loaded weights do not fill the encoder or have a head for another number of classes."""
    if loaded["mismatched_keys"]:
        if own_config.num_labels != num_labels:
            raise ValueError(f"NUM_LABELS = {num_labels}: must be {own_config.num_labels}, as the head of {name} has")
        raise ValueError(f"MODEL_NAME = {name!r}: weights of another shape: {sorted(loaded['mismatched_keys'])}")
    encoder = model.base_model_prefix + "."
    missing = sorted(key for key in loaded["missing_keys"] if key.startswith(encoder) and ".pooler." not in key)
    if missing:
        kind, names = model.config.model_type, f"{len(missing)} of the encoder are missing: {missing[0]}, ..."
        raise ValueError(f"MODEL_NAME = {name!r}: its weights are not those of a {kind} model, {names}")


def positions(model):
    """Upper bounds of the input length, in tokens, that the model's position embeddings set: a list of int."""
    bounds = [getattr(model.config, "max_position_embeddings", None) or 0]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa counts positions from padding_idx + 1 on
            bounds.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return [bound for bound in bounds if bound > 0] or [10**9]


def load_or_stand_in(settings, given, warn):
    """(settings, data, model, tokenizer, model source), settings as they are really used.

    Where the hub cannot give the published model or data, the embedded ones stand in, and `warn` is called with a loud
    line for each; a reason that both share stands in the last. What the user named (`given`, see config.Command; or
    another name in config.py) is never replaced: OutOfReach.
    """
    named = (settings.dataset_name, settings.dataset_config)
    named_by_user = given & {"dataset_name", "dataset_config"} or settings.dataset_revision
    reasons = {}
    try:
        data = load_data(settings)
    except hub.OutOfReach as why:
        if named != PUBLISHED_DATA or named_by_user:
            raise
        reasons[f"the embedded sentences stand in for {' '.join(named)}"] = why.reason
        settings = settings._replace(dataset_name="embedded", dataset_config="")
        data = load_data(settings)
        data.source["stands_in_for"] = " ".join(named)

    try:
        model, tokenizer, source = load_model(settings)
    except hub.OutOfReach as why:
        if settings.model_name != PUBLISHED_MODEL or "model_name" in given or settings.model_revision:
            raise
        reasons[f"the embedded model stands in for {settings.model_name}, this is NOT a DistilBERT run"] = why.reason
        settings = settings._replace(model_name="embedded")
        model, tokenizer, source = load_model(settings)
        source["stands_in_for"] = PUBLISHED_MODEL
    last_with = {reason: line for line, reason in reasons.items()}
    for line, reason in reasons.items():
        warn(loud(f"{line}: {reason}" if line == last_with[reason] else line))
    return config.with_learning_rate(settings, given), data, model, tokenizer, source


def loud(text):
    """The text as one line between asterisks, for what must not be missed among the other lines of a run."""
    return f"*** {' '.join(text.split())} ***"


def resolve_stand_ins(runs, given, warn):
    """The settings of every run of a study as they are really used: what stands in is found with the first of them."""
    used = load_or_stand_in(runs[0], given, warn)[0]
    swapped = {name: getattr(used, name) for name in ("model_name", "dataset_name", "dataset_config")}
    return [config.with_learning_rate(run._replace(**swapped), given) for run in runs]


def attention_weights(model, layers, pattern=""):
    """Select attention weights: (weights, note).

    layers: "all" or a sequence of int, from 0. pattern: regular expression on names, replaces layers unless empty.
    weights: dict name -> Parameter, in the model's order. note: a remark for the user, or "".
    Raises ValueError if nothing is found, naming what there is to choose from.
    """
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    choices = ", ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", r"\\d+", name) for name in matrices))
    if pattern:
        chosen = {name: parameter for name, parameter in matrices.items() if re.search(pattern, name)}
        if not chosen:
            raise ValueError(f"ATTENTION_PATTERN = {pattern!r}: matches no weight, must match one of {choices}")
        return chosen, ""
    found, fused = {}, set()
    for name in matrices:
        if match := re.search("|".join(ATTENTION_WEIGHTS), name):
            found.setdefault(int(match[match.lastindex]), []).append(name)
            fused |= {part for part in FUSED if part in name}
    if not found or min(map(len, found.values())) < (2 if fused else 4):
        raise ValueError(
            f"ATTENTION_LAYERS: the attention weights of a {model.config.model_type} model are not known here, set "
            f"ATTENTION_PATTERN to a regular expression that chooses from {choices}"
        )
    total, note = len(found), ""
    if model.config.model_type == "albert":
        total = model.config.num_hidden_layers
        note = f"ALBERT shares weights: its {total} layers use {len(found)} set(s), an update moves every sharing layer"
    elif fused:
        note = f"q, k and v are one fused weight ({fused.pop()})"
    wrong = [layer for layer in (() if layers == "all" else layers) if layer >= total]
    if wrong:
        raise ValueError(f'ATTENTION_LAYERS = {list(layers)}: must be from 0 to {total - 1} with this model, or "all"')
    sets = sorted(found) if layers == "all" else {layer * len(found) // total for layer in layers}
    return {name: matrices[name] for name in matrices if any(name in found[group] for group in sets)}, note


def unused_weights(model, inputs):
    """Names, a set of str, of the trainable parameters that get no gradient when the model runs on `inputs`.

    inputs: dict of tensors of one example. Runs in evaluation mode, so it draws no random number; gradients are kept.
    """
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    was_training = model.training
    model.eval()
    gradients = torch.autograd.grad(model(**inputs).logits.sum(), list(weights.values()), allow_unused=True)
    model.train(was_training)
    return {name for name, gradient in zip(weights, gradients, strict=True) if gradient is None}


def train_attention_alone(model, weights, fresh_weights):
    """Freeze every parameter but the selected weights and the head (attention-only fine-tuning: Touvron et al.,
    2203.09795); the head is what lies outside the encoder, its pooler, and what was drawn anew on loading.

    weights: Parameters by name. fresh_weights: names of those drawn anew.
    """
    for name, parameter in model.named_parameters():
        in_encoder = name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name
        parameter.requires_grad_(name in weights or name in fresh_weights or not in_encoder)


def evaluate(model, tokenizer, encoded, batch_size, device):
    """Evaluate the model on tokenized examples, without dropout, in batches of similar length: (losses, margins).

    losses: cross entropies, nats. margins: logit of the label minus the largest other logit, above 0 where the
    prediction is correct. Both float64 (examples,), in the order of `encoded`.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]["input_ids"]))
    losses, margins = torch.zeros(2, len(encoded), dtype=torch.float64)
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            inputs, labels = collate(tokenizer, [encoded[index] for index in rows], device)
            logits = model(**inputs).logits.double()
            losses[rows] = torch.nn.functional.cross_entropy(logits, labels, reduction="none").cpu()
            own = logits.gather(1, labels[:, None])
            others = logits.scatter(1, labels[:, None], -torch.inf)
            margins[rows] = (own[:, 0] - others.amax(dim=1)).cpu()
    model.train(was_training)
    return losses, margins
