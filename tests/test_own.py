"""The worked examples of the README's "Add your own", run as they stand there."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, run_script, small_model

from report.study import read_question

README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN = re.search(r"^## Add your own\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)[1]


def blocks_of(language):
    """The blocks of a language in the section, a list of str."""
    return re.findall(rf"^```{language}\n(.*?)^```", OWN, re.DOTALL | re.MULTILINE)


SNIPPETS = {re.search(r"# (\w+\.py)", block)[1]: block for block in blocks_of("python")}
MODEL_COMMAND, DATA_COMMAND = (shlex.split(line)[2:] for line in blocks_of("sh")[0].splitlines())


@pytest.fixture
def copy_of_the_repository(tmp_path):
    """A copy of the programs, to be changed as the README says; the models and the tests stay where they are."""
    copy = tmp_path / "copy"
    skipped = shutil.ignore_patterns("tests", "results", "embedded", "__pycache__", ".*")
    shutil.copytree(ROOT, copy, ignore=skipped)
    return copy


def add(snippet, path):
    """Write a snippet at the end of a module: where it is a script, before that part."""
    module, guard, script = path.read_text(encoding="utf-8").partition('if __name__ == "__main__":')
    path.write_text(f"{module}\n\n{snippet}\n\n{guard}{script}", encoding="utf-8")


def run(copy, script, *flags):
    """Standard output of a script of the copy, which must succeed."""
    command = [sys.executable, str(copy / script), *(str(flag) for flag in flags)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_circuit_of_ones_own(copy_of_the_repository, tiny_flags, tmp_path):
    add(SNIPPETS["quantum_circuits.py"], copy_of_the_repository / "quantum_circuits.py")
    shown = run(copy_of_the_repository, "quantum_circuits.py", "--results_dir", tmp_path)
    assert "star: 5 qubits" in shown and (tmp_path / "circuits" / "star.png").exists()
    assert re.search(r"bias +0\.000", shown.partition("star: ")[2])
    said = run(copy_of_the_repository, "train.py", *tiny_flags, "--circuit", "star")
    assert "finished after 3 steps" in said


def test_a_rule_of_ones_own(copy_of_the_repository, tiny_flags):
    add(SNIPPETS["update_rules.py"], copy_of_the_repository / "update_rules.py")
    said = run(copy_of_the_repository, "train.py", *tiny_flags, "--update_rules", "sign,quantum")
    assert "study finished, 0 runs failed" in said
    analyzed = run(copy_of_the_repository, "analyze.py", tiny_flags[tiny_flags.index("--results_dir") + 1])
    assert "sign" in analyzed


def test_a_model_of_ones_own(tiny_model, tiny_flags, tmp_path):
    """A small MPNet under the name of the README's."""
    folder = tmp_path / MODEL_COMMAND[MODEL_COMMAND.index("--model_name") + 1]
    small_model("mpnet", vocab_size=40, max_position_embeddings=64).save_pretrained(folder)
    for file in tiny_model.glob("*tok*"):
        shutil.copy(file, folder)
    flags = tiny_flags[tiny_flags.index("--dataset_name") :]
    status, out, err = run_script("train.py", *MODEL_COMMAND, *flags, cwd=tmp_path)
    assert status == 0 and "finished after 3 steps" in out, err
    (run,) = (tmp_path / "results").glob("run_*")
    header = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert [name[-8:] for name in header if "attention.attn" in name] == [f"{name}.weight" for name in "qkvo"]


def test_data_of_ones_own(tiny_flags, tmp_path):
    header, *rows = blocks_of("csv")[0].splitlines()
    (tmp_path / "reviews.csv").write_text("\n".join([header, *rows * 40]) + "\n", encoding="utf-8")
    flags = [flag for flag in tiny_flags if flag != "--dataset_name" and "tiny data" not in flag]
    status, out, err = run_script("train.py", *DATA_COMMAND, *flags, cwd=tmp_path)
    assert status == 0 and "finished after 3 steps" in out, err


def test_a_question_of_ones_own(tmp_path):
    """The question.json of docs/RUNNING.md is one that the report takes."""
    running = (ROOT / "docs" / "RUNNING.md").read_text(encoding="utf-8")
    (tmp_path / "question.json").write_text(re.search(r"^```json\n(.*?)^```", running, re.DOTALL | re.MULTILINE)[1])
    assert len(read_question(tmp_path / "question.json")["secondary"]) == 2
