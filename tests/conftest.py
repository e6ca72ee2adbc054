"""A tiny DistilBERT and tiny data, made on the spot, so that whole runs take seconds and need no network."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def run_script(script, *flags, cwd=ROOT, timeout=300, **environment):
    """A script of the repository as a user starts it: (exit status, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        **{"cwd": cwd, "timeout": timeout, "capture_output": True, "text": True},
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return done.returncode, done.stdout, done.stderr


def start_training(flags, results):
    """`python train.py` with these flags and far too many epochs, as a process that has just saved a checkpoint."""
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--num_epochs", "5000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(results.glob("*/checkpoint/step_*")):
        time.sleep(0.1)
    return process


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


def fake_run(folder, rule, seed, accuracy, **changes):
    """A run as run_folder.read returns it, with numbers of our own. changes: of its settings."""
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
    source = {"kind": "local", "path": "<b>data", "evaluation_examples": 100}
    environment = {"model": {"kind": "local", "path": "model"}, "data": source, "packages": {"a|b": "1"}}
    return {
        "folder": folder / f"run_{rule}_{seed}",
        "settings": settings,
        "environment": environment,
        "statistics": statistics | {"selected_weights": {}},
        "rows": rows,
    }


def fake_study(folder, differences):
    """Pairs of classical (accuracy 0.7) and quantum (0.7 + difference) runs, a pair per seed."""
    runs = []
    for seed, difference in enumerate(differences):
        runs += [fake_run(folder, "classical", seed, 0.7), fake_run(folder, "quantum", seed, 0.7 + difference)]
    return runs
