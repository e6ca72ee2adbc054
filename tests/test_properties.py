"""Whatever it is given, a public function gives a valid result or its documented error.

200 examples in all, the same in every run; with the mark `slow` 10,000 more, drawn anew each time.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import config
import model_utils
import quantum_circuits
from harness import run_folder

MORE = 50  # times as many examples are drawn with the mark `slow`


def for_any(examples, **strategies):
    """Make a property, a function of a folder of its own and of what the strategies draw, a test of that many examples.

    The examples are a function of the strategies alone; under the mark `slow` they are MORE times as many, and new.
    """

    def decorate(check):
        @pytest.mark.parametrize(
            "times", [pytest.param(1, id="few"), pytest.param(MORE, id="many", marks=pytest.mark.slow)]
        )
        def test(tmp_path, times):
            @settings(
                max_examples=examples * times,
                derandomize=times == 1,
                print_blob=times > 1,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(**strategies)
            def holds(**drawn):
                check(tmp_path, **drawn)

            holds()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


# --- Settings

NAMES = [name.upper() for name in config.Settings._fields]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 20),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["all", "aer", "quantum", "exact", "sst2", "mnli", "cpu", "ibm", "fake:X", "generic:5", "(", "\0"]),
    st.binary(max_size=4),
)
values = st.one_of(
    scalars, st.lists(scalars, max_size=4), st.tuples(scalars, scalars), st.dictionaries(scalars, scalars)
)


def plausible(name):
    """Values of a setting's kind, most of them allowed."""
    kind, *bounds = config._LIMITS[name]
    if kind in ("one of", "a list of"):
        return st.sampled_from(bounds) if kind == "one of" else st.lists(st.sampled_from(bounds), max_size=3)
    if kind == "a number":
        return st.sampled_from(bounds) | st.floats(*bounds)
    if kind == "a whole number":
        return st.sampled_from(bounds) | st.integers(*bounds)
    if "list of whole numbers" in kind:
        return st.lists(st.integers(*bounds), max_size=3)
    if "list" in kind:
        return st.lists(st.text(max_size=5), max_size=bounds[1])
    return st.text(max_size=8) | st.sampled_from(["aer", "sst2", "graph", "embedded", ""])


def require_valid(run):
    """What _LIMITS promises of a Settings."""
    for name, value in run._asdict().items():
        kind, *bounds = config._LIMITS[name.upper()]
        if kind == "one of":
            assert value in bounds
        elif kind == "a whole number":
            assert type(value) is int and bounds[0] <= value <= bounds[1]
        elif kind == "a number":
            assert math.isfinite(value) and bounds[0] <= value <= bounds[1]
        elif "list" in kind:
            assert isinstance(value, tuple) or value == "all"
        else:
            assert isinstance(value, str)
    json.dumps(run._asdict()).encode()
    assert run == config.Settings(**run._asdict()) and hash(run)


def refused(error):
    """A documented error: one line that names what is wrong."""
    text = str(error)
    assert text and len(text.splitlines()) == 1, text
    return True


@for_any(
    50,
    changes=st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=3)
    | st.sampled_from(NAMES).flatmap(lambda name: st.fixed_dictionaries({name: plausible(name)})),
)
def test_any_value_in_config_is_taken_or_refused(_, changes):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(config, name, value)
        try:
            for run in config.parse([]).runs:
                require_valid(run)
        except ValueError as error:
            assert refused(error) and any(name in str(error) for name in config.Settings._fields + tuple(NAMES))


flags = st.one_of(
    st.sampled_from(NAMES).map(lambda name: f"--{name.lower()}"),
    st.sampled_from(["--resume", "--debug", "--shots", "--seeds", "-", "--", "--epochs", "--shots=3"]),
)
words = st.one_of(
    flags,
    st.text(max_size=10),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["0-9", "9-0", "1,2", "[1,2]", "[", "[[1]]", "all", "1e999", "-0", "0x10", "1_000", "٣", "quantum,exact"]
    ),
    values.map(repr),
)


given_values = st.sampled_from(NAMES).flatmap(
    lambda name: plausible(name).map(lambda value: [f"--{name.lower()}", as_text(value)])
)


def as_text(value):
    return json.dumps(value) if isinstance(value, list) else str(value)


@for_any(50, words=st.lists(words | st.tuples(flags, words).map(list), max_size=6) | st.lists(given_values, max_size=3))
def test_any_command_line_is_taken_or_refused(_, words):
    argv = [part for word in words for part in (word if isinstance(word, list) else [word])]
    try:
        command = config.parse(argv)
    except ValueError as error:
        assert refused(error)
        return
    for run in command.runs:
        require_valid(run)
    assert command.runs and command.argv == tuple(argv) and command.given <= set(config.Settings._fields)
    assert command.debug == ("--debug" in argv) and (command.resume is None or command.resume in " ".join(argv))


# --- Data

cells = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["0", "1", "2", " 1", "-1", "1.0", "nan", "true", "", '"', "a film", "label", "sentence", "٣", "9" * 5000]
    ),
)
tables = st.tuples(
    st.sampled_from([["sentence", "label"], ["label", "text"], ["sentence"], [], ["label", "label"], ["premise", "a"]]),
    st.lists(st.lists(cells, max_size=3), max_size=5),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {}, optional={"sentence": st.text(max_size=9) | json_values, "label": st.integers(-1, 2) | json_values}
)
sentences = st.text(st.characters(codec="utf-8", exclude_characters='\t\n\r",'), max_size=9)
labelled = st.lists(st.tuples(sentences, st.sampled_from("010101012")), min_size=1, max_size=5).map(
    lambda found: [["sentence", "label"], *map(list, found)]
)
contents = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(tables, st.sampled_from(["\t", ",", ";"]), st.sampled_from(["\n", "\r\n", "\r"])).map(
        lambda drawn: (
            drawn[2].join(drawn[1].join(row) for row in [drawn[0][0], *drawn[0][1]]).encode("utf-8", "replace")
        )
    ),
    st.lists(rows, max_size=5).map(lambda found: "\n".join(map(json.dumps, found)).encode()),
)


WRITERS = {
    ".tsv": lambda table: "\n".join(map("\t".join, table)).encode(),
    ".csv": lambda table: "\r\n".join(map(",".join, table)).encode(),
    ".jsonl": lambda table: "\n".join(json.dumps(dict(zip(table[0], row, strict=True))) for row in table[1:]).encode(),
}
files = st.one_of(  # (content, ending)
    st.tuples(labelled, st.sampled_from(list(WRITERS))).map(lambda drawn: (WRITERS[drawn[1]](drawn[0]), drawn[1])),
    st.tuples(contents, st.sampled_from([".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt", ""])),
)


@for_any(
    50,
    file=files,
    size=st.integers(0, 3),
    classes=st.integers(2, 3),
)
def test_any_data_file_is_read_or_refused(folder, file, size, classes):
    content, ending = file
    path = folder / f"data{ending}"
    path.write_bytes(content)
    run = config.load(["--dataset_name", str(path), "--num_labels", str(classes), "--train_size", str(size)])
    try:
        data = model_utils.load_data(run._replace(eval_size=0))
    except ValueError as error:
        assert (str(error) and str(path) in str(error)) or "TEXT_COLUMNS" in str(error) or "SIZE" in str(error), error
        return
    assert len(data.train) == size or size == 0
    assert data.train and data.evaluation
    for example in data.train + data.evaluation:
        assert isinstance(example.text, str) and type(example.label) is int and 0 <= example.label < classes


@for_any(10, content=contents | st.text(alphabet="step,loss\n0123456789.e-", max_size=80).map(str.encode))
def test_any_metrics_are_read_or_refused(folder, content):
    path = folder / "metrics.csv"
    header = ",".join(run_folder.METRICS).encode()
    for text in (content, header + b"\n" + content):
        path.write_bytes(text)
        try:
            found = run_folder.read_metrics(path)
        except ValueError as error:
            assert str(error).startswith("metrics.csv cannot be read: ")
            continue
        assert all(cell is None or isinstance(cell, float) for row in found for cell in row.values())


# --- Gradients

ENGINES = {
    (name, n): quantum_circuits.AerBackend(quantum_circuits.build_ansatz(name, n, 0.7), rule, block=512)
    for name, n, rule in (
        ("graph", 1, "quantum"),
        ("graph", 3, "quantum"),
        ("chain", 2, "exact"),
        ("product", 2, "independent"),
    )
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
entries = st.one_of(
    st.floats(),
    st.floats(-1, 1),
    st.sampled_from(
        [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 5e-324, 1e-45, 1.2e-38, 65504.0, 3.4e38, 1.7e308]
    ),
)
shapes = st.lists(st.integers(0, 5), max_size=4)


@for_any(
    40,
    engine=st.sampled_from(sorted(ENGINES)),
    shape=shapes,
    values=st.lists(entries, min_size=1, max_size=8),
    dtype=st.sampled_from([*DTYPES, torch.int64, torch.bool, torch.complex64]),
    layout=st.sampled_from(["as it is", "transposed", "expanded"]),
    normalization=st.sampled_from(["group", "tensor", "batch"]),
    learning_rate=st.sampled_from([1.0, 0.01, 1000.0, 0.0]),
    shots=st.integers(1, 200),
)
def test_any_gradient_is_measured_or_refused(
    _, engine, shape, values, dtype, layout, normalization, learning_rate, shots
):
    backend, size = ENGINES[engine], math.prod(shape)
    cells = torch.tensor(np.resize(np.array(values), size), dtype=torch.float64)
    with np.errstate(all="ignore"):
        gradient = cells.nan_to_num(0, 0, 0).to(dtype) if not dtype.is_floating_point else cells.to(dtype)
    gradient = gradient.reshape(shape)
    if layout == "transposed":
        gradient = gradient.mT.contiguous().mT if gradient.ndim >= 2 else gradient
    elif layout == "expanded" and size:
        gradient = gradient.reshape(-1)[:1].expand(7)
    before = gradient.clone()
    arguments = {"learning_rate": learning_rate, "shots": shots, "seed": (1, 2, 3), "normalization": normalization}
    try:
        update, usage = quantum_circuits.quantum_parameter_update(gradient, backend, **arguments)
    except ValueError as error:
        assert not dtype.is_floating_point or normalization == "batch", error
        return
    except FloatingPointError as error:
        finite = bool(torch.isfinite(gradient).all())
        assert ("gradient is not finite" in str(error)) == (not finite)
        top = gradient.double().abs().max() if finite else None  # refused only where it would overflow
        assert not finite or top * max(learning_rate, 1) * 64 > torch.finfo(dtype).max, error
        return
    finally:
        assert torch.equal(gradient.nan_to_num(), before.nan_to_num())
    assert torch.isfinite(gradient).all() and torch.isfinite(update).all()
    assert (update.shape, update.dtype, update.device) == (gradient.shape, gradient.dtype, gradient.device)
    n = backend.ansatz.circuit.num_qubits
    assert (usage.entries, usage.circuits) == (gradient.numel(), -(-gradient.numel() // n))
    if gradient.numel() and not gradient.any():
        assert not update.any()
    again, _ = quantum_circuits.quantum_parameter_update(gradient, backend, **arguments)
    assert torch.equal(update, again)
