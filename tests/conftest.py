"""What tests share: a tiny DistilBERT and tiny data, made on the spot, so that whole runs take seconds and need no
network; runs in this process, or as a user starts them."""

import csv
import json
import math
import os
import random
import time
from pathlib import Path

import fork_server
import pytest

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
    os.environ.pop(name, None)  # the user's, before anything imports the libraries that read them
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as train.py: torch's spinning threads starve each other

ROOT = Path(__file__).parent.parent
GOOD = ["superb", "moving", "funny", "warm", "clever", "fresh", "gripping", "tender"]
BAD = ["dull", "lazy", "clumsy", "stale", "hollow", "tedious", "ugly", "bland"]
THINGS = ["film", "plot", "cast", "score", "script", "pacing", "ending", "dialogue"]


def write_tiny_model(folder):
    """A DistilBERT with 2 layers of 16, random weights, and a word-level vocabulary."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel, DistilBertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *THINGS, "the", "is", "a", "and", "."]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    DistilBertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}
    DistilBertModel(DistilBertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def write_tiny_data(folder):
    """train.tsv (60 rows) and dev.tsv (30 rows), as GLUE writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for split, size in (("train", 60), ("dev", 30)):
        rows = ["sentence\tlabel"]
        for index in range(size):
            word = draw.choice(GOOD if index % 2 else BAD)
            rows.append(f"the {draw.choice(THINGS)} is {word} and the {draw.choice(THINGS)} is {word} .\t{index % 2}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write(path, text):
    """Write str as UTF-8, or bytes, as they are; returns the path."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load_settings(path, *flags):
    """Settings of a run on the data at a path."""
    import config

    return config.load(["--dataset_name", str(path), *flags])


SMALL = {
    "vocab_size": 30,
    **dict.fromkeys(("hidden_size", "dim", "n_embd", "embedding_size"), 8),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "n_inner"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), 3),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head"), 2),
}


def small_model(family, **changes):
    """A classifier of a family of transformers, with 3 layers of 8 and random weights."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model_config = AutoConfig.for_model(family)
    for name, value in {**SMALL, **changes}.items():
        if name in model_config.attribute_map or hasattr(model_config, name):
            setattr(model_config, name, value)
    return AutoModelForSequenceClassification.from_config(model_config)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny model"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny data"))


@pytest.fixture
def tiny_flags(tiny_model, tiny_data, tmp_path):
    """Flags of a run of 3 steps that takes a second."""
    return [
        *(
            "--model_name",
            str(tiny_model),
            "--dataset_name",
            str(tiny_data),
            "--results_dir",
            str(tmp_path / "results"),
        ),
        *("--train_size", "12", "--eval_size", "10", "--batch_size", "4", "--num_epochs", "1", "--max_length", "32"),
    ]


# --- Runs


def run_training(flags):
    """The exit status of `python train.py` with these flags, in this process; what it refuses is a ValueError."""
    import config
    import train

    return train.main(config.parse([str(flag) for flag in flags]))


def run_script(script, *flags, cwd=ROOT, timeout=300, fresh=False, **environment):
    """A script of the repository as a user starts it: (exit status, stdout, stderr). fresh: see fork_server.start."""
    process = start_script(script, *flags, cwd=cwd, fresh=fresh, **environment)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def start_script(script, *flags, cwd=ROOT, fresh=False, **environment):
    """The same, as a process that has just been started, see fork_server."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return fork_server.start(ROOT / script, [str(flag) for flag in flags], cwd, environment, fresh)


def start_training(flags, results):
    """`python train.py` with these flags and far too many epochs, as a process that has just saved a checkpoint."""
    process = start_script("train.py", *flags, "--num_epochs", "5000")
    wait_for(lambda: any(results.glob("*/checkpoint/step_*")), process)
    return process


def wait_for(condition, process, seconds=120):
    """Return as soon as the condition, a function, holds; fail where the process ends before, or time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def pytest_collection_finish(session):
    """Let the fork server import, beside the first tests, where several files are to run."""
    if len({item.path for item in session.items}) > 1 and not session.config.option.collectonly:
        fork_server.server()


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_tests():
    yield
    fork_server.close()


def stop_at(monkeypatch, step, error=KeyboardInterrupt):
    """Let the circuits of that step raise, in the middle of the step: dropout has been drawn, nothing been stepped."""
    import train

    real = train.measure_gradients

    def measure(gradients, backend, settings, now, learning_rate):
        if now == step:
            raise error
        return real(gradients, backend, settings, now, learning_rate)

    monkeypatch.setattr(train, "measure_gradients", measure)


LONG = ["--num_epochs", "4", "--checkpoint_every", "2", "--train_size", "40", "--batch_size", "4"]  # 40 steps


class Poison:
    """What prints a line where it is unpickled."""

    def __reduce__(self):
        return print, ("POISON RAN",)


# --- What runs leave behind


def only_run(results):
    """The one run folder in a results folder."""
    (run,) = results.iterdir()
    return run


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def metric_rows(run):
    """Rows of metrics.csv, dicts of text."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def end_weights(run):
    """The weights that a run ended with, tensors by name."""
    from safetensors.torch import load_file

    return load_file(run / "model" / "model.safetensors")


def equal_weights(one, other):
    """Whether two dicts of tensors are the same, bit for bit."""
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_times(run):
    """(metrics, statistics) of a run but for the seconds: what two runs that compute the same must share."""
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in metric_rows(run)]
    statistics = read_json(run / "training_statistics.json")
    return rows, {k: v for k, v in statistics.items() if not k.startswith("seconds")}


def assert_same_run(first, second):
    """Both finished with the same metrics, statistics and weights, bit for bit."""
    assert without_times(first) == without_times(second)
    assert equal_weights(end_weights(first), end_weights(second))


def one_error(err):
    """The one line about an error on stderr, between progress bars; no traceback."""
    assert "Traceback" not in err, err
    (line,) = [line for line in err.replace("\r", "\n").splitlines() if "error: " in line]
    return line


def run_analysis(*arguments):
    """The exit status of `python analyze.py` with these arguments, in this process."""
    import analyze

    return analyze.main(analyze.parse([str(argument) for argument in arguments]))


@pytest.fixture(scope="session")
def finished_run(tiny_model, tiny_data, tmp_path_factory):
    """The folder of a run of 6 steps, whose model was saved. Tests that change it do so on a copy."""
    results = tmp_path_factory.mktemp("analysed")
    flags = ["--model_name", str(tiny_model), "--dataset_name", str(tiny_data), "--results_dir", str(results)]
    sizes = ["--train_size", "12", "--eval_size", "10", "--batch_size", "4", "--num_epochs", "2", "--max_length", "32"]
    assert run_training([*flags, *sizes, "--sample_sentences", '["the film is dull", "a superb script"]']) == 0
    return next(results.iterdir())


def fake_run(folder, rule, seed, accuracy, correct=(), examples=100, **changes):
    """A run as run_folder.read returns it, with numbers of our own. changes: of its settings.

    correct: whether each prediction of the last evaluation is; written as predictions.csv where given.
    """
    import config

    settings = json.loads(json.dumps(config.load(["--update_rule", rule, "--seed", str(seed)])._asdict())) | changes
    rows = []
    for step in range(4):
        row = dict.fromkeys(("loss", "accuracy", "cosine", "eval_loss", "eval_accuracy"))
        row |= {"loss": 0.5, "accuracy": 0.5, "cosine": 0.9} if step else {"eval_loss": 0.7, "eval_accuracy": 0.5}
        rows.append({"step": float(step), **row})
    rows.append({**dict.fromkeys(rows[0]), "step": 3.0, "eval_loss": 0.4, "eval_accuracy": accuracy})
    stages = {f"seconds_{stage}": 1.0 for stage in ("forward", "backward", "quantum", "other")}
    evaluations = [{"step": 0, "loss": 0.7, "accuracy": 0.5}, {"step": 3, "loss": 0.4, "accuracy": accuracy}]
    statistics = {"status": "finished", "steps": 3, "circuits": 30, "evaluations": evaluations, **stages}
    source = {"kind": "local", "path": "<b>data", "evaluation_examples": examples}
    environment = {"model": {"kind": "local", "path": "model"}, "data": source, "packages": {"a|b": "1"}}
    place = folder / f"run_{rule}_{seed}"
    if len(correct):
        place.mkdir(parents=True)
        lines = [f"3,{number},1,{0.5 if good else -0.5}" for number, good in enumerate(correct)]
        (place / "predictions.csv").write_text("\n".join(["step,example,label,margin", *lines, ""]))
    return {
        "folder": place,
        "settings": settings,
        "environment": environment,
        "statistics": statistics | {"selected_weights": {}},
        "rows": rows,
    }


def fake_study(folder, differences, examples=100):
    """Pairs of classical (accuracy 0.7) and quantum (0.7 + difference) runs, a pair per seed."""
    accuracies = {"classical": [0.7] * len(differences), "quantum": [0.7 + difference for difference in differences]}
    return [
        fake_run(folder, rule, seed, values[seed], examples=examples)
        for seed in range(len(differences))
        for rule, values in accuracies.items()
    ]


# --- Circuits


def make_backend(name="graph", num_qubits=5, phi=math.pi / 4):
    """The Aer engine of a circuit."""
    from aer_engine import AerBackend
    from quantum_circuits import build_ansatz

    return AerBackend(build_ansatz(name, num_qubits, phi))


def exact_means(backend, x):
    """-<Z_i> of every group of x, as the engine simulates them."""
    from quantum_circuits import minus_z

    return backend.probabilities(x) @ minus_z(x.shape[1])


def update_of(gradient, backend=None, *, learning_rate=0.01, shots=1000, seed=(0, 0, 0), normalization="group"):
    """quantum_parameter_update with the defaults of most tests."""
    from quantum_circuits import quantum_parameter_update

    backend = backend or make_backend()
    return quantum_parameter_update(
        gradient, backend, learning_rate=learning_rate, shots=shots, seed=seed, normalization=normalization
    )


def random_groups(rows, columns, seed=0):
    """Groups of x, float64 (rows, columns), with both ends of the range, where arcsin is steepest."""
    import numpy as np

    x = np.random.default_rng(seed).uniform(-1, 1, (rows, columns))
    x[0], x[1] = 1.0, -1.0
    return x
