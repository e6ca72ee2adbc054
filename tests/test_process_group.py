"""One run over several processes, as `torchrun` starts it: two or three on this machine, linked by gloo."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import (
    ROOT,
    assert_same_run,
    end_weights,
    metric_rows,
    only_run,
    read_json,
    run_training,
    stop_at,
    wait_for,
)

import config
import quantum_circuits
import train
from aer_engine import AerBackend
from harness import checkpoints, process_group, run_folder

slow = pytest.mark.slow  # every test that starts torchrun

# 13 examples in batches of 4: in the last batch of an epoch one process has no example of its own.
SIZES = ["--train_size", "13", "--eval_size", "10", "--batch_size", "4", "--num_epochs", "2", "--max_length", "32"]


@pytest.fixture
def flags(tiny_model, tiny_data):
    return ["--model_name", str(tiny_model), "--dataset_name", str(tiny_data), *SIZES]


@pytest.fixture
def flags_without_dropout(tiny_model, flags, tmp_path):
    """Dropout off: its draws depend on how a batch is split."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    settings |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    (model / "config.json").write_text(json.dumps(settings))
    return [*flags, "--model_name", str(model)]


def start(*arguments, script="train.py", launcher=("--standalone", "--nproc_per_node=2")):
    """`torchrun train.py ...` in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(ROOT / script), *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **streams)


def finish(process, status=0):
    out, err = process.communicate(timeout=200)
    assert process.returncode == status, err
    return out, err


def assert_close(first, second):
    """The same rows, to the rounding of sums; circuits and shots the same."""
    rows, others = metric_rows(first), metric_rows(second)
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name in row.keys() - {column for column in row if column.startswith("seconds")}:
            value, theirs = (float(cell or "nan") for cell in (row[name], other[name]))
            assert value == pytest.approx(theirs, rel=2e-4, nan_ok=True), (row["step"], name)
    weights, others = end_weights(first), end_weights(second)
    for name, weight in weights.items():
        assert torch.allclose(weight, others[name], atol=1e-6), name


def by_rule(results):
    return {run_folder.read(run)["settings"]["update_rule"]: run for run in results.glob("run_*")}


@slow
def test_two_processes_compute_what_one_does(flags_without_dropout, tmp_path):
    study = [*flags_without_dropout, "--update_rules", "quantum,exact,gradient,classical", "--attention_layers", "all"]
    study += ["--accumulation_steps", "2", "--max_gradient_norm", "0.001", "--quantum_learning_rate", "10"]
    out, _ = finish(start(*study, "--results_dir", tmp_path / "two"))
    assert out.count("study finished, 0 runs failed") == 1  # one process speaks
    assert run_training([*study, "--results_dir", tmp_path / "one"]) == 0
    ones, twos = by_rule(tmp_path / "one"), by_rule(tmp_path / "two")
    assert ones.keys() == twos.keys() == {"quantum", "exact", "gradient", "classical"}
    for rule, run in ones.items():
        assert_close(run, twos[rule])
    assert read_json(twos["quantum"] / "environment.json")["processes"] == 2


@slow
def test_resumed_on_three_processes_it_is_the_run_left_alone(tmp_path):
    """With dropout and shots, bit for bit, from the middle of an epoch; of three summands the order matters, too."""
    flags = ["--model_name", "embedded", "--dataset_name", "embedded", *SIZES, "--shots", "1"]
    three = ("--standalone", "--nproc_per_node=3")
    finish(start(*flags, "--results_dir", tmp_path / "whole", launcher=three))
    change = "train.measure_gradients = stop_at(train.measure_gradients, 4)"
    script = script_that_differs(tmp_path, "any", change)
    _, err = finish(start(*flags, "--results_dir", tmp_path / "cut", script=script, launcher=three), status=1)
    assert err.count("to go on: torchrun --nproc_per_node=3 train.py --resume") == 1
    run = only_run(tmp_path / "cut")
    assert [folder.name for folder in (run / "checkpoint").iterdir()] == ["step_00000003"]
    finish(start("--resume", run, launcher=three))
    assert_same_run(only_run(tmp_path / "whole"), run)


def process_of(rank, results):
    """Process id of a rank of the run that writes to a results folder."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", encoding="utf-8") as command:
                    ours = f"\0{results}\0" in command.read()
                with open(f"/proc/{name}/environ", encoding="utf-8") as environment:
                    if ours and f"\0RANK={rank}\0" in "\0" + environment.read():
                        return int(name)
            except (OSError, UnicodeDecodeError):
                continue
    raise AssertionError(f"no process of rank {rank}")


def make_longer_or_shorter(run, num_epochs):
    """Give an unfinished run another number of epochs, in its settings and in its checkpoints, which must agree."""
    settings = read_json(run / "config.json") | {"num_epochs": num_epochs}
    (run / "config.json").write_text(json.dumps(settings))
    for folder in checkpoints.saved(run):
        state = torch.load(folder / "training_state.pt", weights_only=True)
        state["progress"]["settings"]["num_epochs"] = num_epochs
        torch.save(state, folder / "training_state.pt")
        hashes = {name: checkpoints.sha256(folder / name) for name in checkpoints.FILES}
        (folder / "sha256.json").write_text(json.dumps(hashes))


@slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_run_and_another_number_resumes_it(flags_without_dropout, tmp_path, rank):
    results = tmp_path / "cut"
    long = ["--num_epochs", "400", "--checkpoint_every", "2", "--update_rule", "exact"]
    process = start(*flags_without_dropout, *long, "--results_dir", results)
    wait_for(lambda: any(results.glob("*/checkpoint/step_*")), process)
    begun = time.monotonic()
    os.kill(process_of(rank, results), signal.SIGKILL)
    _, err = finish(process, status=1)
    assert time.monotonic() - begun < 60
    first = err[err.index("Root Cause") :]
    assert re.search(rf"rank +: {rank} \(local_rank: {rank}\)\s+exitcode +: -9", first), err
    run = only_run(results)
    assert read_json(run / "training_statistics.json")["status"] in ("interrupted", "running")
    reached = max(int(folder.name[5:]) for folder in (run / "checkpoint").iterdir())
    assert reached < 1600
    # To the end of the epoch after the next, on one process, against a run of one process that was left alone.
    epochs = reached // 4 + 2
    make_longer_or_shorter(run, epochs)
    assert run_training(["--resume", run]) == 0
    left_alone = ["--num_epochs", epochs, "--update_rule", "exact", "--results_dir", tmp_path / "whole"]
    assert run_training([*flags_without_dropout, *left_alone]) == 0
    for row, other in zip(metric_rows(run), metric_rows(only_run(tmp_path / "whole")), strict=True):
        assert not row["loss"] or float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)


@slow
def test_ctrl_c_leaves_a_checkpoint_that_two_machines_go_on_with(flags, tmp_path, monkeypatch):
    """A launcher for each of the machines, both of them this one; the run was begun by a single process."""
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert run_training([*flags, "--num_epochs", "4000", "--results_dir", tmp_path / "runs"]) == 130
    run = only_run(tmp_path / "runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        start(
            *("--resume", run),
            launcher=("--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1", f"--master_port={port}"),
        )
        for node in range(2)
    ]
    wait_for(lambda: len(metric_rows(run)) > 20, nodes[0])
    for node in nodes:
        node.send_signal(signal.SIGINT)
    outputs = [node.communicate(timeout=120) for node in nodes]
    assert len([err for _, err in outputs if "; to go on: torchrun --nproc_per_node=" in err]) == 1
    steps = run_folder.read(run)["statistics"]["steps"]
    assert max((run / "checkpoint").iterdir()).name == f"step_{steps:08d}"
    assert read_json(run / "training_statistics.json")["status"] == "interrupted"


def script_that_differs(folder, rank, change):
    """train.py with a line of code more in the process of a rank, or of "any"."""
    script = folder / "train_differently.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import model_utils, quantum_circuits, train
from harness import command_line, record, run_folder

def refuse(error):
    def f(*_, **__):
        raise error
    return f

def stop_at(real, step):
    return lambda *given: real(*given) if given[3] != step else refuse(KeyboardInterrupt())()

if os.environ["RANK"] == "{rank}" or "{rank}" == "any":
    {change}
command_line.run_as_script(train.main, command_line.parse_or_exit(sys.argv[1:]))
""")
    return script


@slow
def test_a_full_disk_ends_a_study_of_all_processes(flags, tmp_path):
    """The first process alone meets it, while the others wait for their next sum."""
    change = "record.CsvFile.write = refuse(OSError(28, 'No space left on device'))"
    script = script_that_differs(tmp_path, 0, change)
    study = [*flags, "--update_rules", "exact,classical", "--results_dir", tmp_path / "results"]
    begun = time.monotonic()
    _, err = finish(start(*study, script=script), status=1)
    err, _, _ = err.partition("FAILED")  # torchrun's report
    assert err.count("error: ") == err.count("No space left on device") == 1, err
    assert time.monotonic() - begun < 90
    assert read_json(only_run(tmp_path / "results") / "training_statistics.json")["status"] == "failed"


@slow
def test_a_process_that_diverges_takes_all_along_and_the_study_goes_on(flags, tmp_path):
    change = "quantum_circuits.quantum_parameter_update = refuse(FloatingPointError('the update is not finite'))"
    script = script_that_differs(tmp_path, 1, change)
    study = [*flags, "--update_rules", "exact,classical", "--results_dir", tmp_path / "results"]
    out, err = finish(start(*study, script=script), status=1)
    err, _, _ = err.partition("FAILED")  # torchrun's report
    assert err.count("error: diverged: rank 1: the update is not finite\n") == 1
    assert "study finished, 1 run failed: exact, seed 42" in out
    status = {rule: run_folder.read(run)["statistics"]["status"] for rule, run in by_rule(tmp_path / "results").items()}
    assert status == {"exact": "diverged", "classical": "finished"}


@slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sys.argv += ['--dataset_name', './none']", "error: rank 1: DATASET_NAME = 'none': no such file or folder"),
        ("sys.argv += ['--seed', '7']", "error: SEED of rank 1: 7, must be the 42 of rank 0"),
        ("model_utils.load_or_stand_in = lambda *given: 1 / 0", "rank 1: error: ZeroDivisionError: division by zero"),
    ],
)
def test_what_goes_wrong_in_one_process_is_told_once(flags, tmp_path, change, message):
    script = script_that_differs(tmp_path, 1, change)
    _, err = finish(start(*flags, "--results_dir", tmp_path / "results", script=script), status=1)
    err, _, _ = err.partition("FAILED")  # torchrun's report
    assert sum("error: " in line for line in err.splitlines()) == 1, err
    assert sum(line.startswith(message) for line in err.splitlines()) == 1, err
    assert not (tmp_path / "results").exists()


@slow
def test_a_mistake_in_every_process_is_one_line(tmp_path):
    _, err = finish(start("--results_dir", tmp_path / "results", "--dataset_name", "./none"), status=1)
    err, _, _ = err.partition("FAILED")  # torchrun's report
    assert err.count("DATASET_NAME = 'none': no such file or folder") == 1
    _, err = finish(start("--num_epochs", "zero"), status=1)
    ours, _, report = err.partition("FAILED")  # torchrun's own, which names it as the root cause of both
    assert ours.count("error: NUM_EPOCHS = 'zero'") == 1
    assert report.splitlines()[-2].startswith("  traceback : error: NUM_EPOCHS = 'zero'")


# --- In this process


@contextlib.contextmanager
def as_rank(monkeypatch, number, answers):
    """As if this were process `number` of as many as there are answers: what all of them say when they gather."""

    def all_gather(gathered, mine):
        gathered[:] = [mine if rank == number else answer for rank, answer in enumerate(answers)]

    with monkeypatch.context() as patch:
        patch.setattr(process_group, "rank", lambda: number)
        patch.setattr(process_group, "world_size", lambda: len(answers))
        patch.setattr(process_group.dist, "all_gather_object", all_gather)
        yield


def test_alone_every_shard_is_the_whole():
    assert process_group.shard([1, 2, 3]) == [1, 2, 3] and process_group.all_reduce(1, 2.5) == (1, 2.5)
    assert (process_group.rank(), process_group.world_size()) == (0, 1)
    process_group.require_same({"data": 1})
    with pytest.raises(ValueError, match="as it is"):
        process_group.on_rank_zero(lambda: (_ for _ in ()).throw(ValueError("as it is")))
    with pytest.raises(ValueError, match=r"^as it is$"), process_group.raised_on_every_rank():
        raise ValueError("as it is")


def test_the_shards_of_all_processes_are_the_list(monkeypatch):
    shards = []
    for number in range(3):
        with as_rank(monkeypatch, number, [None] * 3):
            shards.append(process_group.shard(list(range(10))))
    assert shards == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_an_error_of_one_process_is_raised_in_all(monkeypatch):
    with as_rank(monkeypatch, 0, [None, (OSError, "disk full")]):
        with pytest.raises(OSError, match=r"^rank 1: disk full$"), process_group.raised_on_every_rank():
            pass
        with pytest.raises(ValueError, match=r"^mine comes first$"), process_group.raised_on_every_rank():
            raise ValueError("mine comes first")
        with pytest.raises(ZeroDivisionError), process_group.raised_on_every_rank():
            raise ZeroDivisionError  # a bug is not waited for
    with as_rank(monkeypatch, 1, [None, None]), process_group.raised_on_every_rank():
        pass


def test_what_differs_between_processes_is_named(monkeypatch):
    with as_rank(monkeypatch, 0, [None, {"data": "a", "SEED": 7}]):
        process_group.require_same({"data": "a", "SEED": 7})
        with pytest.raises(ValueError, match=r"^SEED of rank 1: 7, must be the 42 of rank 0$"):
            process_group.require_same({"data": "a", "SEED": 42})


def test_a_lost_process_is_a_stop_and_a_bug_is_a_bug():
    stopped = process_group.Stopped
    for error in (
        RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"),
        torch.distributed.DistError(),
    ):
        with pytest.raises(stopped, match="another process of this run"), process_group.stopped_by_lost_process():
            raise error
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), process_group.stopped_by_lost_process():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_every_process_but_the_first_draws_its_own_dropout(monkeypatch):
    """A function of seed, step and rank; rank 0 goes on with the stream that its checkpoint holds."""

    def draws(number, seed, step):
        torch.manual_seed(5)
        with as_rank(monkeypatch, number, [None] * 3):
            process_group.seed_dropout(seed, step)
        return tuple(torch.rand(2).tolist())

    torch.manual_seed(5)
    assert draws(0, 1, 1) == draws(0, 1, 2) == (torch.manual_seed(5) and tuple(torch.rand(2).tolist()))
    assert draws(1, 1, 1) == draws(1, 1, 1)
    assert len({draws(*given) for given in ((0, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 1))}) == 5


@pytest.mark.parametrize("circuit", ["graph", "chain"])
@pytest.mark.parametrize("of", [2, 3, 7])
def test_the_shares_of_an_update_add_up_to_it(circuit, of):
    """Bit for bit, with the same shots: they belong to the groups, not to who measures them."""
    gradient = torch.randn(111, 113, generator=torch.Generator().manual_seed(3))  # 9 blocks, the last one not full
    backend = AerBackend(quantum_circuits.build_ansatz(circuit, 3, 0.5), block=512)
    arguments = {"learning_rate": 1.0, "shots": 100, "seed": (1, 2, 3)}
    whole, usage = quantum_circuits.quantum_parameter_update(gradient, backend, **arguments)
    parts = [
        quantum_circuits.quantum_parameter_update(gradient, backend, **arguments, share=(which, of))
        for which in range(of)
    ]
    assert torch.equal(sum(update for update, _ in parts), whole)
    for column in ("entries", "circuits", "shots"):
        assert sum(getattr(part, column) for _, part in parts) == getattr(usage, column)


def test_hardware_is_for_one_process(flags, monkeypatch):
    monkeypatch.setattr(process_group, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"BACKEND = 'generic:5' with several processes: must be aer"):
        train.prepare(config.load([*map(str, flags), "--backend", "generic:5"]), frozenset())


def test_more_processes_than_cuda_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train.choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="DEVICE = 'auto' with more processes than the 2 CUDA devices: must be"):
        train.choose_device("auto")
