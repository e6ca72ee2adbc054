"""Model, tokenizer, data set, selected attention weights, evaluation.

transformers and datasets are imported inside the functions that need them: they are slow to import, and they read
HF_HUB_OFFLINE once, at import, after `hub_problem` has had the chance to set it.
"""

import csv
import hashlib
import http.client
import io
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
EVALUATION_SPLITS = ("validation", "validation_matched", "dev", "valid", "val", "test")
HELD_OUT = 0.2  # part of the training rows that becomes the evaluation split where there is none
# The small model and the sentences that come with the code, and what they stand in for where no hub can be reached.
EMBEDDED = Path(__file__).parent / "embedded"
PUBLISHED_MODEL = "distilbert-base-uncased"
PUBLISHED_DATA = ("glue", "sst2")
HUB_PROBLEMS = []  # the first that was found: from then on the hub's libraries are offline in this process
LOCAL_ADVICE = 'give a local MODEL_NAME and DATASET_NAME, or "embedded" for both'

# Weights of the attention of one layer, which is group 1. Shared by all layers in ALBERT.
FUSED = ("c_attn", "in_proj")  # one weight that holds q, k and v
ATTENTION_WEIGHTS = (
    r"(?:^|\.)transformer\.layer\.(\d+)\.attention\.(?:q|k|v|out)_lin\.weight$",  # DistilBERT
    r"(?:^|\.)encoder\.layer\.(\d+)\.attention\."  # BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa, Longformer
    r"(?:self\.(?:(?:query|key|value)(?:_proj|_global)?|in_proj)|output\.dense)\.weight$",
    r"(?:^|\.)albert_layer_groups\.(\d+)\.albert_layers\.\d+\.attention\.(?:query|key|value|dense)\.weight$",  # ALBERT
    r"(?:^|\.)h\.(\d+)\.attn\.c_(?:attn|proj)\.weight$",  # GPT-2
)


class OutOfReach(ValueError):
    """The hub cannot give what was named."""


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


def hub_problem(path, seconds=8.0):
    """Why the hub does not serve `path` (of a file) within `seconds`; "" where it does, or says itself what is wrong.

    Where there is a problem the hub's libraries are set offline, as they would retry for minutes. Call it before they
    are imported. The environment's HF_ENDPOINT and HF_HUB_OFFLINE count.
    """
    if HUB_PROBLEMS:
        return HUB_PROBLEMS[0]
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    answers = []

    def ask():
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        try:
            request = urllib.request.Request(f"{endpoint}/{path}", method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append("")
        except urllib.error.HTTPError as error:
            busy = error.code in (408, 429) or error.code >= 500
            answers.append(f"the hub answers {error.code} {error.reason}, try again later" if busy else "")
        except (OSError, ValueError, http.client.HTTPException):
            answers.append("the hub cannot be reached")

    asking = threading.Thread(target=ask, daemon=True)  # a name look-up has no time limit of its own
    asking.start()
    asking.join(seconds)
    problem = answers[0] if answers else "the hub cannot be reached"
    if problem:
        HUB_PROBLEMS.append(problem)
        os.environ["HF_HUB_OFFLINE"] = "1"
    return problem


def hub_reason(error, problem):
    """Why something of the hub cannot be had: the problem found before, or what its answer to the libraries means."""
    if problem:
        return f"{problem}, and no copy is in the cache; {LOCAL_ADVICE}"
    if "BuilderConfig" in str(error):
        return f'{error}; set DATASET_CONFIG to one of them, or to "" for the only one'
    cause, status = error, None
    while cause is not None and status is None:  # the libraries wrap the hub's answer in errors of their own
        status = getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__ or cause.__context__
    if status in (401, 404) or type(error).__name__ == "DatasetNotFoundError":
        return "the hub has nothing of this name, or it is private"
    return f"the hub answers {status}; {LOCAL_ADVICE}" if status else f"{error}; {LOCAL_ADVICE}"


# --- Data -------------------------------------------------------------------------------------------------------------


def load_data(settings):
    """The Data of a run. Raises OutOfReach where the hub cannot give it, ValueError for whatever else is wrong."""
    name = settings.dataset_name
    if settings.dataset_revision and (name == "embedded" or is_local(name)):
        raise ValueError(
            f"DATASET_REVISION = {settings.dataset_revision!r}: allowed with local data is only an empty one"
        )
    if name == "embedded":
        train, evaluation, source = read_local(EMBEDDED / "sentences", settings.seed)
        source["kind"] = "embedded"
    elif is_local(name):
        train, evaluation, source = read_local(Path(os.path.expanduser(name)), settings.seed)
    else:
        train, evaluation, source = read_hub(name, settings.dataset_config, settings.dataset_revision)
    columns = text_columns(settings, train.columns)
    drawn = [draw_examples(train, columns, settings, "TRAIN_SIZE")]
    drawn.append(draw_examples(evaluation, columns, settings, "EVAL_SIZE"))
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    sizes = {"training_examples": len(drawn[0]), "evaluation_examples": len(drawn[1])}
    return Data(*drawn, source | sizes | {"columns": columns, "sha256_of_examples": digest})


def is_local(name):
    """Whether a setting names a folder or file rather than a hub id: it exists, or can only be a path."""
    return Path(os.path.expanduser(name)).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


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
            for split in ("train", *EVALUATION_SPLITS)
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
    if len(train.rows) < 2:
        raise ValueError(f"{path}: holds one row, at least two are needed, one of them for evaluation")
    order = torch.randperm(len(train.rows), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round(HELD_OUT * len(order)))
    train, evaluation = train._replace(indices=order[held:]), train._replace(indices=order[:held])
    return train, evaluation, {"kind": "local", "path": str(path), "evaluation": f"{HELD_OUT:.0%} held out of train"}


def read_delimited(path, **dialect):
    reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), **dialect)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError(f"the header names a column twice: {', '.join(names)}")
    rows = list(reader)
    for number, row in enumerate(rows, 1):
        if None in row:
            raise ValueError(f"row {number} has more fields than the header")
    return rows


def read_json_lines(path):
    rows = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error.msg}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        if row:
            rows.append(row)
    return rows


def read_parquet(path):
    from pyarrow.parquet import read_table  # not through the datasets library, which caches by name and time

    return read_table(path).to_pylist()


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
    except (ValueError, csv.Error, OSError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return Table(rows, list(rows[0]), str(path), list(range(len(rows))))


def read_hub(name, config, revision=""):
    """(training Table, evaluation Table, source) of a hub data set; OutOfReach where it cannot be had.

    source["revision"] is the commit that the revision, "" for the newest, stands for.
    """
    hub_id = HUB_IDS.get(name, name)
    problem = hub_problem(f"datasets/{hub_id}/resolve/{revision or 'main'}/README.md")
    import datasets

    datasets.utils.logging.set_verbosity_error()
    try:
        splits = datasets.load_dataset(hub_id, config or None, revision=revision or None)
    except Exception as error:  # the hub's libraries raise many kinds; each means that the data cannot be had
        why = hub_reason(error, problem)
        raise OutOfReach(f"DATASET_NAME = {name!r}, DATASET_CONFIG = {config!r}: {why}") from error
    evaluation = next((split for split in EVALUATION_SPLITS if split in splits), None)
    if "train" not in splits or evaluation is None:
        raise ValueError(
            f"DATASET_NAME = {name!r}: has the splits {', '.join(splits)}: needs train and validation or test"
        )
    tables = []
    for split in ("train", evaluation):
        rows = splits[split]
        tables.append(Table(rows, rows.column_names, f"{name} {split}", list(range(len(rows)))))
    files = splits["train"].cache_files  # the cache names a folder by the commit of the hub
    commit = Path(files[0]["filename"]).parent.name if files else None
    return *tables, {"kind": "hub", "id": hub_id, "revision": commit, "config": config, "evaluation": evaluation}


def text_columns(settings, columns):
    """One or two names of columns that hold the texts: as set, of the GLUE task, or the usual ones."""
    if settings.text_columns:
        return settings.text_columns
    name = settings.dataset_name
    if HUB_IDS.get(name, name) == HUB_IDS["glue"] and not is_local(name):
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
        labels = [row.get(settings.label_column) for row in table.rows]
    else:  # a hub data set decodes a whole column much faster than row by row
        labels = table.rows[settings.label_column]
    labels = [read_label(label, settings.num_labels, f"{table.where}, row {i}") for i, label in enumerate(labels, 1)]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    examples = []
    for index in (table.indices[place] for place in order[: size or total]):
        texts = [table.rows[index].get(column) for column in columns]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{table.where}, row {index + 1}: {', '.join(columns)} = {texts}, allowed are texts")
        examples.append(Example(texts[0], texts[1] if len(texts) > 1 else None, labels[index]))
    return examples


def read_label(label, num_labels, where):
    try:
        number = int(label)
        valid = 0 <= number < num_labels and (isinstance(label, str) or number == label)
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        allowed = f"whole numbers 0 to {num_labels - 1} (NUM_LABELS = {num_labels})"
        raise ValueError(f"{where}: label {label!r}, allowed are {allowed}")
    return number


def tokenize(tokenizer, examples, max_length):
    """Token ids of the examples as a list of dicts for `tokenizer.pad`, each with its "label"; none may be empty."""
    texts = [example.text for example in examples]
    pairs = [example.pair for example in examples] if examples and examples[0].pair is not None else None
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    for example, ids in zip(examples, encoded["input_ids"], strict=True):
        if not ids:
            raise ValueError(f"the text {example.text!r} has no token, allowed are texts that have at least one")
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

    Raises OutOfReach where the hub cannot give it, ValueError where it cannot be read or does not fit the settings.
    """
    name = settings.model_name
    embedded = name == "embedded"
    local = embedded or is_local(name)
    path = str(EMBEDDED / "model" if embedded else Path(os.path.expanduser(name))) if local else name
    if local and not Path(path).is_dir():
        raise ValueError(f"MODEL_NAME = {name!r}: no such folder")
    if local and settings.model_revision:
        raise ValueError(
            f"MODEL_REVISION = {settings.model_revision!r}: allowed with a local model is only an empty one"
        )
    revision = settings.model_revision or "main"
    problem = "" if local else hub_problem(f"{name}/resolve/{revision}/config.json")
    import huggingface_hub
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not local:
        huggingface_hub.utils.enable_progress_bars()  # of downloads: the weights are hundreds of megabytes
    where = {"local_files_only": local or bool(problem), "revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        own_head = AutoConfig.from_pretrained(path, **where)
        torch.manual_seed(settings.seed)  # the head is drawn from the global random state
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=settings.num_labels,
            dtype=torch.float32,
            **where,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in one line
        )
    except Exception as error:  # loaders raise many kinds; each means that this model cannot be had
        if local:
            raise ValueError(f"MODEL_NAME = {name!r}: cannot be loaded: {error}") from error
        raise OutOfReach(f"MODEL_NAME = {name!r}: cannot be loaded: {hub_reason(error, problem)}") from error
    refuse_bad_weights(name, settings.num_labels, model, loaded, own_head)
    if tokenizer.pad_token is None:  # GPT-2 has none; its classification head reads the last token before padding
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, *positions(model))
    if settings.max_length > longest:
        raise ValueError(f"MAX_LENGTH = {settings.max_length}: allowed with {name} is at most {longest}")
    kind = "embedded" if embedded else "local" if local else "hub"
    if local:
        source = {"kind": kind, "path": str(Path(path).resolve())}
    else:
        # In a folder named by the commit that the revision stands for.
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        commit = Path(cached).parent.name if isinstance(cached, str) else None
        source = {"kind": kind, "id": name, "revision": commit}
    fresh = sorted(loaded["missing_keys"])
    return model, tokenizer, source | {"parameters": sum(p.numel() for p in model.parameters()), "fresh_weights": fresh}


def refuse_bad_weights(name, num_labels, model, loaded, own_config):
    """ValueError where what was loaded does not fill the encoder, or has a head for another number of classes."""
    if loaded["mismatched_keys"]:
        if own_config.num_labels != num_labels:
            raise ValueError(f"NUM_LABELS = {num_labels}: the head of {name} has {own_config.num_labels}")
        raise ValueError(
            f"MODEL_NAME = {name!r}: weights of another shape: {sorted(map(str, loaded['mismatched_keys']))}"
        )
    encoder = model.base_model_prefix + "."
    missing = sorted(key for key in loaded["missing_keys"] if key.startswith(encoder) and ".pooler." not in key)
    if missing:
        raise ValueError(
            f"MODEL_NAME = {name!r}: its weights are not those of a {model.config.model_type} model, "
            f"{len(missing)} of the encoder are missing: {missing[0]}, ..."
        )


def positions(model):
    """Upper bounds of the input length in tokens that the model's position embeddings set."""
    bounds = [getattr(model.config, "max_position_embeddings", None) or 0]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa counts positions from padding_idx + 1 on
            bounds.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return [bound for bound in bounds if bound > 0] or [10**9]


def attention_weights(model, layers, pattern=""):
    """(weights, note): the selected attention weights by name, a dict of Parameters in the model's order, and a remark.

    layers: "all" or a sequence of ints. pattern: a regular expression on parameter names that selects in place of them.
    Raises ValueError where nothing is found, naming what there is to choose from.
    """
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    choices = ", ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", r"\\d+", name) for name in matrices))
    if pattern:
        chosen = {name: parameter for name, parameter in matrices.items() if re.search(pattern, name)}
        if not chosen:
            raise ValueError(f"ATTENTION_PATTERN = {pattern!r}: matches no weight, choose from {choices}")
        return chosen, ""
    found, fused = {}, set()
    for name in matrices:
        match = next(filter(None, (re.search(family, name) for family in ATTENTION_WEIGHTS)), None)
        if match:
            found.setdefault(int(match.group(1)), []).append(name)
            fused |= {part for part in FUSED if part in name}
    if not found or min(map(len, found.values())) < (2 if fused else 4):
        raise ValueError(
            f"ATTENTION_LAYERS: the attention weights of a {model.config.model_type} model are not known here, set "
            f'ATTENTION_LAYERS = "all" and ATTENTION_PATTERN to a regular expression that chooses from {choices}'
        )
    total, note = len(found), ""
    if model.config.model_type == "albert":
        total = model.config.num_hidden_layers
        note = f"ALBERT shares weights: its {total} layers use {len(found)} set(s), an update moves every sharing layer"
    elif fused:
        note = f"q, k and v are one fused weight ({fused.pop()})"
    wrong = [layer for layer in (() if layers == "all" else layers) if layer >= total]
    if wrong:
        raise ValueError(f'ATTENTION_LAYERS = {list(layers)}: allowed with this model is 0 to {total - 1} or "all"')
    sets = sorted(found) if layers == "all" else {layer * len(found) // total for layer in layers}
    return {name: matrices[name] for name in matrices if any(name in found[group] for group in sets)}, note


def evaluate(model, tokenizer, encoded, batch_size, device):
    """(loss, right) over tokenized examples: cross entropy and number of right answers, both sums; dropout off.

    Batches hold inputs of similar length.
    """
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
    return loss, right
