"""The embedded model and sentences: what they are, and when they stand in for what the hub would give."""

import json
import re
import socket

import pytest
import torch
from conftest import ROOT, only_run, read_json, run_script, run_training
from safetensors import safe_open

import config
import model_utils
from harness import run_folder
from report import figures

SENTENCES = {split: ROOT / "embedded" / "sentences" / f"{split}.tsv" for split in ("train", "validation")}


def read_sentences(split):
    rows = SENTENCES[split].read_text(encoding="utf-8").splitlines()
    assert rows[0] == "sentence\tlabel"
    return [tuple(row.split("\t")) for row in rows[1:]]


def words(sentence):
    return frozenset(re.findall(r"[a-z']+", sentence.lower()))


def test_sentences_are_enough_balanced_and_as_people_write():
    everything = read_sentences("train") + read_sentences("validation")
    assert len(everything) >= 500 and all(len(row) == 2 for row in everything)
    for split in SENTENCES:
        labels = [label for _, label in read_sentences(split)]
        assert labels.count("0") == labels.count("1") == len(labels) / 2
    assert sum(sentence != sentence.lower() for sentence, _ in everything) > len(everything) / 2
    assert sum(sentence == sentence.lower() for sentence, _ in everything) > 10
    lengths = [len(sentence.split()) for sentence, _ in everything]
    assert min(lengths) >= 3 and max(lengths) <= 40 and max(lengths) - min(lengths) > 20


def test_no_sentence_has_a_near_duplicate():
    """No pair, across the splits or within one, shares half of its words."""
    everything = [(sentence, words(sentence)) for split in SENTENCES for sentence, _ in read_sentences(split)]
    for index, (first, one) in enumerate(everything):
        for second, other in everything[index + 1 :]:
            assert len(one & other) < 0.5 * len(one | other), (first, second)


def test_sentences_are_not_those_of_the_pretraining_data():
    sst2 = ROOT.parent / "shared" / "data" / "sst2" / "train.tsv"
    if not sst2.exists():
        pytest.skip("the pretraining data are not here")
    rows = [line.split("\t")[0] for line in sst2.read_text(encoding="utf-8").splitlines()[1:]]
    seen = {words(row) for row in rows if len(row.split()) > 3}
    assert not [sentence for split in SENTENCES for sentence, _ in read_sentences(split) if words(sentence) in seen]


def test_model_is_small_half_precision_and_without_a_head():
    folder = ROOT / "embedded" / "model"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    with safe_open(folder / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert not [name for name in sizes if "classifier" in name]
    assert {tensor.dtype for tensor in sizes.values()} == {torch.float16}
    assert 1.5e6 < sum(tensor.numel() for tensor in sizes.values()) < 6e6
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert settings["model_type"] == "distilbert" and (folder / "README.md").exists()


def embedded_flags(tmp_path, *flags):
    return [
        *("--model_name", "embedded", "--dataset_name", "embedded", "--results_dir", str(tmp_path / "results")),
        *flags,
    ]


def test_asked_for_outright(tmp_path, capsys):
    assert run_training(embedded_flags(tmp_path, "--num_epochs", "1", "--shots", "100", "--eval_size", "0")) == 0
    run = only_run(tmp_path / "results")
    settings = read_json(run / "config.json")
    assert settings["learning_rate"] == config.load([]).embedded_learning_rate
    environment = read_json(run / "environment.json")
    assert environment["model"]["kind"] == environment["data"]["kind"] == "embedded"
    assert "stands_in_for" not in environment["model"]
    assert f"{settings['learning_rate']:g} for AdamW (EMBEDDED_LEARNING_RATE)" in capsys.readouterr().out
    assert figures.caption(run_folder.read(run)).startswith("embedded model on embedded sentences, 100 examples")


def test_its_learning_rate_gives_way_to_one_on_the_command_line():
    for flags, expected in (([], "embedded_learning_rate"), (["--learning_rate", "1e-3"], None)):
        flags = ["--model_name", "embedded", "--dataset_name", "embedded", *flags]
        settings, *_ = model_utils.load_or_stand_in(config.load(flags), config.parse(flags).given, print)
        assert settings.learning_rate == (getattr(settings, expected) if expected else 1e-3)


def test_pretraining_matters(tmp_path, monkeypatch):
    """From a fresh head on 100 sentences the embedded model learns the task, the same shape at random does not."""
    flags = embedded_flags(tmp_path, "--update_rule", "classical", "--eval_size", "0")
    accuracy = {}
    real = model_utils.load_model

    def at_random(settings):
        model, tokenizer, source = real(settings)
        torch.manual_seed(settings.seed)
        return type(model)(model.config), tokenizer, source

    for start, load in (("pretrained", real), ("random", at_random)):
        monkeypatch.setattr(model_utils, "load_model", load)
        results = tmp_path / start
        assert run_training([*flags, "--results_dir", str(results)]) == 0
        statistics = read_json(only_run(results) / "training_statistics.json")
        accuracy[start] = statistics["evaluations"][-1]["accuracy"]
    assert accuracy["pretrained"] > 0.8 and accuracy["random"] < 0.6


@pytest.mark.parametrize("listens", [False, True], ids=["refused", "silent"])
def test_no_hub_in_reach_goes_on_with_the_embedded_default(listens, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()  # takes the connection and never says a word
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HOME": str(tmp_path / "cache")}
        flags = ["--results_dir", tmp_path / "results", "--train_size", "16", "--num_epochs", "1", "--shots", "10"]
        status, out, err = run_script("train.py", *flags, **hub)
    assert status == 0, err
    loud = [line for line in err.splitlines() if line.startswith("*** ")]
    assert len(loud) == 2 and "this is NOT a DistilBERT run" in loud[1] and "the hub cannot be reached" in loud[1]
    run = only_run(tmp_path / "results")
    environment = read_json(run / "environment.json")
    assert environment["model"]["stands_in_for"] == "distilbert-base-uncased"
    assert environment["data"]["stands_in_for"] == "glue sst2"
    caption = figures.caption(run_folder.read(run))
    assert caption.startswith("embedded model (in place of distilbert-base-uncased) on embedded sentences (in place of")
    assert f"{caption}\nfinished after" in out


@pytest.mark.parametrize(
    "flags",
    [
        ["--model_name", "distilbert-base-uncased"],
        ["--model_name", "someone/model"],
        ["--dataset_name", "someone/data"],
    ],
)
def test_what_the_user_named_is_never_swapped(flags, tmp_path):
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    if "--dataset_name" not in flags:
        flags = [*flags, "--dataset_name", "embedded"]
    status, _, err = run_script("train.py", *flags, "--results_dir", tmp_path / "results", **hub)
    assert status == 2 and err.startswith("error: ") and flags[1] in err and "stand" not in err, err
    assert err.strip().count("\n") == 0 and not (tmp_path / "results").exists()
