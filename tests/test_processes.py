"""One run over several processes, as `torchrun` starts it: two on this machine, linked by gloo."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_checkpoints import assert_same_run

import config
import processes
import quantum_circuits
import run_folder
import train

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


def only_run(results):
    (run,) = results.iterdir()
    return run


def rows_of(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_close(first, second):
    """The same rows, to the rounding of sums; circuits and shots the same."""
    rows, others = rows_of(first), rows_of(second)
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name in row.keys() - {column for column in row if column.startswith("seconds")}:
            value, theirs = (float(cell or "nan") for cell in (row[name], other[name]))
            assert value == pytest.approx(theirs, rel=2e-4, nan_ok=True), (row["step"], name)
    weights, others = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    for name, weight in weights.items():
        assert torch.allclose(weight, others[name], atol=1e-6), name


def by_rule(results):
    return {run_folder.read(run)["settings"]["update_rule"]: run for run in results.glob("run_*")}


def test_two_processes_compute_what_one_does(flags_without_dropout, tmp_path):
    study = [*flags_without_dropout, "--update_rules", "quantum,exact,classical", "--attention_layers", "all"]
    study += ["--accumulation_steps", "2", "--max_gradient_norm", "0.001", "--results_dir"]
    out, _ = finish(start(*study, tmp_path / "two"))
    assert out.count("study finished, 0 runs failed") == 1  # one process speaks
    assert train.main([*study, str(tmp_path / "one")]) == 0
    ones, twos = by_rule(tmp_path / "one"), by_rule(tmp_path / "two")
    assert ones.keys() == twos.keys() == {"quantum", "exact", "classical"}
    for rule, run in ones.items():
        assert_close(run, twos[rule])
    assert json.loads((twos["quantum"] / "environment.json").read_text())["processes"] == 2


def test_resumed_on_two_processes_it_is_the_run_left_alone(flags, tmp_path):
    """With dropout and shots, bit for bit, from the middle of an epoch."""
    finish(start(*flags, "--checkpoint_every", "3", "--results_dir", tmp_path / "runs"))
    run = only_run(tmp_path / "runs")
    whole = shutil.copytree(run, tmp_path / "whole")
    shutil.rmtree(run / "checkpoint" / "step_00000008")
    shutil.rmtree(run / "model")
    finish(start("--resume", run))
    assert_same_run(whole, run)


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert condition()


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
    assert f"error: the process of rank {rank} died; to go on: torchrun --nproc_per_node=2 train.py --resume" in err
    run = only_run(results)
    reached = max(int(folder.name[5:]) for folder in (run / "checkpoint").iterdir())
    assert reached < 1600
    # To the end of the epoch after the next, on one process, against a run of one process that was left alone.
    settings = json.loads((run / "config.json").read_text())
    settings["num_epochs"] = epochs = reached // 4 + 2
    (run / "config.json").write_text(json.dumps(settings))
    assert train.main(["--resume", str(run)]) == 0
    left_alone = ["--num_epochs", str(epochs), "--update_rule", "exact", "--results_dir", str(tmp_path / "whole")]
    assert train.main([*flags_without_dropout, *left_alone]) == 0
    for row, other in zip(rows_of(run), rows_of(only_run(tmp_path / "whole")), strict=True):
        assert not row["loss"] or float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)


def test_ctrl_c_leaves_a_checkpoint_that_two_machines_go_on_with(flags, tmp_path):
    """A launcher for each of the machines, both of them this one; the run was begun by a single process."""
    assert train.main([*flags, "--checkpoint_every", "3", "--results_dir", str(tmp_path / "runs")]) == 0
    run = only_run(tmp_path / "runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        start(
            *("--resume", run, "--num_epochs", "4000"),
            launcher=("--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1", f"--master_port={port}"),
        )
        for node in range(2)
    ]
    wait_for(lambda: len(rows_of(run)) > 20, nodes[0])
    for node in nodes:
        node.send_signal(signal.SIGINT)
    outputs = [node.communicate(timeout=120) for node in nodes]
    told = [err for _, err in outputs if "interrupted; to go on: torchrun --nproc_per_node=" in err]
    assert len(told) == 1
    steps = run_folder.read(run)["statistics"]["steps"]
    assert max((run / "checkpoint").iterdir()).name == f"step_{steps:08d}"


def script_that_differs(folder, rank, change):
    """train.py with a line of code more in the process of a rank."""
    script = folder / "train_differently.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport config, quantum_circuits, run_folder, train\n"
        f"def refuse(error):\n    def f(*_, **__):\n        raise error\n    return f\n"
        f"if os.environ['RANK'] == '{rank}':\n    {change}\nconfig.run_as_script(train.main)\n"
    )
    return script


def test_a_full_disk_ends_a_study_of_all_processes(flags, tmp_path):
    """The first process alone meets it, while the others wait for their next sum."""
    script = script_that_differs(tmp_path, 0, "run_folder.write_row = refuse(OSError(28, 'No space left on device'))")
    study = [*flags, "--update_rules", "exact,classical", "--results_dir", tmp_path / "results"]
    _, err = finish(start(*study, script=script), status=1)
    assert err.count("error: ") == err.count("No space left on device") == 1, err


def test_a_process_that_diverges_takes_all_along_and_the_study_goes_on(flags, tmp_path):
    change = "quantum_circuits.quantum_parameter_update = refuse(FloatingPointError('the update is not finite'))"
    script = script_that_differs(tmp_path, 1, change)
    study = [*flags, "--update_rules", "exact,classical", "--results_dir", tmp_path / "results"]
    out, err = finish(start(*study, script=script), status=1)
    assert "error: diverged: the share of another process is not finite" in err
    assert "study finished, 1 runs failed: exact, seed 42" in out
    status = {rule: run_folder.read(run)["statistics"]["status"] for rule, run in by_rule(tmp_path / "results").items()}
    assert status == {"exact": "diverged", "classical": "finished"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sys.argv += ['--dataset_name', './none']", "rank 1 ended: error: DATASET_NAME = 'none': no such file"),
        ("sys.argv += ['--seed', '7']", "error: SEED of rank 1: 7, not the 42 of rank 0"),
        ("train.load_or_stand_in = lambda *given: 1 / 0", "rank 1 ended: error: ZeroDivisionError: division by zero"),
    ],
)
def test_what_goes_wrong_in_one_process_is_told_once(flags, tmp_path, change, message):
    script = script_that_differs(tmp_path, 1, change)
    _, err = finish(start(*flags, "--results_dir", tmp_path / "results", script=script), status=1)
    lines = [line for line in err.splitlines() if "error: " in line or line.startswith("rank")]
    assert sum(message in line for line in lines) == 1, err
    assert not (tmp_path / "results").exists()


def test_a_mistake_in_every_process_is_one_line(tmp_path):
    _, err = finish(start("--results_dir", tmp_path / "results", "--dataset_name", "./none"), status=1)
    assert err.count("DATASET_NAME = 'none': no such file or folder") == 1
    _, err = finish(start("--num_epochs", "zero"), status=1)
    assert err.count("error: NUM_EPOCHS = 'zero'") == 1


def test_alone_every_share_is_the_whole():
    assert processes.share([1, 2, 3]) == [1, 2, 3] and processes.total(1, 2.5) == (1, 2.5)
    assert (processes.rank(), processes.size()) == (0, 1)
    processes.require_same({"data": 1})
    with pytest.raises(ValueError, match="as it is"):
        processes.from_first(lambda: (_ for _ in ()).throw(ValueError("as it is")))


@pytest.mark.parametrize("circuit", ["graph", "chain"])
@pytest.mark.parametrize("of", [2, 3, 7])
def test_the_shares_of_an_update_add_up_to_it(circuit, of):
    """Bit for bit, with the same shots: they belong to the groups, not to who measures them."""
    gradient = torch.randn(101, 67, generator=torch.Generator().manual_seed(3))
    backend = quantum_circuits.AerBackend(quantum_circuits.build_ansatz(circuit, 3, 0.5), block=512)
    arguments = {"learning_rate": 1.0, "shots": 100, "seed": (1, 2, 3)}
    whole, cost = quantum_circuits.quantum_parameter_update(gradient, backend, **arguments)
    parts = [
        quantum_circuits.quantum_parameter_update(gradient, backend, **arguments, share=(which, of))
        for which in range(of)
    ]
    assert torch.equal(sum(update for update, _ in parts), whole)
    for column in ("entries", "circuits", "shots"):
        assert sum(getattr(part, column) for _, part in parts) == getattr(cost, column)


def test_hardware_is_for_one_process(flags, monkeypatch):
    monkeypatch.setattr(processes, "size", lambda: 2)
    with pytest.raises(ValueError, match=r"BACKEND = 'generic:5' with several processes: allowed is aer"):
        train.run_once(config.load([*flags, "--backend", "generic:5"]), [])


def test_more_processes_than_cuda_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train.choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="DEVICE = 'auto': 2 CUDA devices, allowed are as many processes"):
        train.choose_device("auto")
