"""The rules of the layout: what may import what, and what no file of the project may hold.

Files are those that git tracks; without git, all but what users keep in a checkout (virtual environments, results).
"""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

import config


def tracked_files(root):
    """Paths of the files that git tracks in `root` and that are there; None where it is no checkout, or git is none."""
    try:
        command = ["git", "-C", str(root), "ls-files", "-z"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return [root / name for name in sorted(listed.split("\0")) if name and (root / name).is_file()]


def walked_files(root):
    """Paths of the files below `root`, but for virtual environments, hidden folders and the results of runs."""
    found = []
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith(".") and name not in ("venv", "__pycache__")]
        if folder == str(root) and "results" in inside:
            inside.remove("results")
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


FILES = tracked_files(ROOT) or walked_files(ROOT)
PYTHON = [path for path in FILES if path.suffix == ".py"]


def text_of(path):
    return path.read_text(encoding="utf-8")


# --- Imports

# Place -> what of the project its modules may import ("harness" is any module in there), and which packages.
PLACES = {
    "config": ({"update_rules"}, set()),
    "update_rules": (set(), {"numpy"}),
    "shot_allocation": (set(), {"numpy"}),
    "quantum_circuits": ({"shot_allocation"}, {"numpy", "torch", "qiskit"}),
    "aer_engine": ({"quantum_circuits", "update_rules"}, {"numpy", "qiskit", "qiskit_aer"}),
    "devices": (set(), {"numpy", "qiskit", "qiskit_aer", "qiskit_ibm_runtime"}),
    "model_utils": (
        {"config", "harness.hub", "harness.tables"},
        {"torch", "transformers", "datasets", "huggingface_hub"},
    ),
    "train": (
        {"config", "update_rules", "quantum_circuits", "aer_engine", "devices", "model_utils", "harness", "report"},
        {"torch"},
    ),
    "analyze": ({"config", "update_rules", "harness", "report"}, set()),
    "harness": ({"config", "update_rules", "harness"}, {"torch", "numpy", "pandas", "safetensors", "tqdm"}),
    "report": (
        {"config", "update_rules", "quantum_circuits", "devices", "harness", "report"},
        {"numpy", "scipy", "statsmodels", "matplotlib", "jinja2", "transformers"},
    ),
}
SCRIPTS = {"tests", "experiments", "embedded"}  # folders that nothing imports from
# What is slow or optional is imported by the functions that need it; of the project itself, what needs that.
LAZY = {"transformers", "datasets", "huggingface_hub", "qiskit_ibm_runtime"}
MAY_BE_LAZY = LAZY | {"pandas", "devices"}
MAY_BE_LAZY_IN = {"analyze": {"report"}}
MAIN_MAY_IMPORT = {"config", "harness"}  # under `if __name__ == "__main__"`, beside what the module may


def place_of(module):
    return module.split(".")[0]


def name_of(path):
    """harness/files.py -> harness.files, harness/__init__.py -> harness."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in PYTHON if path.relative_to(ROOT).parts[0] not in SCRIPTS}


class Import(NamedTuple):
    """An import statement's module; whether it is inside a function, and whether under `if __name__ == "__main__"`."""

    module: str
    lazy: bool
    main: bool


def imports(code, known):
    """Every Import of a module's code, wherever in it. known: names of the project's own modules."""
    found = []

    def visit(node, lazy, main):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, lazy, main) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]  # a module, or a name in one
            found.extend(Import(name if name in known else node.module, lazy, main) for name in inside)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        main = main or (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            visit(child, lazy, main)

    visit(ast.parse(code), False, False)
    return found


def breaches(module, found):
    """What the imports found in a module of that name have against the rules, a list of str."""
    own, packages = PLACES[place_of(module)]
    may_be_lazy = MAY_BE_LAZY | MAY_BE_LAZY_IN.get(module, set())
    wrong = []
    for name, lazy, main in found:
        top = place_of(name)
        if top in sys.stdlib_module_names:
            if lazy:
                wrong.append(f"{name} of the standard library inside a function")
            continue
        allowed = own | packages | (MAIN_MAY_IMPORT if main else set())
        if not {name, top} & allowed:
            wrong.append(f"{name} is not for {place_of(module)}")
        if lazy and not main and top not in may_be_lazy:
            wrong.append(f"{name} inside a function")
        if not lazy and top in LAZY:
            wrong.append(f"{name} outside of functions")
    return wrong


def test_every_module_has_a_place():
    assert len(MODULES) > 20
    assert {place_of(name) for name in MODULES} == PLACES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_what_the_layout_allows(module):
    assert breaches(module, imports(text_of(MODULES[module]), MODULES)) == []


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("config", "import torch", ["torch is not for config"]),
        ("quantum_circuits", "from harness.files import sync", ["harness.files is not for quantum_circuits"]),
        ("quantum_circuits", 'if __name__ == "__main__":\n    from harness import files', []),
        ("quantum_circuits", 'if __name__ == "__main__":\n    import train', ["train is not for quantum_circuits"]),
        ("harness.study", "def run():\n    import train", ["train is not for harness", "train inside a function"]),
        ("harness.study", "try:\n    import fcntl, report.page\nexcept ImportError:\n    pass", ["report.page is not"]),
        ("train", "class A:\n    from analyze import main", ["analyze is not for train"]),
        ("train", "def f():\n    import torch", ["torch inside a function"]),
        ("train", "def f():\n    import json", ["json of the standard library inside a function"]),
        ("model_utils", "from transformers import AutoModel", ["transformers outside of functions"]),
        ("model_utils", "def f():\n    from transformers import AutoModel", []),
        ("model_utils", "from harness import hub, files", ["harness.files is not for model_utils"]),
        ("devices", "import qiskit_ibm_runtime", ["qiskit_ibm_runtime outside of functions"]),
        ("report.study", "def f():\n    import quantum_circuits", ["quantum_circuits inside a function"]),
        ("analyze", "def f():\n    import report.page, harness.study", ["harness.study inside a function"]),
    ],
)
def test_what_the_layout_forbids_is_found(module, code, wrong):
    found = breaches(module, imports(code, {*MODULES, "harness.hub"}))
    assert len(found) == len(wrong) and all(map(str.startswith, found, wrong)), found


def test_imports_make_no_circle():
    graph = {}
    for module, path in MODULES.items():
        names = {name for name, _, main in imports(text_of(path), MODULES) if not main}
        graph[module] = (names & MODULES.keys()) - {module}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


def test_tests_do_not_import_each_other():
    tests = {path.stem: path for path in Path(__file__).parent.glob("test_*.py")}
    assert len(tests) > 10
    for name, path in tests.items():
        assert not {module for module, _, _ in imports(text_of(path), MODULES)} & tests.keys(), name


def test_imports_do_nothing_else():
    """Each module, in an interpreter of its own that has only packages loaded: no output, network or file, and nothing
    of what is slow."""
    code = f"""
import json, os, socket, sys
import matplotlib.figure, numpy, qiskit, qiskit_aer, safetensors.torch, scipy.stats, torch, tqdm
lazy, modules = {sorted(LAZY)!r}, {sorted(MODULES)!r}
sys.path.insert(0, {str(ROOT)!r})
def refuse(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
    if writes or event.startswith("socket."):
        os.write(2, f"{{event}} {{arguments}}".encode())
failed = {{}}
for module in modules:
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.dont_write_bytecode = True
        sys.addaudithook(refuse)
        __import__(module)
        print(*[name for name in lazy if name in sys.modules], sep=", ", end="", flush=True)
        os._exit(0)
    os.close(writing)
    said, status = open(reading).read(), os.wait()[1]
    if said or status:
        failed[module] = [status, said]
print(json.dumps(failed))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert json.loads(done.stdout) == {}


# --- What no file holds


def test_files_are_those_of_the_project_whatever_lies_beside_them(tmp_path):
    """Among them .venv, which .gitignore invites, with git and without."""
    for name in ("a.py", "b/c.py", "b/results/d.md", ".venv/x.py", "venv/x.py", ".tox/x.py", "results/run_1/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = ["a.py", "b/c.py", "b/results/d.md"]
    assert walked_files(tmp_path) == [tmp_path / name for name in names]
    assert tracked_files(tmp_path) is None
    for words in (["init", "--quiet"], ["add", *names]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "a.py").unlink()
    assert tracked_files(tmp_path) == [tmp_path / name for name in names[1:]]


def test_the_files_without_git_are_those_with_it():
    tracked = tracked_files(ROOT)
    if tracked is None:
        pytest.skip("no git checkout")
    hidden_or_results = re.compile(r"(^|/)\.|^results/")
    plain = [path for path in tracked if not hidden_or_results.search(path.relative_to(ROOT).as_posix())]
    assert len(plain) > 40 and set(plain) <= set(walked_files(ROOT))


def test_no_code_of_a_model_is_ever_trusted():
    assert len(PYTHON) > 20
    word = "trust_remote_" + "code"  # left to itself, transformers asks on the terminal
    for path in PYTHON:
        for line in text_of(path).splitlines():
            assert word not in line or re.search(word + r'"(: |\] = )False', line), path


def test_no_path_of_a_machine_in_the_project():
    looked_at = [path for path in FILES if path.name.endswith((".py", ".md", ".txt", ".toml", ".json", "run"))]
    assert len(looked_at) > 20
    for path in looked_at:
        folders = "root|home|Users|work" + "|tmp|opt|mnt|var" * (path.suffix == ".json")  # those of published runs
        assert not re.search(rf"(?<!\w)/(?:{folders})/\w", text_of(path)), path


def test_constants_are_read_by_config_alone():
    names = "|".join(name.upper() for name in config.Settings._fields)
    for name, path in MODULES.items():
        if name != "config":
            assert not re.search(rf"\bconfig\.({names})\b", text_of(path)), path
