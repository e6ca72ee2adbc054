"""The training loop: who steps which weight, what stops it, and what it leaves behind."""

import csv
import itertools
import json
import math
import re
import signal
import time

import numpy as np
import pytest
import torch
from conftest import (
    end_weights,
    equal_weights,
    metric_rows,
    one_error,
    only_run,
    read_json,
    run_training,
    small_model,
    start_script,
    start_training,
    stop_at,
)
from safetensors.torch import load_file

import config
import model_utils
import quantum_circuits
import train
from update_rules import RULES


def run_into(results, flags, *more):
    """The folder of a finished run with these flags, in a results folder of its own."""
    assert run_training([*flags, *more, "--results_dir", results]) == 0
    return only_run(results)


def spy_on_updates(monkeypatch):
    """Every call of quantum_parameter_update from now on: [(gradient, arguments, update)]."""
    calls, real = [], quantum_circuits.quantum_parameter_update

    def spy(gradient, backend, **arguments):
        update, usage = real(gradient, backend, **arguments)
        calls.append((gradient.clone(), arguments, update.clone()))
        return update, usage

    monkeypatch.setattr(quantum_circuits, "quantum_parameter_update", spy)
    return calls


def initial_weights(flags):
    model, _, _ = model_utils.load_model(config.load(flags))
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_a_run_folder_is_complete(tiny_flags, tmp_path, capsys):
    assert run_training(tiny_flags) == 0
    run = only_run(tmp_path / "results")
    names = {
        "config.json",
        "environment.json",
        "metrics.csv",
        "predictions.csv",
        "training_statistics.json",
        "training_curves.png",
    }
    assert {path.name for path in run.iterdir()} == names | {"model"}
    settings = config.load(tiny_flags)
    assert read_json(run / "config.json") == json.loads(json.dumps(settings._asdict()))
    environment = read_json(run / "environment.json")
    assert environment["argv"] == tiny_flags and environment["backend"] == "aer"
    assert environment["packages"]["qiskit-aer"] and environment["model"]["path"] == settings.model_name
    statistics = read_json(run / "training_statistics.json")
    assert statistics["status"] == "finished" and statistics["steps"] == 3 and statistics["coverage"] == 1.0
    circuits = 3 * 4 * math.ceil(16 * 16 / 5)
    assert (statistics["circuits"], statistics["shots"]) == (circuits, circuits * 1000)
    rows = metric_rows(run)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "3"]
    assert [bool(row["eval_accuracy"]) for row in rows] == [True, False, False, False, True]
    assert all(0.9 < float(row["cosine"]) <= 1 and float(row["coverage"]) == 1 for row in rows[1:4])
    out = capsys.readouterr().out
    assert "finished after 3 steps" in out and str(run / "metrics.csv") in out


def test_selected_weights_get_exactly_one_update_per_step_and_nothing_else(tiny_flags, tmp_path, monkeypatch):
    calls = spy_on_updates(monkeypatch)
    start = initial_weights(tiny_flags)
    assert run_training(tiny_flags) == 0
    end = end_weights(only_run(tmp_path / "results"))
    names = [f"distilbert.transformer.layer.0.attention.{part}_lin.weight" for part in ("q", "k", "v", "out")]
    assert len(calls) == 3 * len(names)
    for index, name in enumerate(names):
        weight = start[name]
        for _, _, update in calls[index :: len(names)]:
            assert torch.count_nonzero(update) > 0.9 * update.numel()
            weight = weight - update
        assert torch.equal(weight, end[name]), name
    others = [name for name in start if name not in names]
    assert all(not torch.equal(start[name], end[name]) for name in others)  # AdamW steps all of them


def test_no_two_updates_share_a_seed(tiny_flags, monkeypatch):
    calls = spy_on_updates(monkeypatch)
    run_training([*tiny_flags, "--attention_layers", "all"])
    seeds = [arguments["seed"] for _, arguments, _ in calls]
    assert len(set(seeds)) == len(seeds) == 3 * 8
    assert {seed[0] for seed in seeds} == {42} and {seed[1] for seed in seeds} == {1, 2, 3}


def test_settings_reach_the_update(tiny_flags, monkeypatch):
    calls = spy_on_updates(monkeypatch)
    flags = ["--normalization", "tensor", "--shots", "77", "--quantum_learning_rate", "0.5", "--seed", "5"]
    flags += ["--quantum_schedule", "constant"]
    run_training([*tiny_flags, *flags])
    for _, arguments, _ in calls:
        assert (arguments["normalization"], arguments["shots"], arguments["learning_rate"]) == ("tensor", 77, 0.5)
        assert arguments["seed"][0] == 5


def test_adamw_on_the_measured_gradient_is_classical_training_but_for_the_shots(tiny_flags, tmp_path, monkeypatch):
    """With the gradient itself in place of its measurement, QUANTUM_OPTIMIZER = "adamw" is the classical run."""

    def measured(gradient, backend, **arguments):
        assert arguments["learning_rate"] == 1.0
        return gradient.clone(), quantum_circuits.Usage(gradient.numel(), 1, 1, 0.0)

    classical = run_into(tmp_path / "classical", tiny_flags, "--update_rule", "classical")
    monkeypatch.setattr(quantum_circuits, "quantum_parameter_update", measured)
    quantum = run_into(tmp_path / "quantum", tiny_flags, "--quantum_optimizer", "adamw")
    assert equal_weights(end_weights(classical), end_weights(quantum))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_same_seed_same_run_and_another_seed_another(tiny_flags, tmp_path, optimizer):
    ends = []
    for index, seed in enumerate((1, 1, 2)):
        flags = ["--seed", seed, "--quantum_optimizer", optimizer]
        ends.append(end_weights(run_into(tmp_path / str(index), tiny_flags, *flags)))
    assert equal_weights(ends[0], ends[1]) and not equal_weights(ends[0], ends[2])


@pytest.mark.parametrize(("rate", "decay"), [(5e-5, 0.01), (1e-3, 5.0)])
def test_classical_training_matches_a_plain_torch_loop(tiny_flags, tmp_path, rate, decay):
    run_training([*tiny_flags, "--update_rule", "classical", "--learning_rate", rate, "--weight_decay", decay])
    end = end_weights(only_run(tmp_path / "results"))
    settings = config.load(tiny_flags)
    data = model_utils.load_data(settings)
    model, tokenizer, _ = model_utils.load_model(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    torch.manual_seed(settings.seed)
    model.train()
    order, expected = train.shuffled(12, settings.seed, 1), []
    for step, batch in enumerate([order[0:4], order[4:8], order[8:12]]):
        examples = [data.train[index] for index in batch]
        inputs = tokenizer([e.text for e in examples], padding=True, return_tensors="pt")
        labels = torch.tensor([e.label for e in examples])
        outputs = model(**inputs, labels=labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / 3)
        optimizer.step()
        correct = (outputs.logits.argmax(dim=1) == labels).double().mean()
        expected.append([outputs.loss.item(), correct.item(), rate * (1 - step / 3)])
    for name, weight in model.named_parameters():
        torch.testing.assert_close(end[name], weight.detach(), rtol=1e-6, atol=1e-8)
    *_, evaluation = rows = metric_rows(only_run(tmp_path / "results"))
    recorded = [[float(row[name]) for name in ("loss", "accuracy", "learning_rate")] for row in rows if row["loss"]]
    np.testing.assert_allclose(recorded, expected, rtol=1e-5)
    inputs = tokenizer([e.text for e in data.evaluation], padding=True, return_tensors="pt")
    labels = torch.tensor([e.label for e in data.evaluation])
    outputs = model.eval()(**inputs, labels=labels)
    correct = (outputs.logits.argmax(dim=1) == labels).double().mean()
    assert float(evaluation["eval_loss"]) == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert float(evaluation["eval_accuracy"]) == pytest.approx(correct.item())


def test_batches_cover_every_example_once_in_an_order_of_their_own():
    orders = [train.shuffled(10, seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(order) == list(range(10)) for order in orders) and len({str(order) for order in orders}) == 4
    for index, (seed, epoch) in enumerate(itertools.product((0, 1), (1, 2))):
        for sizes, shapes in (((4, 1), [[4], [4], [2]]), ((2, 3), [[2, 2, 2], [2, 2]])):
            flags = ["--seed", str(seed), "--batch_size", str(sizes[0]), "--accumulation_steps", str(sizes[1])]
            settings = config.load([*flags, "--num_epochs", "2"])
            assert train.count_steps(settings, 10) == 2 * len(shapes)
            steps = [train.batches_of_step(10, settings, epoch, place) for place in range(len(shapes))]
            assert [list(map(len, batches)) for batches in steps] == shapes
            assert list(itertools.chain(*itertools.chain(*steps))) == orders[index]


# --- The rule `gradient`: the gradient itself


def test_gradient_is_what_exact_measures_with_graph():
    """In float64, to 1e-9 of the learning rate times the gradient: what `exact` and `gradient` isolate is nothing."""
    gradients = {"a": torch.randn(31, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    settings = config.load(["--update_rule", "gradient", "--quantum_learning_rate", "0.3"])
    updates, usage = train.measure_gradients(gradients, train.make_backend(settings), settings, 1, 0.3)
    assert usage == {"coverage": None, "circuits": 0, "shots": 0}
    exact = config.load(["--update_rule", "exact", "--quantum_learning_rate", "0.3", "--circuit", "graph"])
    measured, used = train.measure_gradients(gradients, train.make_backend(exact), exact, 1, 0.3)
    assert used["circuits"] == math.ceil(31 * 7 / 5)
    assert torch.equal(updates["a"], 0.3 * gradients["a"])
    assert (updates["a"] - measured["a"]).abs().max() <= 1e-9 * 0.3 * gradients["a"].abs().max()


@pytest.fixture(scope="module")
def one_of_each_rule(tiny_model, tiny_data, tmp_path_factory):
    """Run folders by rule, of 6 steps with seed 42 and a learning rate that makes the shots' noise show."""
    results = tmp_path_factory.mktemp("rules")
    flags = ["--model_name", tiny_model, "--dataset_name", tiny_data, "--train_size", "12", "--eval_size", "10"]
    flags += ["--batch_size", "4", "--num_epochs", "2", "--max_length", "32", "--quantum_learning_rate", "10"]
    return {rule: run_into(results / rule, flags, "--update_rule", rule) for rule in RULES}


def test_a_run_with_gradient_is_one_with_exact(one_of_each_rule):
    gradient, exact = (end_weights(one_of_each_rule[rule]) for rule in ("gradient", "exact"))
    for name in gradient:
        assert (gradient[name] - exact[name]).abs().max() < 1e-5, name
    quantum = end_weights(one_of_each_rule["quantum"])
    name = "distilbert.transformer.layer.0.attention.v_lin.weight"
    assert (quantum[name] - exact[name]).abs().max() > 1e-5  # where there are shots


def test_gradient_runs_no_circuits(one_of_each_rule):
    rows = [row for row in metric_rows(one_of_each_rule["gradient"]) if row["loss"]]
    assert len(rows) == 6
    for done, row in enumerate(rows):
        assert (row["circuits"], row["shots"], row["coverage"]) == ("0", "0", "")
        assert float(row["cosine"]) == pytest.approx(1, abs=1e-12)
        rate = 10 * (1 - done / 6)  # decays linearly
        assert float(row["update_norm"]) == pytest.approx(rate * float(row["gradient_norm"]), rel=1e-6)
    assert not [name for name in rows[0] if name.startswith("seconds_quantum ")]
    statistics = read_json(one_of_each_rule["gradient"] / "training_statistics.json")
    assert (statistics["circuits"], statistics["shots"], statistics["coverage"]) == (0, 0, None)
    assert statistics["mean_cosine"] == pytest.approx(1, abs=1e-12)
    assert read_json(one_of_each_rule["gradient"] / "environment.json")["backend"] is None


def test_gradient_with_adamw_is_the_classical_run_bit_for_bit(tiny_flags, tmp_path, one_of_each_rule):
    flags = ["--num_epochs", "2", "--update_rule", "gradient", "--quantum_optimizer", "adamw"]
    run = run_into(tmp_path / "adamw", tiny_flags, *flags)
    assert equal_weights(end_weights(run), end_weights(one_of_each_rule["classical"]))
    assert not equal_weights(end_weights(run), end_weights(one_of_each_rule["gradient"]))


# --- Runs of the same identity compute the same


@pytest.mark.parametrize(
    ("flags", "ignored"),
    [
        (["--update_rule", "quantum"], ["--checkpoint_every", "1", "--sample_sentences", "the film is dull"]),
        (["--update_rule", "quantum"], ["--embedded_learning_rate", "1", "--dataset_config", "cola"]),
        (["--update_rule", "quantum", "--quantum_optimizer", "adamw"], ["--quantum_learning_rate", "3"]),
        (["--update_rule", "exact"], ["--shots", "3"]),
        (["--update_rule", "gradient"], ["--shots", "3", "--circuit", "chain", "--normalization", "tensor"]),
        (
            ["--update_rule", "classical"],
            ["--quantum_learning_rate", "3", "--num_qubits", "2", "--backend", "fake:Brisbane"],
        ),
    ],
)
def test_a_setting_that_identity_leaves_out_changes_no_result(tiny_flags, tmp_path, flags, ignored):
    one, other = config.load([*tiny_flags, *flags]), config.load([*tiny_flags, *flags, *ignored])
    affecting = [config.settings_that_affect_result(settings._asdict()) for settings in (one, other)]
    assert affecting[0] == affecting[1]
    ends = [end_weights(run_into(tmp_path / str(len(more)), tiny_flags, *flags, *more)) for more in ((), ignored)]
    assert equal_weights(*ends)


# --- Schedule, trained weights, evaluations


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_schedule_of_the_quantum_learning_rate(tiny_flags, monkeypatch, schedule):
    calls = spy_on_updates(monkeypatch)
    run_training([*tiny_flags, "--quantum_learning_rate", "0.3", "--quantum_schedule", schedule])
    rates = [arguments["learning_rate"] for _, arguments, _ in calls[::4]]
    assert rates == pytest.approx([0.3, 0.2, 0.1] if schedule == "linear" else [0.3] * 3)


def test_with_adamw_the_measured_gradient_is_not_scaled():
    settings = config.load(["--quantum_optimizer", "adamw", "--quantum_learning_rate", "7"])
    assert [train.quantum_learning_rate(settings, done) for done in (0, 0.5)] == [1.0, 1.0]


@pytest.mark.parametrize("rule", ["quantum", "classical", "frozen"])
def test_attention_alone_leaves_all_other_weights(tiny_flags, tmp_path, rule):
    start = initial_weights(tiny_flags)
    assert run_training([*tiny_flags, "--trained_weights", "attention", "--update_rule", rule]) == 0
    end = end_weights(only_run(tmp_path / "results"))
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    selected = {name for name in start if ".layer.0.attention." in name and name.endswith("_lin.weight")}
    head = {name for name in start if "classifier" in name}
    assert changed == head | (selected if rule != "frozen" else set())


def test_evaluations_come_as_often_as_told_and_change_no_result(tiny_flags, tmp_path):
    whole, often = (
        run_into(tmp_path / name, tiny_flags, "--num_epochs", "2", "--eval_every", every)
        for name, every in (("whole", "0"), ("often", "4"))
    )
    steps = {run: [row["step"] for row in metric_rows(run) if row["eval_loss"]] for run in (whole, often)}
    assert steps == {whole: ["0", "3", "6"], often: ["0", "4", "6"]}
    ends = end_weights(whole), end_weights(often)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_predictions_are_kept_and_resumed(tiny_flags, tmp_path, monkeypatch):
    """Every evaluation has a row for each example, whose margins say the accuracy; a resumed run has the same."""
    flags = [*tiny_flags, "--num_epochs", "2", "--eval_every", "2"]
    whole = run_into(tmp_path / "whole", flags)
    with (whole / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    evaluations = [row for row in metric_rows(whole) if row["eval_accuracy"]]
    assert len(rows) == 10 * len(evaluations)
    for index, evaluation in enumerate(evaluations):
        part = rows[10 * index : 10 * (index + 1)]
        assert {row["step"] for row in part} == {evaluation["step"]}
        assert [row["example"] for row in part] == [str(example) for example in range(10)]
        assert sum(float(row["margin"]) > 0 for row in part) / 10 == float(evaluation["eval_accuracy"])
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert run_training([*flags, "--results_dir", tmp_path / "cut"]) == 130
    cut = only_run(tmp_path / "cut")
    with (cut / "predictions.csv").open("a") as file:
        file.write("9,0,1,0.5\n")  # after the checkpoint
    assert run_training(["--resume", cut]) == 0
    assert (cut / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()


def test_an_evaluation_due_amid_an_epoch_is_resumed_with_its_epoch(tiny_flags, tmp_path, monkeypatch):
    flags = [*tiny_flags, "--num_epochs", "2", "--eval_every", "2"]
    whole = run_into(tmp_path / "whole", flags)
    real, calls = train.evaluate, []

    def evaluate(job):
        calls.append(None)
        if len(calls) == 2:  # after step 2 of 3 of the first epoch
            raise KeyboardInterrupt
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", evaluate)
        assert run_training([*flags, "--results_dir", tmp_path / "cut"]) == 130
    assert run_training(["--resume", "latest", "--results_dir", tmp_path / "cut"]) == 0
    rows = [
        [(row["step"], row["epoch"], row["eval_loss"]) for row in metric_rows(run)]
        for run in (whole, only_run(tmp_path / "cut"))
    ]
    assert rows[0] == rows[1] and ("2", "1") in {row[:2] for row in rows[0]}


def test_a_study_makes_the_evaluations_it_is_asked_for(tiny_flags, tmp_path):
    study = [*tiny_flags, "--update_rules", "classical,frozen", "--results_dir", tmp_path / "runs"]
    for every in ("0", "1"):
        assert run_training([*study, "--eval_every", every]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 4


# --- What stops a run


def break_at_step(monkeypatch, wanted, action):
    """Let cross_entropy of the training loop do `action(loss)` at step `wanted`."""
    real, count = train.cross_entropy, [0]

    def broken(logits, labels, **options):
        count[0] += 1
        loss = real(logits, labels, **options)
        return action(loss) if count[0] == wanted else loss

    monkeypatch.setattr(train, "cross_entropy", broken)


def spoil_gradient(loss):
    loss = loss * 1.0
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


@pytest.mark.parametrize("rule", ["quantum", "classical"])
@pytest.mark.parametrize(
    ("action", "what"),
    [(lambda loss: loss * math.nan, "the loss is not finite"), (spoil_gradient, "the gradient of .* is not finite")],
    ids=["loss", "gradient"],
)
def test_divergence_stops_before_any_weight_changes(tiny_flags, tmp_path, monkeypatch, capsys, rule, action, what):
    kept, real = [], model_utils.load_model
    monkeypatch.setattr(model_utils, "load_model", lambda settings: kept.append(real(settings)) or kept[0])
    monkeypatch.setattr(train, "step_weights", lambda *args, real=train.step_weights: (real(*args), keep(kept))[0])
    break_at_step(monkeypatch, 2, action)
    assert run_training([*tiny_flags, "--update_rule", rule]) == 1
    statistics = read_json(only_run(tmp_path / "results") / "training_statistics.json")
    assert (statistics["status"], statistics["steps"]) == ("diverged", 1)
    assert len(metric_rows(only_run(tmp_path / "results"))) == 2
    err = capsys.readouterr().err
    assert err.count("error: diverged") == 1 and re.search(what, err)
    after_first, now = kept[1], dict(kept[0][0].named_parameters())
    assert all(torch.equal(after_first[name], now[name]) for name in now)


def keep(kept):
    kept.append({name: weight.detach().clone() for name, weight in kept[0][0].named_parameters()})


def test_an_update_that_is_not_finite_diverges(tiny_flags, tmp_path, monkeypatch, capsys):
    """A finite gradient near the largest float32, times the learning rate, overflows inside the update."""
    kept, real = [], model_utils.load_model
    monkeypatch.setattr(model_utils, "load_model", lambda settings: kept.append(real(settings)) or kept[-1])
    before = initial_weights(tiny_flags)
    measure = train.measure_gradients
    huge = lambda found: {name: g / g.abs().max() * 3e38 for name, g in found.items()}  # noqa: E731
    monkeypatch.setattr(train, "measure_gradients", lambda gradients, *rest: measure(huge(gradients), *rest))
    assert run_training([*tiny_flags, "--quantum_learning_rate", "100"]) == 1
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["status"] == "diverged"
    assert "the update is not finite in torch.float32" in capsys.readouterr().err
    assert all(torch.equal(before[name], weight) for name, weight in kept[-1][0].named_parameters())


def test_an_evaluation_that_is_not_finite_diverges(tiny_flags, tmp_path, monkeypatch):
    bad = torch.full((10,), math.nan, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
    monkeypatch.setattr(model_utils, "evaluate", lambda *args: bad)
    assert run_training(tiny_flags) == 1
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["status"] == "diverged"


def test_a_failure_while_saving_the_model_is_not_a_finished_run(tiny_flags, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "save_model", full)
    assert run_training(tiny_flags) == 1
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["status"] == "failed"
    assert "No space left on device" in capsys.readouterr().err


def test_ctrl_c_before_the_first_row_is_an_interruption(tiny_flags, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.summary, "announce", stop)
    assert run_training(tiny_flags) == 130
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["status"] == "interrupted"


def test_a_selected_weight_that_the_model_does_not_use_is_refused(tiny_flags, tmp_path, monkeypatch):
    real = model_utils.load_model

    def with_spare(settings):
        model, tokenizer, source = real(settings)
        model.spare = torch.nn.Parameter(torch.ones(3, 3))
        return model, tokenizer, source

    monkeypatch.setattr(model_utils, "load_model", with_spare)
    with pytest.raises(ValueError, match=r"^the selected weight spare gets no gradient: .*select others$"):
        run_training([*tiny_flags, "--attention_layers", "all", "--attention_pattern", "^spare$"])
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("family", ["gpt2", "albert"])
def test_whole_runs_of_families_with_fused_or_shared_weights(tiny_flags, tiny_model, tmp_path, family, capsys):
    from transformers import AutoTokenizer

    folder = tmp_path / family
    small_model(family, vocab_size=40).base_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    assert run_training([*tiny_flags, "--model_name", str(folder), "--attention_layers", "1"]) == 0
    assert {"gpt2": "c_attn", "albert": "ALBERT shares"}[family] in capsys.readouterr().out
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["coverage"] == 1.0


def test_ctrl_c_leaves_whole_files(tiny_flags, tmp_path):
    process = start_training(tiny_flags, tmp_path / "results")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    run = only_run(tmp_path / "results")
    statistics = read_json(run / "training_statistics.json")
    assert statistics["status"] == "interrupted" and statistics["steps"] >= 3
    rows = metric_rows(run)
    assert len(rows) == statistics["steps"] + len(statistics["evaluations"]) and "interrupted after" in out
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    newest = max((run / "checkpoint").iterdir())
    assert newest.name == f"step_{statistics['steps']:08d}" and load_file(newest / "model.safetensors")


@pytest.mark.parametrize("delay", [1.0, 1.6])
def test_ctrl_c_before_training_is_one_line_and_leaves_nothing(tiny_flags, tmp_path, delay):
    """Whatever library is being imported or loaded at that moment."""
    process = start_script("train.py", *tiny_flags, "--num_epochs", "5000", fresh=True)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    if not (tmp_path / "results").exists():
        assert err == "interrupted\n"


def test_an_unexpected_error_is_recorded_as_failed(tiny_flags, tmp_path, monkeypatch, capsys):
    def bug(*args):
        raise TypeError("not enough values to unpack")

    monkeypatch.setattr(train, "step_weights", bug)
    assert run_training(tiny_flags) == 1
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["status"] == "failed"
    line = one_error(capsys.readouterr().err)
    assert line == "error: TypeError: not enough values to unpack; --debug shows where"
    assert run_training([*tiny_flags, "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "in bug\n" in err and line in err


# --- Preparation


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train.choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="DEVICE = 'cuda': no CUDA device"):
        train.choose_device("cuda")


def test_refused_settings_leave_no_run_folder(tiny_flags, tmp_path):
    for flags, match in (
        (["--circuit", "spiral"], "CIRCUIT = 'spiral'"),
        (["--attention_layers", "5"], r"ATTENTION_LAYERS = \[5\]"),
        (["--train_size", "1000"], "TRAIN_SIZE = 1000"),
    ):
        with pytest.raises(ValueError, match=match):
            run_training([*tiny_flags, *flags])
    assert not (tmp_path / "results").exists()
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ValueError, match=r"RESULTS_DIR = .*: must be a folder, or a new name"):
        run_training(tiny_flags)


def test_a_device_that_the_installed_aer_lacks_is_refused(tiny_flags, tmp_path):
    with pytest.raises(ValueError, match="AER_DEVICE = 'GPU': the installed qiskit-aer has CPU alone"):
        run_training([*tiny_flags, "--aer_device", "GPU"])
    assert not (tmp_path / "results").exists()


def test_seconds_of_the_circuits_by_weight_add_up(one_of_each_rule):
    run = one_of_each_rule["quantum"]
    statistics = read_json(run / "training_statistics.json")
    columns = [f"seconds_quantum {name}" for name in statistics["selected_weights"]]
    for row in metric_rows(run)[1:4]:
        assert 0 < sum(float(row[column]) for column in columns) <= float(row["seconds_quantum"])
    assert 0 < sum(statistics[column] for column in columns) <= statistics["seconds_quantum"]


def test_autocast_changes_the_arithmetic_and_not_the_weights_dtype(tiny_flags, tmp_path):
    losses = {}
    for autocast in ("off", "bf16"):
        run = run_into(tmp_path / autocast, tiny_flags, "--autocast", autocast)
        losses[autocast] = [float(row["loss"]) for row in metric_rows(run)[1:4]]
        assert {weight.dtype for weight in end_weights(run).values()} == {torch.float32}
    assert losses["off"] != losses["bf16"]
    assert losses["off"] == pytest.approx(losses["bf16"], rel=0.02)  # bfloat16 rounds at 2^-9


def test_compare_is_cosine_norms_and_coverage():
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    same = train.compare(gradients, {name: 0.1 * gradient for name, gradient in gradients.items()})
    assert (
        same["cosine"] == pytest.approx(1) and same["gradient_norm"] == 5 and same["update_norm"] == pytest.approx(0.5)
    )
    across = train.compare(gradients, {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[0.0]])})
    assert across["cosine"] == 0
    assert train.compare(gradients, {name: torch.zeros_like(g) for name, g in gradients.items()})["cosine"] is None
