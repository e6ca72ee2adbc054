"""Finding attention weights in every family, reading data good and bad, splits, batches, evaluation."""

import decimal
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT, SMALL, load_settings, small_model, write, write_tiny_model
from safetensors.torch import load_file, save_file

import config
import model_utils
from harness import hub

# --- Attention weights


@pytest.mark.parametrize(
    ("family", "count", "example"),
    [
        ("distilbert", 4, "distilbert.transformer.layer.1.attention.q_lin.weight"),
        ("bert", 4, "bert.encoder.layer.1.attention.output.dense.weight"),
        ("roberta", 4, "roberta.encoder.layer.1.attention.self.value.weight"),
        ("xlm-roberta", 4, "roberta.encoder.layer.1.attention.self.key.weight"),
        ("electra", 4, "electra.encoder.layer.1.attention.self.query.weight"),
        ("deberta-v2", 4, "deberta.encoder.layer.1.attention.self.query_proj.weight"),
        ("gpt2", 2, "transformer.h.1.attn.c_attn.weight"),
    ],
)
def test_attention_weights_of_each_family(family, count, example):
    model = small_model(family)
    weights, note = model_utils.attention_weights(model, (1,))
    assert len(weights) == count and example in weights
    assert all(weights[name] is dict(model.named_parameters())[name] for name in weights)
    assert len(model_utils.attention_weights(model, (0, 2))[0]) == 2 * count
    assert len(model_utils.attention_weights(model, "all")[0]) == 3 * count
    assert bool(note) == (family == "gpt2")
    with pytest.raises(ValueError, match=re.escape("ATTENTION_LAYERS = [3]: must be from 0 to 2 with this model")):
        model_utils.attention_weights(model, (3,))


def test_fused_projections_are_found_by_their_names():
    weights, note = model_utils.attention_weights(small_model("deberta"), (0,))
    assert any("in_proj" in name for name in weights) and "in_proj" in note


def test_albert_shares_its_layers_and_says_so():
    model = small_model("albert")
    for layers in ((0,), (2,), "all"):
        weights, note = model_utils.attention_weights(model, layers)
        assert len(weights) == 4 and "ALBERT shares weights" in note
    two = small_model("albert", num_hidden_groups=2, num_hidden_layers=4)
    assert "groups.0" in next(iter(model_utils.attention_weights(two, (1,))[0]))
    assert "groups.1" in next(iter(model_utils.attention_weights(two, (2,))[0]))


def test_unknown_families_list_what_a_pattern_can_choose():
    model = small_model("xlnet", d_model=8, n_layer=2, n_head=2, d_inner=16)
    with pytest.raises(
        ValueError, match=r"xlnet model are not known here.*ATTENTION_PATTERN.*layer\.\\d\+\.ff\.layer_1"
    ):
        model_utils.attention_weights(model, (0,))
    chosen, _ = model_utils.attention_weights(model, "all", r"layer\.0\.ff\.layer_1\.weight")
    assert list(chosen) == ["transformer.layer.0.ff.layer_1.weight"]
    with pytest.raises(
        ValueError, match=r"ATTENTION_PATTERN = 'nothing': matches no weight, must match one of .*layer_1"
    ):
        model_utils.attention_weights(model, "all", "nothing")


# --- Reading data


def test_odd_values_that_are_not_labels():
    for value in (decimal.Decimal("0.5"), 0.5, True + 0.1, None, [], "1.0", "", float("nan")):
        with pytest.raises(ValueError, match=r"here: label .* must be a whole number from 0 to 1"):
            model_utils.read_label(value, 2, "here")
    assert [model_utils.read_label(value, 2, "") for value in ("1", 1.0, True, decimal.Decimal(1))] == [1, 1, 1, 1]


def test_missing_and_ambiguous_folders(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        model_utils.load_data(load_settings(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"must hold one train file \(\.tsv, .*holds none"):
        model_utils.load_data(load_settings(tmp_path))
    write(tmp_path / "train.tsv", "sentence\tlabel\nx\t1\n")
    write(tmp_path / "train.csv", "sentence,label\nx,1\n")
    with pytest.raises(ValueError, match=r"must hold one train file .*, holds train\.csv, train\.tsv"):
        model_utils.load_data(load_settings(tmp_path))


def test_columns_are_found_or_the_choice_is_listed(tmp_path):
    path = write(tmp_path / "a.csv", "premise,hypothesis,label\na,b,0\nc,d,1\ne,f,1\n")
    data = model_utils.load_data(load_settings(path, "--train_size", "0", "--eval_size", "0"))
    assert {(e.text, e.pair) for e in data.train + data.evaluation} == {("a", "b"), ("c", "d"), ("e", "f")}
    path = write(tmp_path / "b.csv", "review,label\na,0\nb,1\n")
    with pytest.raises(
        ValueError, match=r"TEXT_COLUMNS = \[\]: no column has a usual name, must be one or two of review, label"
    ):
        model_utils.load_data(load_settings(path))


def test_splits_are_drawn_with_the_seed_and_never_overlap(tmp_path, tiny_data):
    rows = "".join(f"text {i}\t{i % 2}\n" for i in range(50))
    path = write(tmp_path / "a.tsv", "sentence\tlabel\n" + rows)
    drawn = {}
    for seed in range(3):
        settings = load_settings(path, "--train_size", "20", "--eval_size", "10", "--seed", str(seed))
        data = drawn[seed] = model_utils.load_data(settings)
        assert data == model_utils.load_data(settings)
        assert (len(data.train), len(data.evaluation)) == (20, 10)
        assert not {e.text for e in data.train} & {e.text for e in data.evaluation}
        assert len({e.text for e in data.train}) == 20
    assert drawn[0].train != drawn[1].train != drawn[2].train
    assert len({data.source["sha256_of_examples"] for data in drawn.values()}) == 3
    all_of = [load_settings(path, "--train_size", "0", "--eval_size", "0", "--seed", str(seed)) for seed in (0, 1)]
    held = [{e.text for e in model_utils.load_data(settings).evaluation} for settings in all_of]
    assert len(held[0]) == len(held[1]) == 10 and held[0] != held[1]
    assert not any(texts == {f"text {i}" for i in range(10)} for texts in held)
    folder = model_utils.load_data(load_settings(tiny_data, "--train_size", "0", "--eval_size", "0"))
    dev = (tiny_data / "dev.tsv").read_text().splitlines()[1:]
    assert len(folder.train) == 60 and sorted(e.text for e in folder.evaluation) == sorted(r[:-2] for r in dev)
    with pytest.raises(ValueError, match=r"TRAIN_SIZE = 61: must be from 0 to 60.*\(0 = all\)"):
        model_utils.load_data(load_settings(tiny_data, "--train_size", "61"))


def test_all_that_does_not_fit_the_data_is_named_at_once(tiny_data):
    flags = ["--train_size", "61", "--eval_size", "31", "--label_column", "gold"]
    with pytest.raises(ValueError, match="TRAIN_SIZE = 61: must be from 0 to 60") as refused:
        model_utils.load_data(load_settings(tiny_data, *flags))
    assert "EVAL_SIZE = 31: must be from 0 to 30" in str(refused.value)
    assert "train.tsv: has no column 'gold'" in str(refused.value) and "\n" not in str(refused.value)


def test_hub_data_goes_through_the_same_door(monkeypatch):
    """The hub itself is out of reach here: what the datasets library would return stands in for it."""
    import datasets

    asked = []

    def load_dataset(name, config_name, revision):
        asked.append((name, config_name, revision))
        rows = [{"question1": f"q{i}", "question2": f"r{i}", "label": i % 2, "idx": i} for i in range(30)]
        split = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict(train=split, validation=split.select(range(10)), test=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "hub_problem", lambda path: "")
    flags = ["--dataset_config", "qqp", "--train_size", "8", "--eval_size", "0"]
    data = model_utils.load_data(config.load(flags))
    model_utils.load_data(config.load([*flags, "--dataset_revision", "v1"]))
    assert asked == [("nyu-mll/glue", "qqp", None), ("nyu-mll/glue", "qqp", "v1")]
    assert len(data.train) == 8 and len(data.evaluation) == 10 and data.source["evaluation"] == "validation"
    assert all(e.pair == e.text.replace("q", "r") for e in data.train)


# --- The hub out of reach


@pytest.fixture
def hub_socket(monkeypatch):
    """A socket that stands in for the hub; what a test makes the module believe of it is forgotten afterwards."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}/")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(hub, "HUB_PROBLEMS", [])
        yield server


def answer_once(server, text):
    server.listen()

    def answer():
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(text.encode())

    threading.Thread(target=answer, daemon=True).start()


@pytest.mark.parametrize("listens", [False, True], ids=["refused", "silent"])
def test_hub_out_of_reach_is_found_in_seconds(hub_socket, listens):
    if listens:
        hub_socket.listen()  # takes the connection and never says a word
    started = time.monotonic()
    assert hub.hub_problem("a/b/config.json", seconds=1.0) == "the hub cannot be reached"
    assert time.monotonic() - started < 5 and os.environ["HF_HUB_OFFLINE"] == "1"
    assert hub.hub_problem("c", seconds=1.0) == "the hub cannot be reached"  # not: HF_HUB_OFFLINE is set


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("200 OK", ""),
        ("404 Not Found", ""),  # the hub's libraries say better what that means
        ("401 Unauthorized", ""),
        ("429 Too Many Requests", "the hub answers 429 Too Many Requests, try again later"),
        ("503 Service Unavailable", "the hub answers 503 Service Unavailable, try again later"),
    ],
)
def test_what_the_hub_answers_counts(hub_socket, status, problem):
    answer_once(hub_socket, f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert hub.hub_problem("a/config.json") == problem
    assert os.environ["HF_HUB_OFFLINE"] == ("1" if problem else "0")


def test_a_server_that_does_not_speak_http_is_out_of_reach(hub_socket):
    answer_once(hub_socket, "SSH-2.0-OpenSSH\r\n")
    assert hub.hub_problem("a/config.json") == "the hub cannot be reached"


def test_one_reason_for_two_stand_ins_is_said_once(monkeypatch):
    monkeypatch.setattr(hub, "HUB_PROBLEMS", ["the hub cannot be reached"])
    lines, command = [], config.parse(["--num_qubits", "3"])
    _, data, *_, source = model_utils.load_or_stand_in(command.runs[0], command.given, lines.append)
    assert (data.source["stands_in_for"], source["stands_in_for"]) == ("glue sst2", "distilbert-base-uncased")
    assert len(lines) == 2 and "NOT a DistilBERT run: the hub cannot be reached" in lines[1]
    assert "glue sst2" in lines[0] and " ".join(lines).count("cannot be reached") == 1
    lines.clear()
    model_utils.load_or_stand_in(command.runs[0]._replace(model_name="embedded"), command.given, lines.append)
    assert len(lines) == 1 and "the hub cannot be reached" in lines[0]


def test_a_hub_switched_off_is_said_to_be(monkeypatch):
    monkeypatch.setattr(hub, "HUB_PROBLEMS", [])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.hub_problem("a/config.json") == "HF_HUB_OFFLINE is set"


# --- Model, batches, evaluation


def tiny_settings(model, data, *flags):
    return config.load(["--model_name", str(model), "--dataset_name", str(data), "--max_length", "32", *flags])


def test_head_is_drawn_with_the_seed_alone(tiny_model, tiny_data):
    heads = []
    for seed in (1, 1, 2):
        torch.rand(7)
        model, _, _ = model_utils.load_model(tiny_settings(tiny_model, tiny_data, "--seed", str(seed)))
        heads.append(model.classifier.weight)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_models_that_cannot_be_had_get_one_line(tiny_model, tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"MODEL_NAME = '\./nowhere': no such folder"):
        model_utils.load_model(tiny_settings("./nowhere", tiny_data))
    with pytest.raises(ValueError, match="cannot be loaded"):
        model_utils.load_model(tiny_settings(tmp_path, tiny_data))
    with pytest.raises(ValueError, match=r"MAX_LENGTH = 65: must be at most 64 with "):
        model_utils.load_model(tiny_settings(tiny_model, tiny_data)._replace(max_length=65))


def test_weights_of_another_architecture_are_refused(tiny_model, tiny_data, tmp_path):
    import shutil

    from transformers import AutoConfig

    folder = shutil.copytree(tiny_model, tmp_path / "mixed")
    bert = AutoConfig.for_model("bert", **{key: value for key, value in SMALL.items() if "h" in key}, vocab_size=30)
    bert.hidden_size, bert.num_attention_heads = 16, 2
    bert.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"weights are not those of a bert model|weights of another shape"):
        model_utils.load_model(tiny_settings(folder, tiny_data))


def test_a_head_for_other_classes_is_refused_and_a_head_of_its_own_is_kept(tiny_model, tiny_data, tmp_path):
    model, tokenizer, source = model_utils.load_model(tiny_settings(tiny_model, tiny_data))
    assert any("classifier" in name for name in source["fresh_weights"])
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    again, _, source = model_utils.load_model(tiny_settings(tmp_path / "own", tiny_data, "--seed", "9"))
    assert torch.equal(again.classifier.weight, model.classifier.weight) and source["fresh_weights"] == []
    with pytest.raises(ValueError, match=r"NUM_LABELS = 3: must be 2, as the head of .* has"):
        model_utils.load_model(tiny_settings(tmp_path / "own", tiny_data)._replace(num_labels=3))


def test_a_revision_of_a_hub_model_is_taken_and_its_commit_recorded(tmp_path):
    """From a cache as the hub's library lays it out: two commits, the newest and one with a tag."""
    cache = tmp_path / "hub" / "models--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    for name, commit, value in (("main", "a" * 40, 0.0), ("v1", "b" * 40, 1.0)):
        folder = write_tiny_model(cache / "snapshots" / commit)
        weights = {
            key: torch.full_like(weight, value) for key, weight in load_file(folder / "model.safetensors").items()
        }
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (cache / "refs" / name).write_text(commit)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport config, model_utils\n"
        "for revision in ('', 'v1', 'b' * 40):\n"
        "    flags = ['--model_name', 'someone/tiny', '--model_revision', revision, '--max_length', '32']\n"
        "    model, _, source = model_utils.load_model(config.load(flags))\n"
        "    print(source['revision'], next(model.parameters()).mean().item())\n"
        "model_utils.load_model(config.load([*flags[:2], '--model_revision', 'v2', *flags[4:]]))\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["a" * 40, "0.0", "b" * 40, "1.0", "b" * 40, "1.0"], done.stderr
    assert "OutOfReach: MODEL_NAME = 'someone/tiny': cannot be loaded: HF_HUB_OFFLINE is set" in done.stderr


def test_a_revision_of_what_is_local_is_refused(tiny_model, tiny_data):
    flags = ["--model_name", str(tiny_model), "--dataset_name", str(tiny_data), "--max_length", "32"]
    with pytest.raises(ValueError, match="MODEL_REVISION = 'v1': must be empty with a local model"):
        model_utils.load_model(config.load([*flags, "--model_revision", "v1"]))
    with pytest.raises(ValueError, match="DATASET_REVISION = 'v1': must be empty with a local dataset"):
        model_utils.load_data(config.load([*flags, "--dataset_revision", "v1"]))


def test_a_chosen_learning_rate_wins_over_that_of_the_embedded_model(monkeypatch):
    def used(*flags):
        command = config.parse(["--model_name", "embedded", *flags])
        return [config.with_learning_rate(run, command.given).learning_rate for run in command.runs]

    assert used() == [2e-4] and used("--learning_rate", "5e-5") == [5e-5]
    assert used("--embedded_learning_rate", "1e-4") == [1e-4]
    monkeypatch.setattr(config, "LEARNING_RATE", 1e-3)
    assert used() == [1e-3] and used("--embedded_learning_rate", "1e-4") == [1e-4]
    monkeypatch.setattr(config, "LEARNING_RATE", [5e-5, 1e-3])
    assert used() == [5e-5, 1e-3]


def test_longest_inputs_of_each_family():
    assert 64 in model_utils.positions(small_model("distilbert", max_position_embeddings=64))
    roberta = small_model("roberta", max_position_embeddings=34)
    assert min(model_utils.positions(roberta)) == 34 - roberta.config.pad_token_id - 1
    assert model_utils.positions(small_model("xlnet", d_model=8, n_layer=1, n_head=2, d_inner=16)) == [10**9]


def test_a_text_without_tokens_is_refused(tiny_model):
    class Empty:
        def __call__(self, texts, pairs, **_):
            return {"input_ids": [[] for _ in texts]}

    with pytest.raises(ValueError, match="the text '' has no token, must have at least one"):
        model_utils.tokenize(Empty(), [model_utils.Example("", None, 1)], 16)


def test_evaluation_is_that_of_one_by_one_and_leaves_the_model_alone(tiny_model, tiny_data):
    settings = tiny_settings(tiny_model, tiny_data, "--train_size", "0", "--eval_size", "0")
    data = model_utils.load_data(settings)
    model, tokenizer, _ = model_utils.load_model(settings)
    encoded = model_utils.tokenize(tokenizer, [*data.evaluation, model_utils.Example("dull", None, 0)], 32)
    model.train()
    state = torch.get_rng_state()
    losses, margins = model_utils.evaluate(model, tokenizer, encoded, 7, "cpu")
    assert model.training and torch.equal(torch.get_rng_state(), state)
    model.eval()
    assert losses.dtype == margins.dtype == torch.float64 and losses.shape == margins.shape == (len(encoded),)
    for item, loss, margin in zip(encoded, losses, margins, strict=True):
        logits = model(torch.tensor([item["input_ids"]])).logits[0]
        label = item["label"]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(label)).item()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert margin.item() == pytest.approx((logits[label] - logits[1 - label]).item(), abs=1e-6)


def test_the_margin_is_to_the_largest_other_logit(tiny_model, tiny_data):
    _, tokenizer, _ = model_utils.load_model(tiny_settings(tiny_model, tiny_data))
    encoded = model_utils.tokenize(tokenizer, [model_utils.Example("dull", None, 1)], 32)
    logits = torch.tensor([[0.5, 2.0, 3.5]])
    fixed = type("Fixed", (torch.nn.Module,), {"forward": lambda self, **_: type("Out", (), {"logits": logits})()})()
    _, margins = model_utils.evaluate(fixed, tokenizer, encoded, 4, "cpu")
    assert margins.tolist() == [2.0 - 3.5]


@pytest.mark.parametrize(("family", "head"), [("distilbert", "pre_classifier"), ("bert", "pooler"), ("gpt2", "score")])
def test_attention_alone_trains_the_selected_weights_and_the_head(family, head):
    model = small_model(family)
    weights, _ = model_utils.attention_weights(model, (1,))
    model_utils.train_attention_alone(model, weights, ())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(weights) < trained and any(head in name for name in trained)
    assert all(re.search("classifier|pooler|score", name) for name in trained - set(weights))


def test_weights_that_a_model_does_not_use_are_found(tiny_model, tiny_data):
    model, tokenizer, _ = model_utils.load_model(tiny_settings(tiny_model, tiny_data))
    encoded = model_utils.tokenize(tokenizer, [model_utils.Example("a dull film .", None, 0)], 32)
    inputs, _ = model_utils.collate(tokenizer, encoded, "cpu")
    assert model_utils.unused_weights(model, inputs) == set()
    model.spare = torch.nn.Linear(2, 2)
    model.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        assert model_utils.unused_weights(model, inputs) == {"spare.weight", "spare.bias"}
        assert all(module.training == training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_texts_are_cut_at_max_length(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encoded = model_utils.tokenize(tokenizer, [model_utils.Example("film " * 50, "plot " * 50, 1)], 16)
    assert len(encoded[0]["input_ids"]) == 16
    inputs, labels = model_utils.collate(tokenizer, encoded, "cpu")
    assert inputs["input_ids"].shape == (1, 16) and labels.tolist() == [1]
    (pair,) = model_utils.tokenize(tokenizer, [model_utils.Example("dull", "superb", 1)], 16)
    assert tokenizer.decode(pair["input_ids"]).split() == ["[CLS]", "dull", "[SEP]", "superb", "[SEP]"]


def test_an_absent_file_is_called_absent():
    settings = config.load(["--dataset_name", "data.csv"])
    with pytest.raises(ValueError, match=r"DATASET_NAME = 'data\.csv': no such file or folder"):
        model_utils.load_data(settings)


def test_a_run_folder_is_no_model(finished_run):
    with pytest.raises(ValueError, match="is a run folder, give its model/ folder"):
        model_utils.load_model(config.load(["--model_name", str(finished_run)]))


def test_a_model_without_its_tokenizer_is_refused(tiny_model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, folder / name)
    with pytest.raises(ValueError, match="tokenizer"):
        model_utils.load_model(config.load(["--model_name", str(folder)]))


def test_unknown_words_are_warned_of_and_ids_beyond_the_vocabulary_refused(tiny_model):
    model, tokenizer, _ = model_utils.load_model(config.load(["--model_name", str(tiny_model), "--max_length", "16"]))
    lines, unknown = [], tokenizer.unk_token_id
    other = max(tokenizer.get_vocab().values())
    model_utils.check_vocabulary(tokenizer, [{"input_ids": [other] * 99 + [unknown]}], model, lines.append)
    assert lines == []
    model_utils.check_vocabulary(tokenizer, [{"input_ids": [other] * 9 + [unknown]}], model, lines.append)
    assert len(lines) == 1 and "10% of the tokens are unknown" in lines[0]
    size = model.get_input_embeddings().num_embeddings
    with pytest.raises(ValueError, match=f"gives id {size}: must be below {size}"):
        model_utils.check_vocabulary(tokenizer, [{"input_ids": [size]}], model, print)
