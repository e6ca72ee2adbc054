"""The repository as a user meets it: whole programs as processes, and the commands of its documents."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_json, run_script, run_training, stop_at

import analyze
import config

# Their commands are followed, relative to the repository.
DOCUMENTS = ["README.md", "docs/HARDWARE.md", "docs/NOISE.md", "docs/RUNNING.md", "docs/SPEED.md"]
DOCUMENTS += ["results/reference/README.md"]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
# Commands that take long on the tiny model and data, too: followed with the mark `slow`.
LONG_COMMANDS = [
    "python train.py --update_rules classical,quantum,frozen --seeds 0-19 --eval_size 0 --quantum_schedule constant"
]


def test_train_then_analyze_as_a_user_does(tiny_flags, tmp_path):
    status, out, err = run_script("train.py", *tiny_flags)
    assert status == 0, err
    assert "finished after 3 steps" in out and "circuits per step" in out
    assert "rate:    5e-05 for AdamW (LEARNING_RATE)" in out
    assert "cos=" in err and "loss=" in err and "3/3" in err
    status, out, err = run_script("analyze.py", "--results_dir", tmp_path / "results")
    assert status == 0, err
    figures = [line.strip() for line in out.splitlines() if line.startswith("  ") and line.endswith(".png")]
    assert len(figures) == 2 and out.splitlines()[-1] == f"look first at {figures[0]}"
    assert all((ROOT / figure).is_file() for figure in figures)


def test_circuits_as_a_script(tmp_path):
    status, out, err = run_script("quantum_circuits.py", "--results_dir", tmp_path, "--num_qubits", "3")
    assert status == 0, err
    for name in ("graph", "product", "chain", "literal"):
        assert f"{name}: 3 qubits" in out and (tmp_path / "circuits" / f"{name}.png").stat().st_size > 5000
    noise = float(re.search("product: .*?shot noise +([0-9.]+)", out, re.DOTALL)[1])
    assert noise == pytest.approx((2 / 3 / 1000) ** 0.5, rel=0.1)  # 1 - x^2 is 2/3 on average, 1000 shots


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train.py", ["--num_epochs", "zero"], "error: NUM_EPOCHS = 'zero': must be a whole number from 1 to 10000"),
        ("train.py", ["--epochs", "3"], "error: unrecognized arguments: --epochs 3 (did you mean --num_epochs?)"),
        ("train.py", ["--circuit", "spiral"], "error: CIRCUIT = 'spiral': must be one of graph, product"),
        ("train.py", ["--dataset_name", "./none"], "error: DATASET_NAME = 'none': no such file or folder"),
        ("train.py", ["--seeds", "9-0"], "error: SEEDS = '9-0': must be a list of whole numbers"),
        ("train.py", ["--dry_run", "yes"], "error: DRY_RUN = 'yes' with BACKEND = 'aer': must be left out"),
        ("quantum_circuits.py", ["--num_qubits", "0"], "error: NUM_QUBITS = 0: must be a whole number from 1 to 10"),
        ("analyze.py", ["--results_dir", "./none"], "error: RESULTS_DIR = 'none': holds no run folder"),
        ("analyze.py", ["--rebuild"], "error: unrecognized arguments: --rebuild"),
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


# --- Commands of documents


def commands_of(document):
    """The command lines in the bash blocks of a Markdown text, without their comments; backslashes join lines."""
    blocks = re.findall(r"^```bash\n(.*?)^```", document.replace("\\\n", " "), re.DOTALL | re.MULTILINE)
    lines = [re.split(r"(?:^|\s)#", line)[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


COMMANDS = list(dict.fromkeys(line for text in TEXTS.values() for line in commands_of(text)))
# An account is needed for real devices; tests/test_devices.py has a service in its place.
TRAININGS = [line for line in COMMANDS if line.startswith("python train.py") and "--backend ibm" not in line]


def test_commands_are_found():
    block = "# all\npython a.py --b '#c'  # d\npython e.py \\\n    --f   # g\n"
    text = f"a\n```bash\n{block}```\n```\nh\n```\n```bash\ni#j\n```\n"
    assert commands_of(text) == ["python a.py --b '#c'", "python e.py      --f", "i#j"]
    assert "pip install -r requirements.txt" in COMMANDS and "python -m pytest" in COMMANDS
    assert len(TRAININGS) >= 8 and any("--resume" in line for line in TRAININGS)
    assert set(LONG_COMMANDS) <= set(TRAININGS)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_name_what_is_there(line):
    """Programs, files and settings; what pytest or pip are told is theirs."""
    words = shlex.split(line)
    assert words[0] in ("python", "torchrun", "pip"), line
    if words[0] == "pip":
        files = [words[index + 1] for index, word in enumerate(words) if word == "-r"]
        assert words[1] == "install" and all((ROOT / file).is_file() for file in files)
    elif words[1:3] != ["-m", "pytest"]:
        (script,) = [word for word in words if word.endswith(".py")]
        assert (ROOT / script).is_file()
        flags = words[words.index(script) + 1 :]
        if script in ("train.py", "quantum_circuits.py"):
            assert config.parse(flags).runs
        elif script == "analyze.py":
            assert analyze.parse(flags).runs == [flag for flag in flags if not flag.startswith("--")]


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.slow] * (line in LONG_COMMANDS)) for line in TRAININGS]
)
def test_training_commands_run(line, tiny_flags, monkeypatch):
    """Each `python train.py ...` of the documents, on the tiny model and data."""
    flags = shlex.split(line)[2:]
    if "--resume" in flags:
        with monkeypatch.context() as patch:
            stop_at(patch, 2)
            assert run_training(tiny_flags) == 130
    status, out, err = run_script("train.py", *flags, *tiny_flags)
    assert status == 0 and "finished" in out, err


@pytest.mark.slow
def test_the_model_of_the_timings_is_made_as_the_document_says(tmp_path):
    """In a folder beside which the embedded model lies; 268 MB, with a tokenizer that fits."""
    (tmp_path / "embedded").symlink_to(ROOT / "embedded")
    (lines,) = re.findall(r"^```sh\n(.*?)^```", TEXTS["docs/SPEED.md"], re.DOTALL | re.MULTILINE)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", lines], cwd=tmp_path, env=environment, check=True, timeout=120)
    made = read_json(tmp_path / "distil" / "config.json")
    assert (made["n_layers"], made["dim"]) == (6, 768) and (tmp_path / "distil" / "tokenizer.json").is_file()


# --- What the documents say

PLACES = [
    "config.py",
    "update_rules.py",
    "shot_allocation.py",
    "quantum_circuits.py",
    "aer_engine.py",
    "devices.py",
    "model_utils.py",
    "train.py",
    "analyze.py",
]
PLACES += ["harness/", "report/", "experiments/", "embedded/", "results/reference/"]
ENVIRONMENT = {"OMP_NUM_THREADS", "QISKIT_IBM_TOKEN", "QISKIT_IBM_INSTANCE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME"}


def test_the_readme_names_every_module_and_the_documents_every_file_of_a_run(finished_run):
    for name in PLACES:
        assert (ROOT / name).exists() and f"`{name}`" in TEXTS["README.md"], name
    left = [path.name + "/" * path.is_dir() for path in finished_run.iterdir()]
    assert len(left) >= 6 and "checkpoint/" not in left
    for name in left:
        assert f"`{name}`" in TEXTS["docs/RUNNING.md"], name


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_in_the_documents_are_settings(name):
    prose = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", prose)) - ENVIRONMENT
    assert {name.lower() for name in named} <= set(config.Settings._fields)
    for flag in re.findall(r"`--([a-z_]+)", prose):
        assert flag in (*config.Settings._fields, "resume", "debug", "help", "nproc_per_node"), flag


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_the_documents_point_to_is_there(name):
    """Links and pictures, relative to the document; scripts and documents named in code, relative to the repository."""
    text, folder = TEXTS[name], (ROOT / name).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (folder / target).exists(), target
    for target in re.findall(r"`(?:python )?((?:docs|experiments|embedded|tests|report)/[\w/.]+)`", text):
        assert (ROOT / target).exists(), target
