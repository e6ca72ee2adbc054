"""Settings. Edit a value here, or give it for one run: `python train.py --num_epochs 5`.

Every setting is one line: name, value, meaning. `load` checks them all against _LIMITS and returns them as one
immutable namedtuple, whose fields are the names in lower case; no other module reads the constants themselves.
"""

import argparse
import collections
import contextlib
import difflib
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
from pathlib import Path

# --- Model
MODEL_NAME = "distilbert-base-uncased"  # sequence-classification model: hub id, local folder, or "embedded"
MODEL_REVISION = ""  # commit, tag or branch of a hub model, as environment.json records it; "" = the newest
NUM_LABELS = 2  # number of classes; labels are 0 .. NUM_LABELS - 1
ATTENTION_LAYERS = [0]  # layers whose attention weights (q, k, v, out) are selected, from 0; "all" for every layer
ATTENTION_PATTERN = ""  # regular expression on parameter names, selects in place of ATTENTION_LAYERS; "" = off

# --- Data
DATASET_NAME = "glue"  # "glue", a hub id, "embedded", or a local folder or file (.tsv, .csv, .jsonl, .parquet)
DATASET_CONFIG = "sst2"  # GLUE task or configuration of a hub data set; "" = none; local data ignore it
DATASET_REVISION = ""  # commit, tag or branch of a hub data set, as environment.json records it; "" = the newest
TEXT_COLUMNS = []  # one or two columns of text; [] = those of the GLUE task, else the one named sentence or text
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
EMBEDDED_LEARNING_RATE = 2e-4  # the same for the embedded model, which is small; --learning_rate overrides both
WEIGHT_DECAY = 0.01  # AdamW weight decay; 0 = off
SEED = 42  # draws splits, head, data order, dropout and shots; another seed, another run
UPDATE_RULES = []  # a study: these rules, each with every seed; [] = UPDATE_RULE alone
SEEDS = []  # a study: these seeds, on the command line also as 0-9; [] = SEED alone
CHECKPOINT_EVERY = 100  # steps between checkpoints, beside those at the end of each epoch; 0 = only those
DEVICE = "auto"  # where the model runs: "auto" (CUDA when present), "cpu" or "cuda"
AUTOCAST = "off"  # precision of the model's matrix products: "off" (float32) or "bf16"; weights stay float32

# --- Quantum update
UPDATE_RULE = "quantum"  # what the selected weights get: quantum; independent or exact (controls); classical; frozen
QUANTUM_OPTIMIZER = "sgd"  # "sgd": w -= QUANTUM_LEARNING_RATE * measured gradient; "adamw": AdamW steps on it
QUANTUM_LEARNING_RATE = 0.01  # learning rate of "sgd", constant over the run
CIRCUIT = "graph"  # circuit by name: graph, product (no entangler), chain, literal, or one you add
NUM_QUBITS = 5  # qubits per circuit = weights per circuit
SHOTS = 1000  # measurements per circuit; more shots, less noise
ENTANGLING_ANGLE = math.pi / 4  # angle of the ring of RZZ gates in "graph", radians; 0 = no entanglement
NORMALIZATION = "group"  # scale of the encoding, max |gradient| of: "group" (one circuit) or "tensor" (one weight)
BACKEND = "aer"  # "aer" (simulator), "ibm" (least busy), "ibm:NAME", "fake:NAME" (simulated with noise), "generic:N"
AER_DEVICE = "CPU"  # where Aer simulates: "CPU", or "GPU" with qiskit-aer-gpu installed in place of qiskit-aer

# --- Devices: every BACKEND but "aer"
DEVICE_GROUPS = 32  # groups measured per step, those of the largest gradient; the other weights get no update
DEVICE_NOISE = "on"  # "off" simulates fake and generic devices without noise
MITIGATION = "none"  # "readout": correct means by the measured readout errors of each qubit
DYNAMICAL_DECOUPLING = "off"  # pulses on idle qubits: "XX", "XpXm" or "XY4"
TWIRLING = "off"  # random Paulis around "gates", "measurement" or "all"
MAX_QPU_SECONDS = 0  # most QPU time a run may use, seconds; required for "ibm"
DRY_RUN = "no"  # "yes" prints what a run on a device would take and submits nothing

# --- Output
RESULTS_DIR = "results"  # run folders go here
SAMPLE_SENTENCES = ["A moving and often funny film.", "The plot is dull, the cast is not."]  # for attention maps

_RULES = ("quantum", "independent", "exact", "classical", "frozen")

# What is allowed: (kind, lowest, highest), or (kind, value, value, ...), or (kind,).
_LIMITS = {
    "MODEL_NAME": ("text",),
    "MODEL_REVISION": ("text or empty",),
    "NUM_LABELS": ("a whole number", 2, 1000),
    "ATTENTION_LAYERS": ('"all" or a list of whole numbers', 0, 999),
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
    "UPDATE_RULES": ("a list of", *_RULES),
    "SEEDS": ("a list of whole numbers", 0, 2**32 - 1),
    "CHECKPOINT_EVERY": ("a whole number", 0, 10**9),
    "DEVICE": ("one of", "auto", "cpu", "cuda"),
    "AUTOCAST": ("one of", "off", "bf16"),
    "UPDATE_RULE": ("one of", *_RULES),
    "QUANTUM_OPTIMIZER": ("one of", "sgd", "adamw"),
    "QUANTUM_LEARNING_RATE": ("a number", 0, 1000),
    "CIRCUIT": ("text",),
    "NUM_QUBITS": ("a whole number", 1, 10),
    "SHOTS": ("a whole number", 1, 10**7),
    "ENTANGLING_ANGLE": ("a number", 0, math.nextafter(math.pi / 2, 0)),
    "NORMALIZATION": ("one of", "group", "tensor"),
    "BACKEND": ("one of aer, ibm, ibm:NAME, fake:NAME and generic:N",),
    "AER_DEVICE": ("one of", "CPU", "GPU"),
    "DEVICE_GROUPS": ("a whole number", 1, 10**6),
    "DEVICE_NOISE": ("one of", "on", "off"),
    "MITIGATION": ("one of", "none", "readout"),
    "DYNAMICAL_DECOUPLING": ("one of", "off", "XX", "XpXm", "XY4"),
    "TWIRLING": ("one of", "off", "gates", "measurement", "all"),
    "MAX_QPU_SECONDS": ("a number", 0, 10**7),
    "DRY_RUN": ("one of", "no", "yes"),
    "RESULTS_DIR": ("text",),
    "SAMPLE_SENTENCES": ("a list of texts", 0, 20),
}

# Number of classes of each GLUE task that is a classification (stsb is a regression).
_GLUE_LABELS = {"cola": 2, "sst2": 2, "mrpc": 2, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2, "wnli": 2}

Settings = collections.namedtuple("Settings", [name.lower() for name in _LIMITS])


def load(argv=()):
    """The settings of one run: the constants above, and over them flags such as `--num_epochs 5`.

    argv: list of str, the command line without the program's name. Returns a Settings namedtuple; lists become tuples.
    Raises ValueError, in one line naming the setting, its value and what is allowed. `--help` prints and exits.
    """
    runs = load_study(argv)
    if len(runs) > 1:
        raise ValueError(f"these settings describe a study of {len(runs)} runs: allowed here is one")
    return runs[0]


def load_study(argv=()):
    """The settings of every run of a study, a list of Settings; of a plain run, a list of one.

    The runs are all combinations of UPDATE_RULES, SEEDS and each numeric flag given as a list (`--shots 10,100`), seed
    by seed, so that a study stopped halfway holds whole pairs. Raises and exits as `load` does.
    """
    values = {name: value for name, value in globals().items() if name.isupper() and not name.startswith("_")}
    for name in values.keys() - _LIMITS.keys():
        raise ValueError(f"{name} = {values[name]!r}: unknown setting in config.py{_nearest(name, _LIMITS)}")
    for name in _LIMITS.keys() - values.keys():
        raise ValueError(f"{name} is missing from config.py: allowed is {_allowed(name)}")
    sweeps = {}
    flags = vars(_parser().parse_args(list(argv)))
    flags = {name: text for name, text in flags.items() if name not in ("resume", "debug")}
    for flag, text in flags.items():
        name = flag.upper()
        parts = [part.strip() for part in text.split(",")]
        if _LIMITS[name][0] in ("a whole number", "a number") and len(parts) > 1:
            sweeps[name] = [_checked(name, _from_text(name, part)) for part in parts]
        else:
            values[name] = _from_text(name, text)
    checked = {name: _checked(name, values[name]) for name in _LIMITS if name not in sweeps}
    for several, single in (("SEEDS", "SEED"), ("UPDATE_RULES", "UPDATE_RULE")):
        if single in sweeps and checked[several]:
            raise ValueError(f"{several} = {list(checked[several])} contradicts {single} = {sweeps[single]}")
        sweeps[single] = sweeps.get(single) or list(checked[several]) or [checked[single]]
    order = ["SEED", *(name for name in sweeps if name not in ("SEED", "UPDATE_RULE")), "UPDATE_RULE"]
    runs = []
    for combination in itertools.product(*(sweeps[name] for name in order)):
        run = checked | dict(zip(order, combination, strict=True)) | {"SEEDS": (), "UPDATE_RULES": ()}
        runs.append(Settings(**{name.lower(): run[name] for name in _LIMITS}))
        _check_together(runs[-1])
    return runs


def given_flags(argv):
    """The settings (lower-case names) that argv sets itself, as a frozenset."""
    return frozenset(vars(_parser().parse_args(list(argv)))) - {"resume", "debug"}


def resumed_run(argv):
    """What `--resume` names: a run folder or "latest"; None without it."""
    return vars(_parser().parse_args(list(argv))).get("resume")


def measures(rule):
    """Whether an update rule sends gradients through circuits."""
    return rule not in ("classical", "frozen")


def counting(settings):
    """The settings, as a dict, that a run's result depends on under its rule, its seed included.

    Two runs with the same dict compute the same; what the rule does not use (the shots of a classical run) is left out.
    """
    ignored = {"results_dir", "sample_sentences", "embedded_learning_rate", "update_rules", "seeds"}
    ignored |= {"max_qpu_seconds", "dry_run", "checkpoint_every"}
    on_devices = {"device_groups", "device_noise", "mitigation", "dynamical_decoupling", "twirling"}
    if not measures(settings["update_rule"]):
        ignored |= {"quantum_optimizer", "quantum_learning_rate", "normalization", "backend"}
        ignored |= {"circuit", "num_qubits", "shots", "entangling_angle", "aer_device"} | on_devices
    elif settings["backend"] == "aer":
        ignored |= on_devices
    if settings["update_rule"] == "exact":
        ignored.add("shots")
    if settings["quantum_optimizer"] == "adamw":
        ignored.add("quantum_learning_rate")
    return {name: value for name, value in settings.items() if name not in ignored}


def write_atomically(path, write):
    """Call write(temporary path) and rename the result, a file or a folder, to path: nobody ever sees half of it."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    replaced = path.with_name(f".{path.stem}.old{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        sync(temporary)
        if path.is_dir():
            path.rename(replaced)
        os.replace(temporary, path)
        sync(path.parent, deep=False)
    except BaseException as error:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        if isinstance(error, OSError) and error.errno and not error.filename:  # of a full disk, which does not say
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        for leftover in (temporary, replaced):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def sync(path, deep=True):
    """Have the system write a file, or a folder and what is in it, to the disk."""
    inside = [entry for entry in path.rglob("*") if entry.is_file()] if deep and path.is_dir() else []
    for entry in [*inside, path]:
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def load_or_exit(argv):
    """`load_study`, for the first lines of a script: a refused setting, or Ctrl-C during its imports, is one line."""
    signal.signal(signal.SIGINT, quit_at_once)
    try:
        return load_study(argv)
    except ValueError as error:
        exit_with(error)


def run_as_script(main):
    """Call main(argv) and exit with its status. An error, or Ctrl-C, becomes one line; with --debug, a traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    try:
        sys.exit(main(sys.argv[1:]))
    except (Exception, KeyboardInterrupt) as error:
        if debugging(sys.argv):
            raise
        exit_with(error)


def debugging(argv):
    """Whether the user asked for tracebacks."""
    return "--debug" in argv


def told(error):
    """(line, exit status) for the user: 2 what he can mend (ValueError, OSError), 130 for Ctrl-C, 1 a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "error: interrupted", 130
    if isinstance(error, ValueError | OSError):
        return f"error: {text}", 2
    return f"error: {type(error).__name__}: {text}; --debug shows where", 1


@contextlib.contextmanager
def quit_on_interrupt():
    """Let Ctrl-C end the process at once, for work that leaves nothing behind: imports and loading.

    Libraries catch KeyboardInterrupt and SystemExit halfway through an import and go on with half a module.
    """
    before = signal.signal(signal.SIGINT, quit_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def quit_at_once(*_):
    """Handler of Ctrl-C while nothing would be lost."""
    _complain("error: interrupted")
    os._exit(130)


def exit_with(error):
    """End the script with one line about an error, and its exit status."""
    line, status = told(error)
    _complain(line)
    sys.exit(status)


def _complain(line):
    if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun's other processes say the same
        print(line, file=sys.stderr, flush=True)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are ValueErrors of one line, with the nearest flag; it knows --debug."""

    def __init__(self, **given):
        super().__init__(**given)
        self.add_argument("--debug", action="store_true", help="show where an error comes from")

    def error(self, message):
        flags = [word for word in message.split() if word.startswith("--")]
        known = self._option_string_actions
        hint = _nearest(flags[0], known) if flags and flags[0].rstrip(":") not in known else ""
        raise ValueError(f"{' '.join(message.split())}{hint}; --help lists what is allowed")


def _parser():
    meanings = dict(re.findall(r"^([A-Z_]+) = .*?  # (.*)$", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE))
    parser = OneLineParser(
        description="Every setting of config.py is a flag for one run; lists are written a,b or as JSON.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run: its folder, or latest")
    for name in _LIMITS:
        default = globals().get(name)
        meaning = f"{meanings.get(name, '')} [default: {default!r}; {_allowed(name)}]"
        parser.add_argument(f"--{name.lower()}", metavar="VALUE", help=meaning.replace("%", "%%"))
    return parser


def _nearest(name, names):
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _allowed(name):
    kind, *bounds = _LIMITS[name]
    if kind == "one of":
        return "one of " + ", ".join(bounds)
    if kind == "a list of":
        return "a list of " + ", ".join(bounds)
    if kind == "a list of texts":
        return f"a list of {bounds[0]} to {bounds[1]} texts"
    return f"{kind} from {bounds[0]} to {bounds[1]}" if bounds else kind


def _from_text(name, text):
    """A flag's text as a value of the setting's kind; what cannot be read stays text, for _checked to refuse."""
    kind = _LIMITS[name][0]
    try:
        if kind == "a whole number":
            return int(text)
        if kind == "a number":
            return float(text)
        if "list" in kind and text != "all":
            if text.startswith("["):
                return json.loads(text)
            items = [part.strip() for part in text.split(",") if text.strip()]
            return [number for item in items for number in _numbers(item)] if "whole numbers" in kind else items
    except ValueError:
        pass
    return text


def _numbers(text):
    """The whole numbers of an item of a list: "7" is one, "0-9" is ten."""
    first, _, last = text.partition("-")
    return range(int(first), int(last) + 1) if first and last else [int(text)]


def _checked(name, value):
    kind, *bounds = _LIMITS[name]
    refused = ValueError(f"{name} = {value!r}: allowed is {_allowed(name)}")
    if kind == "one of":
        valid = isinstance(value, str) and value in bounds
    elif kind == "a whole number":
        valid = type(value) is int and bounds[0] <= value <= bounds[1]
    elif kind == "a number":
        valid = type(value) in (int, float) and math.isfinite(value) and bounds[0] <= value <= bounds[1]
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
        valid = re.fullmatch(r"aer|ibm(:[\w.-]+)?|fake:\w+|generic:[1-9]\d{0,2}", value) is not None
    if valid and "regular expression" in kind:
        try:
            re.compile(value)
        except re.error:
            valid = False
    if not valid:
        raise refused
    return tuple(value) if isinstance(value, list) else value


def _check_together(settings):
    """Rules that join two settings."""
    task = settings.dataset_config
    if settings.attention_pattern and settings.attention_layers != "all":
        raise ValueError(
            f"ATTENTION_LAYERS = {list(settings.attention_layers)!r} contradicts ATTENTION_PATTERN = "
            f'{settings.attention_pattern!r}, which selects by name: allowed with it is only ATTENTION_LAYERS = "all"'
        )
    if settings.dataset_name in ("glue", "nyu-mll/glue") and not Path(settings.dataset_name).exists():
        if task not in _GLUE_LABELS:
            raise ValueError(f"DATASET_CONFIG = {task!r}: allowed with GLUE is one of {', '.join(_GLUE_LABELS)}")
        if settings.num_labels != _GLUE_LABELS[task]:
            raise ValueError(f"NUM_LABELS = {settings.num_labels}: allowed with GLUE {task} is {_GLUE_LABELS[task]}")
    if settings.backend != "aer" and measures(settings.update_rule):
        if settings.update_rule != "quantum":
            raise ValueError(
                f"UPDATE_RULE = {settings.update_rule!r} with BACKEND = {settings.backend!r}: allowed with devices, "
                "which measure all qubits with finitely many shots, are quantum, classical and frozen"
            )
        if settings.backend.startswith("ibm") and settings.dry_run == "no" and not settings.max_qpu_seconds:
            raise ValueError(
                f"MAX_QPU_SECONDS = 0 with BACKEND = {settings.backend!r}: real hardware needs a limit; DRY_RUN = "
                "'yes' prints what the run would take"
            )
