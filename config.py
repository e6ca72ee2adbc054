"""Settings. Edit a value here, or give it for one run: `python train.py --num_epochs 5`.

Every setting is one line: name, value, meaning. A list of numbers in place of a number (`SHOTS = [10, 100]`) is a study
of several runs. `parse` checks them all against _LIMITS and returns them as immutable namedtuples, whose fields are the
names in lower case; no other module reads the constants themselves.
"""

import argparse
import collections
import difflib
import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

from update_rules import RULES, joint_shots

# --- Model
MODEL_NAME = "distilbert-base-uncased"  # sequence-classification model: hub id, local folder, or "embedded"
MODEL_REVISION = ""  # commit, tag or branch of a hub model, as environment.json records it; "" = the newest
NUM_LABELS = 2  # number of classes; labels are 0 .. NUM_LABELS - 1
ATTENTION_LAYERS = [0]  # layers whose attention weights (q, k, v, out) are selected, from 0; "all" for every layer
TRAINED_WEIGHTS = "all"  # "all", or "attention": the selected weights and the head train, all others stay as they are
ATTENTION_PATTERN = ""  # regular expression on parameter names, selects in place of ATTENTION_LAYERS; "" = off

# --- Data
DATASET_NAME = "glue"  # "glue", a hub id, "embedded", or a local folder or file (.tsv, .csv, .json, .jsonl, .parquet)
DATASET_CONFIG = "sst2"  # GLUE task, or configuration of another hub data set; "" = its default; local data ignore it
DATASET_REVISION = ""  # commit, tag or branch of a hub data set, as environment.json records it; "" = the newest
TEXT_COLUMNS = []  # one or two columns of text; [] = those of the GLUE task, else the usual ones: sentence, text, pairs
LABEL_COLUMN = "label"  # column of the labels
TRAIN_SIZE = 100  # training examples, drawn with SEED; 0 = all of them
EVAL_SIZE = 50  # evaluation examples, drawn with SEED from the validation split; 0 = all of them
MAX_LENGTH = 128  # longest input in tokens; what is longer is cut

# --- Training
NUM_EPOCHS = 3  # passes over the training examples
BATCH_SIZE = 8  # examples that run through the model at once
ACCUMULATION_STEPS = 1  # batches whose gradients are averaged for one step; 1 = off
MAX_GRADIENT_NORM = 0  # the gradient of all weights together is scaled down to this norm before the circuits; 0 = off
LEARNING_RATE = 5e-5  # AdamW learning rate at the start, decays linearly to 0
EMBEDDED_LEARNING_RATE = 2e-4  # the same for the embedded model, unless you change LEARNING_RATE, here or by a flag
WEIGHT_DECAY = 0.01  # AdamW weight decay; 0 = off
SEED = 42  # draws splits, head, data order, dropout and shots; another seed, another run
UPDATE_RULES = []  # a study: these rules, each with every seed; [] = UPDATE_RULE alone
SEEDS = []  # a study: these seeds, on the command line also as 0-9; [] = SEED alone
EVAL_EVERY = 0  # steps between evaluations, also before the first and after the last; 0 = at the end of each epoch
CHECKPOINT_EVERY = 100  # steps between checkpoints, beside those at the end of each epoch; 0 = only those
DEVICE = "auto"  # where the model runs: "auto" (CUDA when present), "cpu" or "cuda"
AUTOCAST = "off"  # precision of the model's matrix products: "off" (float32) or "bf16"; weights stay float32

# --- Quantum update
UPDATE_RULE = "quantum"  # what the selected weights get: quantum, or a control: see update_rules.py
QUANTUM_OPTIMIZER = "sgd"  # "sgd": w -= QUANTUM_LEARNING_RATE * measured gradient; "adamw": AdamW steps on it
QUANTUM_LEARNING_RATE = 0.01  # learning rate of "sgd" at the start
QUANTUM_SCHEDULE = "linear"  # QUANTUM_LEARNING_RATE over the steps: "linear" decays to 0, as AdamW's; "constant" stays
CIRCUIT = "graph"  # circuit by name: graph, product (no entangler), chain, literal, or one you add
NUM_QUBITS = 5  # qubits per circuit = weights per circuit
SHOTS = 1000  # measurements per circuit; more shots, less noise; a mean, maybe below 1, if SHOT_ALLOCATION = "optimal"
SHOT_ALLOCATION = "equal"  # "equal": SHOTS for every circuit; "optimal": the same total, more where more noise is
ENTANGLING_ANGLE = math.pi / 4  # angle of the ring of RZZ gates in "graph", radians; 0 = no entanglement
NORMALIZATION = "group"  # scale of the encoding, max |gradient| of: "group" (one circuit) or "tensor" (weight matrix)
BACKEND = "aer"  # "aer" (simulator), "ibm" (least busy), "ibm:NAME", "fake:NAME" (simulated with noise), "generic:N"
AER_DEVICE = "CPU"  # where Aer simulates: "CPU", or "GPU" with qiskit-aer-gpu installed in place of qiskit-aer

# --- Devices: every BACKEND but "aer"
DEVICE_GROUPS = 32  # groups measured per step; for the other weights the measured gradient is 0
DEVICE_SELECTION = "largest"  # which groups: "largest" gradients (biased), or "sampled" by size (unbiased, noisier)
DEVICE_NOISE = "on"  # "off" simulates fake and generic devices without noise
MITIGATION = "none"  # "readout": correct means by the measured readout errors of each qubit
DYNAMICAL_DECOUPLING = "off"  # pulses on idle qubits: "XX", "XpXm" or "XY4"
TWIRLING = "off"  # random Paulis around "gates", "measurement" or "all"; up to 32 draws, a number that divides SHOTS
MAX_QPU_SECONDS = 0  # most QPU time a run may use, seconds; required for "ibm"
DRY_RUN = "no"  # "yes" prints what a run on a device would take and submits nothing

# --- Output
RESULTS_DIR = "results"  # run folders go here
SAMPLE_SENTENCES = ["A moving and often funny film.", "The plot is dull, the cast is not."]  # for attention maps

# What each setting must be: (kind, lowest, highest), or (kind, value, value, ...), or (kind,).
_LIMITS = {
    "MODEL_NAME": ("text",),
    "MODEL_REVISION": ("text or empty",),
    "NUM_LABELS": ("a whole number", 2, 1000),
    "ATTENTION_LAYERS": ('"all" or a list of whole numbers', 0, 999),
    "TRAINED_WEIGHTS": ("one of", "all", "attention"),
    "ATTENTION_PATTERN": ("a regular expression or empty",),
    "DATASET_NAME": ("text",),
    "DATASET_CONFIG": ("text or empty",),
    "DATASET_REVISION": ("text or empty",),
    "TEXT_COLUMNS": ("a list of texts", 0, 2),
    "LABEL_COLUMN": ("text",),
    "TRAIN_SIZE": ("a whole number", 0, 10**9),
    "EVAL_SIZE": ("a whole number", 0, 10**9),
    "MAX_LENGTH": ("a whole number", 4, 100_000),
    "NUM_EPOCHS": ("a whole number", 1, 10_000),
    "BATCH_SIZE": ("a whole number", 1, 100_000),
    "ACCUMULATION_STEPS": ("a whole number", 1, 100_000),
    "MAX_GRADIENT_NORM": ("a number", 0, 10**9),
    "LEARNING_RATE": ("a number", 0, 10),
    "EMBEDDED_LEARNING_RATE": ("a number", 0, 10),
    "WEIGHT_DECAY": ("a number", 0, 10),
    "SEED": ("a whole number", 0, 2**32 - 1),
    "UPDATE_RULES": ("a list of", *RULES),
    "SEEDS": ("a list of whole numbers", 0, 2**32 - 1),
    "EVAL_EVERY": ("a whole number", 0, 10**9),
    "CHECKPOINT_EVERY": ("a whole number", 0, 10**9),
    "DEVICE": ("one of", "auto", "cpu", "cuda"),
    "AUTOCAST": ("one of", "off", "bf16"),
    "UPDATE_RULE": ("one of", *RULES),
    "QUANTUM_OPTIMIZER": ("one of", "sgd", "adamw"),
    "QUANTUM_LEARNING_RATE": ("a number", 0, 1000),
    "QUANTUM_SCHEDULE": ("one of", "linear", "constant"),
    "CIRCUIT": ("text",),
    "NUM_QUBITS": ("a whole number", 1, 10),
    "SHOTS": ("a number", 0.001, 10**7),
    "SHOT_ALLOCATION": ("one of", "equal", "optimal"),
    "ENTANGLING_ANGLE": ("a number", 0, math.nextafter(math.pi / 2, 0)),
    "NORMALIZATION": ("one of", "group", "tensor"),
    "BACKEND": ("one of aer, ibm, ibm:NAME, fake:NAME and generic:N, N from 2 to 99",),
    "AER_DEVICE": ("one of", "CPU", "GPU"),
    "DEVICE_GROUPS": ("a whole number", 1, 10**7),
    "DEVICE_SELECTION": ("one of", "largest", "sampled"),
    "DEVICE_NOISE": ("one of", "on", "off"),
    "MITIGATION": ("one of", "none", "readout"),
    "DYNAMICAL_DECOUPLING": ("one of", "off", "XX", "XpXm", "XY4"),
    "TWIRLING": ("one of", "off", "gates", "measurement", "all"),
    "MAX_QPU_SECONDS": ("a number", 0, 10**7),
    "DRY_RUN": ("one of", "no", "yes"),
    "RESULTS_DIR": ("text",),
    "SAMPLE_SENTENCES": ("a list of texts", 0, 20),
}
_DEVICE_SETTINGS = {"device_groups", "device_selection", "device_noise", "mitigation", "dynamical_decoupling"}
_DEVICE_SETTINGS |= {"twirling", "max_qpu_seconds", "dry_run"}
_NUMBERS = {name for name, (kind, *_) in _LIMITS.items() if kind in ("a whole number", "a number")}
_SEVERAL = {"SEED": "SEEDS", "UPDATE_RULE": "UPDATE_RULES"}
_UNCHANGED_LEARNING_RATE = 5e-5  # any other LEARNING_RATE has been chosen by the user
_UNCHANGED_DATASET_CONFIG = "sst2"

FILE_ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")  # of local data

GLUE_NAMES = ("glue", "nyu-mll/glue")  # as settings may call it, and as the hub does
# The classification tasks of GLUE (stsb is a regression): number of classes, and columns of text.
GLUE = {
    "cola": (2, ("sentence",)),
    "sst2": (2, ("sentence",)),
    "mrpc": (2, ("sentence1", "sentence2")),
    "qqp": (2, ("question1", "question2")),
    "mnli": (3, ("premise", "hypothesis")),
    "qnli": (2, ("question", "sentence")),
    "rte": (2, ("sentence1", "sentence2")),
    "wnli": (2, ("sentence1", "sentence2")),
}

Settings = collections.namedtuple("Settings", [name.lower() for name in _LIMITS])
Settings.__doc__ = "Every setting of one run, under its name in lower case; lists are tuples."


class Command(NamedTuple):
    """A command line, read once.

    argv: tuple of str, without the program's name. runs: the Settings of every run, a list; several are a study.
    given: names (lower case) of the settings that are flags in argv, and learning_rate where config.py has another than
    the published one. resume: what --resume names, or None. debug: whether errors are shown with a traceback.
    """

    argv: tuple
    runs: list
    given: frozenset
    resume: str | None
    debug: bool


def load(argv=()):
    """The Settings of one run: the constants above, and over them flags such as `--num_epochs 5`.

    Raises ValueError, in one line naming the setting, its value and what it must be. `--help` prints and exits.
    """
    runs = parse(argv).runs
    if len(runs) > 1:
        raise ValueError(f"these settings describe a study of {len(runs)} runs: must describe one here")
    return runs[0]


def parse(argv=()):
    """The Command of argv; raises and exits as `load` does.

    Its runs are all combinations of UPDATE_RULES, SEEDS and each number given as a list (`--shots 10,100`), seed by
    seed, so that a study stopped halfway holds whole pairs.
    """
    constants = {name: value for name, value in globals().items() if name.isupper() and not name.startswith("_")}
    values = {name: v for name, v in constants.items() if name in _LIMITS or not isinstance(v, dict | tuple)}
    for name in values.keys() - _LIMITS.keys():
        raise ValueError(f"{name} = {values[name]!r}: unknown setting in config.py{_nearest(name, _LIMITS)}")
    for name in _LIMITS.keys() - values.keys():
        raise ValueError(f"{name} is missing from config.py: must be {_requirement(name)}")
    flags = vars(_parser().parse_args(list(argv)))
    resume, debug = flags.pop("resume", None), flags.pop("debug", False)
    values |= {flag.upper(): _from_text(flag.upper(), text) for flag, text in flags.items()}
    lists = {name for name, value in values.items() if isinstance(value, list | tuple) and value}
    if resume is not None:  # the run has settings of its own: of those here only flags matter
        flagged = {name.upper() for name in flags}
        values |= {name: values[name][0] for name in lists & _NUMBERS - flagged}
        lists &= flagged
    for single, several in _SEVERAL.items():
        if several.lower() not in flags and (single.lower() in flags or resume is not None):
            values[several] = []  # one seed, or rule, asked for: whatever study config.py describes
    sweeps = {name: [checked(name, v) for v in values[name]] for name in _LIMITS if name in lists & _NUMBERS}
    valid = {name: checked(name, values[name]) for name in _LIMITS if name not in sweeps}
    for single, several in _SEVERAL.items():
        if several.lower() in flags and not valid[several]:
            raise ValueError(f"{several} = []: must name at least one; without the flag {single} alone counts")
        if (single in sweeps or single.lower() in flags) and valid[several]:
            raise ValueError(f"{several} = {list(valid[several])} contradicts {single} = {values[single]}: give one")
        sweeps[single] = sweeps.get(single) or list(valid[several]) or [valid[single]]
    order = ["SEED", *(name for name in sweeps if name not in ("SEED", "UPDATE_RULE")), "UPDATE_RULE"]
    runs = []
    for combination in itertools.product(*(sweeps[name] for name in order)):
        run = valid | dict(zip(order, combination, strict=True)) | {"SEEDS": (), "UPDATE_RULES": ()}
        settings = Settings(**{name.lower(): run[name] for name in _LIMITS})
        if _ignores_dataset_config(settings, flags):
            settings = settings._replace(dataset_config="")
        if settings.attention_pattern and "attention_layers" not in flags:
            settings = settings._replace(attention_layers="all")
        if resume is None:
            check_together(settings, flags)
        runs.append(settings)
    given = set(flags) | {single.lower() for single, several in _SEVERAL.items() if several.lower() in flags}
    if resume is None and values["LEARNING_RATE"] != _UNCHANGED_LEARNING_RATE and "embedded_learning_rate" not in flags:
        given.add("learning_rate")
    return Command(tuple(argv), runs, frozenset(given), resume, debug)


def is_local(name):
    """Whether MODEL_NAME or DATASET_NAME is no hub id: it is "embedded", exists, or can only be a path."""
    only_a_path = name.startswith((".", "/", "~")) or name.endswith(FILE_ENDINGS) or name.count("/") > 1
    return name == "embedded" or only_a_path or os.path.exists(os.path.expanduser(name))


def is_glue(dataset_name):
    """Whether DATASET_NAME is GLUE of the hub."""
    return dataset_name in GLUE_NAMES and not is_local(dataset_name)


def settings_that_affect_result(settings):
    """Those of the settings (a dict) that a run's result depends on under its rule, seed included, as a dict.

    Runs with the same dict compute the same. What the rule does not use (the shots of a classical run) is left out.
    """
    rule = RULES[settings["update_rule"]]
    ignored = {"results_dir", "sample_sentences", "embedded_learning_rate", "update_rules", "seeds"}
    ignored |= {"max_qpu_seconds", "dry_run", "checkpoint_every", "eval_every"}
    if rule.stepped_by != "quantum_optimizer":
        ignored |= {"quantum_optimizer", "quantum_learning_rate", "quantum_schedule"}
    elif settings["quantum_optimizer"] == "adamw":
        ignored |= {"quantum_learning_rate", "quantum_schedule"}
    if not rule.measures:
        ignored |= {"circuit", "num_qubits", "entangling_angle", "normalization", "backend", "aer_device"}
    if not rule.measures or settings["backend"] == "aer":
        ignored |= _DEVICE_SETTINGS
    if not rule.draws_shots:
        ignored |= {"shots", "shot_allocation"}
    return {name: value for name, value in settings.items() if name not in ignored}


def with_learning_rate(settings, given):
    """The settings with EMBEDDED_LEARNING_RATE where that model is used and the user has not chosen a LEARNING_RATE."""
    if settings.model_name == "embedded" and "learning_rate" not in given:
        return settings._replace(learning_rate=settings.embedded_learning_rate)
    return settings


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser with --debug that raises its complaints as ValueErrors of one line, with the nearest flag."""

    def __init__(self, **given):
        super().__init__(**given)
        self.add_argument("--debug", action="store_true", help="show where an error comes from")

    def error(self, message):
        words = [re.split("[=:]", word)[0] for word in message.split()]
        flags = [word for word in words if word.startswith("--")]
        hint = _nearest(flags[0], self._option_string_actions) if flags else ""
        if message.startswith("unrecognized") and not flags:
            hint = " (several values are joined by commas, such as 10,100)"
        raise ValueError(f"{' '.join(message.split())}{hint}; --help lists the flags")


def _parser():
    meanings = dict(re.findall(r"^([A-Z_]+) = .*?  # (.*)$", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE))
    parser = OneLineParser(
        description="Every setting of config.py is a flag for one run; lists are written a,b or as JSON.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with an unfinished run: its folder, or latest")
    for name in _LIMITS:
        default = globals().get(name)
        meaning = f"{meanings.get(name, '')} [default: {default!r}; {_requirement(name)}]"
        parser.add_argument(f"--{name.lower()}", metavar="VALUE", help=meaning.replace("%", "%%"))
    return parser


def _nearest(name, names):
    """A hint at the one of the names that was meant, by its initials (lr) or by likeness; "" where there is none."""
    initials = {"".join(re.findall("(?<![a-z])[a-z]", known.lower())): known for known in names}
    meant = initials.get(name.lower().strip("-")) or next(iter(difflib.get_close_matches(name, names, n=1)), name)
    return f" (did you mean {meant}?)" if meant != name else ""


def _requirement(name):
    kind, *bounds = _LIMITS[name]
    if kind in ("one of", "a list of"):
        return f"{kind} {', '.join(bounds)}"
    if kind == "a list of texts":
        return f"a list of {bounds[0]} to {bounds[1]} texts"
    return f"{kind} from {bounds[0]} to {bounds[1]}" if bounds else kind


def _from_text(name, text):
    """A flag's text as a value of the setting's kind; what cannot be read stays text, for checked to refuse."""
    kind = _LIMITS[name][0]
    if name in _NUMBERS and "," in text:
        return [_from_text(name, part.strip()) for part in text.split(",")]
    try:
        if kind == "a whole number":
            return int(text)
        if kind == "a number":
            return float(text)
        if "list" in kind and text != "all":
            if text.startswith("["):
                return json.loads(text)
            items = [part.strip() for part in text.split(",")] if text.strip() else []
            return [number for item in items for number in _numbers(item)] if "whole numbers" in kind else items
    except (ValueError, RecursionError):
        pass
    return text


def _numbers(text):
    """The whole numbers of an item of a list: "7" is one, "0-9" is ten. ValueError for anything else."""
    first, _, last = text.partition("-")
    if not (first and last):
        return [int(text)]
    if not 0 <= int(last) - int(first) < 10_000:
        raise ValueError(f"{text} runs backwards, or too far")
    return range(int(first), int(last) + 1)


def checked(name, value):
    """The value of a setting, named in capitals, a list as a tuple; ValueError where it is none of those allowed."""
    kind, *bounds = _LIMITS[name]
    if kind == "one of":
        valid = isinstance(value, str) and value in bounds
    elif kind == "a whole number":
        valid = type(value) is int and bounds[0] <= value <= bounds[1]
    elif kind == "a number":
        valid = type(value) in (int, float) and bounds[0] <= value <= bounds[1] and math.isfinite(value)
    elif kind == "a list of texts":
        valid = isinstance(value, list | tuple) and bounds[0] <= len(value) <= bounds[1]
        valid = valid and all(isinstance(item, str) and item.strip() for item in value)
    elif kind == "a list of":
        valid = isinstance(value, list | tuple) and all(isinstance(item, str) and item in bounds for item in value)
        valid = valid and len(value) == len(set(value))
    elif "list of whole numbers" in kind:
        valid = isinstance(value, list | tuple) and all(type(item) is int for item in value)
        valid = valid and len(value) == len(set(value)) and all(bounds[0] <= item <= bounds[1] for item in value)
        valid = (valid and (len(value) > 0 or "all" not in kind)) or ("all" in kind and value == "all")
    else:
        valid = isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)  # what no file could hold
        valid = valid and bool(value.strip() or "empty" in kind)
    if valid and name == "BACKEND":
        valid = re.fullmatch(r"aer|ibm(:[\w.-]+)?|fake:\w+|generic:([2-9]|[1-9]\d)", value) is not None
    if valid and "regular expression" in kind:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError):
            valid = False
    if not valid:
        if kind == "a number" and isinstance(value, float) and value.is_integer():
            value = int(value)  # `--shots 0` is read as 0.0
        several = name in _SEVERAL and re.search(".[,-]", str(value))
        hint = f"; several make a study: {_SEVERAL[name]}" if several else ""
        raise ValueError(f"{name} = {value!r}: must be {_requirement(name)}{hint}")
    if name == "SHOTS" and value == int(value):
        return int(value)
    return tuple(value) if isinstance(value, list) else value


def _ignores_dataset_config(settings, given):
    """Whether DATASET_CONFIG means nothing: for local data, and for a hub data set where it is still that of GLUE."""
    if is_local(settings.dataset_name):
        return True
    unchanged = "dataset_config" not in given and settings.dataset_config == _UNCHANGED_DATASET_CONFIG
    return unchanged and not is_glue(settings.dataset_name)


def check_together(settings, given):
    """Refuse settings that contradict each other. given: names of those that are flags."""
    task, rule, backend = settings.dataset_config, RULES[settings.update_rule], settings.backend
    if settings.attention_pattern and settings.attention_layers != "all":
        raise ValueError(
            f"ATTENTION_LAYERS = {list(settings.attention_layers)!r} contradicts ATTENTION_PATTERN = "
            f'{settings.attention_pattern!r}, which selects by name: must be "all" with it'
        )
    for what in ("model", "dataset"):
        revision = getattr(settings, f"{what}_revision")
        if revision and is_local(getattr(settings, f"{what}_name")):
            raise ValueError(f"{what.upper()}_REVISION = {revision!r}: must be empty with a local {what}")
    if is_glue(settings.dataset_name):
        if task not in GLUE:
            raise ValueError(f"DATASET_CONFIG = {task!r}: must be one of {', '.join(GLUE)} with GLUE")
        if settings.num_labels != GLUE[task][0]:
            raise ValueError(f"NUM_LABELS = {settings.num_labels}: must be {GLUE[task][0]} with GLUE {task}")
    if settings.shot_allocation == "equal" and type(settings.shots) is not int:
        raise ValueError(
            f"SHOTS = {settings.shots!r} with SHOT_ALLOCATION = 'equal': must be a whole number from 1; only with "
            "'optimal' it is a mean"
        )
    if backend == "aer":
        for name in sorted(_DEVICE_SETTINGS & set(given) | ({"dry_run"} if settings.dry_run == "yes" else set())):
            value = getattr(settings, name)
            raise ValueError(f"{name.upper()} = {value!r} with BACKEND = 'aer': must be left out, it is for devices")
    elif rule.measures:
        if rule.draw is not joint_shots:
            raise ValueError(
                f"UPDATE_RULE = {settings.update_rule!r} with BACKEND = {backend!r}: must be quantum, or one without "
                "circuits; devices measure all qubits with finitely many shots"
            )
        if settings.shot_allocation == "optimal":
            raise ValueError(
                f"SHOT_ALLOCATION = 'optimal' with BACKEND = {backend!r}: must be equal, all circuits of a job get as "
                "many shots"
            )
        if backend.startswith("ibm") and settings.dry_run == "no" and not settings.max_qpu_seconds:
            raise ValueError(
                f"MAX_QPU_SECONDS = 0 with BACKEND = {backend!r}: real hardware needs a limit; DRY_RUN = "
                "'yes' prints what the run would take"
            )
