"""The repository as a user meets it: whole programs as subprocesses, the README's commands, the rules of the layout."""

import ast
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

import config

MODULES = {
    "config": set(),
    "quantum_circuits": {"numpy", "torch", "qiskit", "qiskit_aer"},
    "model_utils": {"torch", "transformers", "datasets", "huggingface_hub", "pyarrow"},
    "devices": {"numpy", "qiskit", "qiskit_aer", "qiskit_ibm_runtime"},
    "checkpoints": {"config", "numpy", "torch", "safetensors"},
    "run_folder": {"config"},
    "processes": {"config", "torch"},
    "train": {
        *("config", "quantum_circuits", "devices", "checkpoints", "run_folder", "processes", "model_utils", "analyze"),
        *("torch", "tqdm"),
    },
    "analyze": {"config", "run_folder", "quantum_circuits", "devices", "numpy", "matplotlib", "scipy", "transformers"},
}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imported(tree):
    """Top-level names of all packages that a module's code imports, wherever in it, its script part aside."""
    names = set()
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_what_the_layout_allows(module):
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    assert imported(tree) - set(sys.stdlib_module_names) <= MODULES[module]


@pytest.mark.parametrize("module", MODULES)
def test_modules_do_nothing_at_import(module):
    """No file, no network, no print: only the stages of an import run."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_constants_are_read_by_config_alone():
    names = "|".join(name.upper() for name in config.Settings._fields)
    for path in ROOT.glob("*.py"):
        if path.name != "config.py":
            assert not re.search(rf"\bconfig\.({names})\b", path.read_text(encoding="utf-8")), path


def test_train_then_analyze_as_a_user_does(tiny_flags, tmp_path):
    status, out, err = run_script("train.py", *tiny_flags)
    assert status == 0, err
    assert "finished after 3 steps" in out and "circuits per step" in out
    assert "cos=" in err and "loss=" in err and "3/3" in err
    status, out, err = run_script("analyze.py", "--results_dir", tmp_path / "results")
    assert status == 0, err
    figures = [line.strip() for line in out.splitlines() if line.endswith(".png")]
    assert len(figures) == 2
    assert all((ROOT / figure).is_file() for figure in figures)


def test_circuits_as_a_script(tmp_path):
    status, out, err = run_script("quantum_circuits.py", "--results_dir", tmp_path, "--num_qubits", "3")
    assert status == 0, err
    for name in ("graph", "product", "chain", "literal"):
        assert f"{name}: 3 qubits" in out and (tmp_path / "circuits" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train.py", ["--num_epochs", "zero"], "error: NUM_EPOCHS = 'zero': allowed is a whole number from 1 to 10000"),
        ("train.py", ["--epochs", "3"], "error: unrecognized arguments: --epochs 3 (did you mean --num_epochs?)"),
        ("train.py", ["--circuit", "spiral"], "error: CIRCUIT = 'spiral': allowed is one of graph, product"),
        ("train.py", ["--dataset_name", "./none"], "error: DATASET_NAME = 'none': no such file or folder"),
        ("quantum_circuits.py", ["--entangling_angle", "1.5707"], "error: CIRCUIT = 'graph' with NUM_QUBITS = 5"),
        ("analyze.py", ["--results_dir", "./none"], "error: RESULTS_DIR = 'none': holds no run folder"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(script, flags, message, tmp_path):
    status, _, err = run_script(script, *flags, cwd=tmp_path)
    assert status == 2 and err.strip().count("\n") == 0 and err.startswith(message), err
    assert not list(tmp_path.glob("results/run_*"))


def test_help_answers_before_the_slow_imports():
    code = (
        "import runpy, sys\nsys.argv = ['train.py', '--help']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'qiskit' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--num_epochs" in done.stdout, done.stderr


def readme_commands():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_readme_commands_exist():
    commands = readme_commands()
    assert "pip install -r requirements.txt" in commands and "python -m pytest" in commands
    assert any(command.startswith("python train.py") for command in commands)
    for command in commands:
        words = shlex.split(command)
        if words[0] == "torchrun":
            config.load_study(words[words.index("train.py") + 1 :])
        if words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), command
            if words[1] in ("train.py", "quantum_circuits.py"):
                config.load_study(words[2:])


def test_readme_training_commands_run(tiny_flags, tmp_path):
    """Each `python train.py ...` of the README, on the tiny model and data."""
    commands = [shlex.split(command)[2:] for command in readme_commands() if command.startswith("python train.py")]
    for flags in dict.fromkeys(map(tuple, commands)):
        if any(flag.startswith("ibm") for flag in flags):
            continue  # needs an account; tests/test_devices.py has a service in its place
        status, _, err = run_script("train.py", *flags, *tiny_flags)
        assert status == 0, (flags, err)


def test_readme_names_every_setting_group_and_file():
    for name in ("config.py", "quantum_circuits.py", "model_utils.py", "train.py", "analyze.py", "metrics.csv"):
        assert name in README


def test_no_path_of_a_machine_in_the_project():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in files:
        if name.endswith((".py", ".md", ".txt", ".toml", ".json", "run")):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<!\w)/(?:" + "root|home|Users|work" + r")/\w", text), name
