"""Model, tokenizer, data set, selected attention weights, evaluation.

transformers and datasets are imported inside the functions that need them: they are slow to import, and they read
HF_HUB_OFFLINE once, at import, after `hub_in_reach` has had the chance to set it.
"""

import csv
import hashlib
import json
import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch

# Names that today's hub knows under their owner.
HUB_IDS = {
    "glue": "nyu-mll/glue",
    "sst2": "stanfordnlp/sst2",
    "imdb": "stanfordnlp/imdb",
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
}
GLUE_COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
USUAL_COLUMNS = (("sentence",), ("text",), ("sentence1", "sentence2"), ("premise", "hypothesis"))
TRAIN_SPLITS = ("train",)
EVALUATION_SPLITS = ("validation", "validation_matched", "dev", "valid", "val", "test")
HELD_OUT = 0.2  # part of the training rows that becomes the evaluation split where there is none
LOCAL_ADVICE = "set MODEL_NAME to a local folder and DATASET_NAME to a local folder or file"

# Weights of the attention of one layer, which is group 1. Shared by all layers in ALBERT, q, k and v fused in GPT-2.
ATTENTION_WEIGHTS = (
    r"(?:^|\.)transformer\.layer\.(\d+)\.attention\.(?:q|k|v|out)_lin\.weight$",  # DistilBERT
    r"(?:^|\.)encoder\.layer\.(\d+)\.attention\."  # BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa-v2
    r"(?:self\.(?:query|key|value)(?:_proj)?|output\.dense)\.weight$",
    r"(?:^|\.)albert_layer_groups\.(\d+)\.albert_layers\.\d+\.attention\.(?:query|key|value|dense)\.weight$",  # ALBERT
    r"(?:^|\.)h\.(\d+)\.attn\.c_(?:attn|proj)\.weight$",  # GPT-2
)


class Example(NamedTuple):
    """A labelled text, or pair of texts."""

    text: str
    pair: str | None
    label: int


class Data(NamedTuple):
    """Training and evaluation examples, drawn without overlap, and where they come from (for environment.json)."""

    train: list[Example]
    evaluation: list[Example]
    source: dict


def hub_in_reach(seconds=8.0):
    """Whether the model hub answers within `seconds`; where it does not, the hub's libraries are set offline.

    Without this they would retry for minutes. Call it before they are imported. HF_ENDPOINT and HF_HUB_OFFLINE count.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answers = []

    def ask():
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)
        except (OSError, ValueError):
            answers.append(False)

    asking = threading.Thread(target=ask, daemon=True)  # a name look-up has no time limit of its own
    asking.start()
    asking.join(seconds)
    if answers != [True]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return answers == [True]


# --- Data -------------------------------------------------------------------------------------------------------------


def load_data(settings):
    """The Data of a run. Raises ValueError, in one line, for whatever is wrong with the data set or its settings."""
    name = settings.dataset_name
    if is_local(name):
        train, evaluation, source = read_local(Path(name).expanduser(), settings.seed)
    else:
        train, evaluation, source = read_hub(name, settings.dataset_config)
    columns = text_columns(settings, train.columns)
    drawn = [draw_examples(train, columns, settings, "TRAIN_SIZE")]
    drawn.append(draw_examples(evaluation, columns, settings, "EVAL_SIZE"))
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    return Data(*drawn, source | {"columns": columns, "sha256_of_examples": digest})


def is_local(name):
    """Whether a setting names a folder or file rather than a hub id: it exists, or can only be a path."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


class Table(NamedTuple):
    """Rows of a split: rows[index] is a dict by column, `indices` are the split's, `where` names it in messages."""

    rows: object
    columns: list[str]
    where: str
    indices: list[int]


def read_local(path, seed):
    """(training Table, evaluation Table, source) of a folder with train.* and validation.*, or of one file."""
    if not path.exists():
        raise ValueError(f"DATASET_NAME = {str(path)!r}: no such file or folder")
    if path.is_dir():
        files = {
            split: [file for file in sorted(path.glob(f"{split}.*")) if file.suffix in READERS]
            for split in TRAIN_SPLITS + EVALUATION_SPLITS
        }
        for found in files.values():
            if len(found) > 1:
                raise ValueError(f"DATASET_NAME = {str(path)!r}: {found[0].name} and {found[1].name} are one too many")
        if not files["train"]:
            raise ValueError(
                f"DATASET_NAME = {str(path)!r}: holds no train file, allowed are train{{{', '.join(READERS)}}}"
            )
        train = read_table(files["train"][0])
        for split in EVALUATION_SPLITS:
            if files[split]:
                return train, read_table(files[split][0]), {"kind": "local", "path": str(path), "evaluation": split}
    else:
        train = read_table(path)
    order = torch.randperm(len(train.rows), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round(HELD_OUT * len(order)))
    train, evaluation = train._replace(indices=order[held:]), train._replace(indices=order[:held])
    return train, evaluation, {"kind": "local", "path": str(path), "evaluation": f"{HELD_OUT:.0%} held out of train"}


def read_delimited(path, **dialect):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, **dialect))


def read_json_lines(path):
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object")
            rows.append(row)
    return rows


def read_parquet(path):
    from datasets import Dataset

    return Dataset.from_parquet(str(path), keep_in_memory=True).to_list()


READERS = {
    ".tsv": lambda path: read_delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE),  # as GLUE writes it
    ".csv": read_delimited,
    ".jsonl": read_json_lines,
    ".json": read_json_lines,
    ".parquet": read_parquet,
}


def read_table(path):
    """The Table of one local file, by its ending; ValueError in one line where it cannot be read or has no rows."""
    if path.suffix not in READERS:
        raise ValueError(f"DATASET_NAME = {str(path)!r}: allowed endings are {', '.join(READERS)}")
    try:
        rows = READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text, byte {error.object[error.start]:#04x} at {error.start}") from None
    except (ValueError, csv.Error, OSError) as error:  # json's error is a ValueError, pyarrow's too
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None
    except Exception as error:  # the datasets library wraps what a reader raises in a class of its own
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {error.__cause__ or error}") from None
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return Table(rows, [column for column in rows[0] if column is not None], str(path), list(range(len(rows))))


def read_hub(name, config):
    """(training Table, evaluation Table, source) of a hub data set; ValueError where it cannot be had."""
    reached = hub_in_reach()
    import datasets

    datasets.disable_progress_bars()
    hub_id = HUB_IDS.get(name, name)
    try:
        splits = datasets.load_dataset(hub_id, config or None)
    except Exception as error:  # the hub's libraries raise many kinds; each means that the data cannot be had
        why = error if reached else "the hub cannot be reached, and no copy is in the cache"
        raise ValueError(
            f"DATASET_NAME = {name!r}, DATASET_CONFIG = {config!r}: {why}; offline, {LOCAL_ADVICE}"
        ) from error
    evaluation = next((split for split in EVALUATION_SPLITS if split in splits), None)
    if "train" not in splits or evaluation is None:
        raise ValueError(
            f"DATASET_NAME = {name!r}: has the splits {', '.join(splits)}: needs train and validation or test"
        )
    tables = []
    for split in ("train", evaluation):
        rows = splits[split]
        tables.append(Table(rows, rows.column_names, f"{name} {split}", list(range(len(rows)))))
    return *tables, {"kind": "hub", "id": hub_id, "config": config, "evaluation": evaluation}


def text_columns(settings, columns):
    """One or two names of columns that hold the texts: as set, of the GLUE task, or the usual ones."""
    if settings.text_columns:
        return settings.text_columns
    if HUB_IDS.get(settings.dataset_name, settings.dataset_name) == HUB_IDS["glue"]:
        return GLUE_COLUMNS[settings.dataset_config]
    for usual in USUAL_COLUMNS:
        if set(usual) <= set(columns):
            return usual
    raise ValueError(f"TEXT_COLUMNS = []: none of the usual names is there, choose from {', '.join(map(str, columns))}")


def draw_examples(table, columns, settings, size_name):
    """Examples of a table, as many as the setting size_name says (0 = all), drawn with the seed; checks all labels."""
    for column in (*columns, settings.label_column):
        if column not in table.columns:
            raise ValueError(f"{table.where}: has no column {column!r}, allowed is one of {', '.join(table.columns)}")
    size, total = getattr(settings, size_name.lower()), len(table.indices)
    if size > total:
        raise ValueError(f"{size_name} = {size}: allowed is 0 to {total}, the rows of {table.where} (0 = all)")
    if isinstance(table.rows, list):
        labels = [row[settings.label_column] for row in table.rows]
    else:  # a hub data set decodes a whole column much faster than row by row
        labels = table.rows[settings.label_column]
    labels = [read_label(label, settings.num_labels, f"{table.where}, row {i}") for i, label in enumerate(labels, 1)]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    examples = []
    for index in (table.indices[place] for place in order[: size or total]):
        texts = [table.rows[index][column] for column in columns]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{table.where}, row {index + 1}: {', '.join(columns)} = {texts}, allowed are texts")
        examples.append(Example(texts[0], texts[1] if len(texts) > 1 else None, labels[index]))
    return examples


def read_label(label, num_labels, where):
    try:
        number = int(label)
        valid = 0 <= number < num_labels and (not isinstance(label, float) or number == label)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        allowed = f"whole numbers 0 to {num_labels - 1} (NUM_LABELS = {num_labels})"
        raise ValueError(f"{where}: label {label!r}, allowed are {allowed}")
    return number


def tokenize(tokenizer, examples, max_length):
    """Token ids of the examples as a list of dicts for `tokenizer.pad`, each with its "label"."""
    texts = [example.text for example in examples]
    pairs = [example.pair for example in examples] if examples and examples[0].pair is not None else None
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    keys = list(encoded.keys())
    return [
        {"label": example.label, **{key: encoded[key][index] for key in keys}} for index, example in enumerate(examples)
    ]


def collate(tokenizer, encoded, device):
    """(inputs, labels) of a batch: tensors padded to its longest input, int64 (batch, length) and (batch,)."""
    inputs = [{key: value for key, value in item.items() if key != "label"} for item in encoded]
    padded = tokenizer.pad(inputs, return_tensors="pt").to(device)
    return padded, torch.tensor([item["label"] for item in encoded], device=device)


# --- Model ------------------------------------------------------------------------------------------------------------


def load_model(settings):
    """(model, tokenizer, source): float32 weights on the CPU, a fresh head drawn with the seed, and the provenance.

    Raises ValueError, in one line, where the model cannot be had or does not fit the settings.
    """
    name = settings.model_name
    local = is_local(name)
    if local and not Path(name).expanduser().is_dir():
        raise ValueError(f"MODEL_NAME = {name!r}: no such folder")
    reached = not local and hub_in_reach()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = str(Path(name).expanduser()) if local else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=not reached)
        torch.manual_seed(settings.seed)  # the head is drawn from the global random state
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=settings.num_labels, dtype=torch.float32, local_files_only=not reached
        )
    except Exception as error:  # loaders raise many kinds; each means that this model cannot be had
        advice = "" if local else f"; offline, {LOCAL_ADVICE}"
        why = error if local or reached else "the hub cannot be reached, and no copy is in the cache"
        raise ValueError(f"MODEL_NAME = {name!r}: cannot be loaded: {why}{advice}") from error
    if tokenizer.pad_token is None:  # GPT-2 has none; its classification head reads the last token before padding
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9)
    if settings.max_length > longest:
        raise ValueError(f"MAX_LENGTH = {settings.max_length}: allowed with {name} is at most {longest}")
    revision = getattr(model.config, "_commit_hash", None)
    source = {"kind": "local", "path": path} if local else {"kind": "hub", "id": name, "revision": revision}
    return model, tokenizer, source | {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def attention_weights(model, layers, pattern=""):
    """(weights, note): the selected attention weights by name, a dict of Parameters in the model's order, and a remark.

    layers: "all" or a sequence of ints. pattern: a regular expression on parameter names that selects in place of them.
    Raises ValueError where nothing is found, naming what there is to choose from.
    """
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    choices = ", ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", r"\\d+", name) for name in matrices))
    if pattern:
        chosen = {name: parameter for name, parameter in matrices.items() if re.search(pattern, name)}
        if not chosen:
            raise ValueError(f"ATTENTION_PATTERN = {pattern!r}: matches no weight, choose from {choices}")
        return chosen, ""
    found = {}
    for name in matrices:
        match = next(filter(None, (re.search(family, name) for family in ATTENTION_WEIGHTS)), None)
        if match:
            found.setdefault(int(match.group(1)), []).append(name)
    if not found:
        raise ValueError(
            f"ATTENTION_LAYERS: the attention weights of a {model.config.model_type} model are not known here, set "
            f'ATTENTION_LAYERS = "all" and ATTENTION_PATTERN to a regular expression that chooses from {choices}'
        )
    total, note = len(found), ""
    if model.config.model_type == "albert":
        total = model.config.num_hidden_layers
        note = (
            f"ALBERT shares weights: its {total} layers use {len(found)} set(s), so an update moves every sharing layer"
        )
    elif model.config.model_type == "gpt2":
        note = "q, k and v are one fused weight (c_attn)"
    wrong = [layer for layer in (() if layers == "all" else layers) if layer >= total]
    if wrong:
        raise ValueError(f'ATTENTION_LAYERS = {list(layers)}: allowed with this model is 0 to {total - 1} or "all"')
    sets = sorted(found) if layers == "all" else {layer * len(found) // total for layer in layers}
    return {name: matrices[name] for name in matrices if any(name in found[group] for group in sets)}, note


def evaluate(model, tokenizer, encoded, batch_size, device):
    """(loss, accuracy) over tokenized examples, both means per example; batches of similar length, dropout off."""
    was_training = model.training
    model.eval()
    by_length = sorted(encoded, key=lambda item: len(item["input_ids"]))
    loss, right = 0.0, 0
    with torch.inference_mode():
        for first in range(0, len(by_length), batch_size):
            inputs, labels = collate(tokenizer, by_length[first : first + batch_size], device)
            logits = model(**inputs).logits.float()
            loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(dim=-1) == labels).sum().item()
    model.train(was_training)
    return loss / len(encoded), right / len(encoded)
