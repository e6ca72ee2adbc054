"""Settings: what is accepted, what is refused and how the refusal reads."""

import re

import pytest

import config


def test_constants_are_the_published_defaults():
    s = config.load([])
    assert (s.model_name, s.dataset_name, s.dataset_config) == ("distilbert-base-uncased", "glue", "sst2")
    assert (s.train_size, s.eval_size, s.max_length, s.batch_size, s.num_epochs) == (100, 50, 128, 8, 3)
    assert (s.learning_rate, s.quantum_learning_rate, s.num_qubits, s.shots) == (5e-5, 0.01, 5, 1000)
    assert s.attention_layers == (0,) and s.update_rule == "quantum" and s.backend == "aer"


def test_flags_override_constants():
    s = config.load(
        ["--num_epochs", "5", "--learning_rate=1e-3", "--attention_layers", "0, 2", "--text_columns", "a,b"]
    )
    assert (s.num_epochs, s.learning_rate, s.attention_layers, s.text_columns) == (5, 1e-3, (0, 2), ("a", "b"))
    s = config.load(
        [
            "--attention_layers",
            "all",
            "--sample_sentences",
            '["One, two.", "Three."]',
            "--dataset_name",
            "x",
            "--dataset_config",
            "",
        ]
    )
    assert (s.attention_layers, s.sample_sentences, s.dataset_config) == ("all", ("One, two.", "Three."), "")


def test_edited_constants_count(monkeypatch):
    monkeypatch.setattr(config, "NUM_EPOCHS", 7)
    assert config.load([]).num_epochs == 7
    assert config.load(["--num_epochs", "2"]).num_epochs == 2


def test_settings_are_immutable():
    with pytest.raises(AttributeError):
        config.load([]).num_epochs = 4


def test_given_flags():
    assert config.given_flags([]) == frozenset()
    assert config.given_flags(["--seed", "3", "--model_name=x"]) == {"seed", "model_name"}


REFUSED = [
    (["--num_epochs", "0"], "NUM_EPOCHS = 0: allowed is a whole number from 1 to 10000"),
    (["--num_epochs", "2.5"], "NUM_EPOCHS = '2.5': allowed is a whole number from 1"),
    (["--num_epochs", "many"], "NUM_EPOCHS = 'many': allowed is a whole number"),
    (["--num_epochs", ""], "NUM_EPOCHS = '': allowed is a whole number"),
    (["--learning_rate", "nan"], "LEARNING_RATE = nan: allowed is a number from 0 to 10"),
    (["--quantum_learning_rate", "inf"], "QUANTUM_LEARNING_RATE = inf: allowed is a number"),
    (["--learning_rate", "-0.1"], "LEARNING_RATE = -0.1: allowed is a number from 0 to 10"),
    (["--entangling_angle", "1.5707963267948966"], "ENTANGLING_ANGLE = 1.5707963267948966: allowed is a number from 0"),
    (
        ["--update_rule", "quantums"],
        "UPDATE_RULE = 'quantums': allowed is one of quantum, independent, exact, classical, frozen",
    ),
    (["--seed", str(2**32)], "SEED = 4294967296: allowed is a whole number from 0 to 4294967295"),
    (["--num_qubits", "11"], "NUM_QUBITS = 11: allowed is a whole number from 1 to 10"),
    (["--model_name", " "], "MODEL_NAME = ' ': allowed is text"),
    (["--attention_layers", "0,x"], "ATTENTION_LAYERS = '0,x': allowed is \"all\" or a list of whole numbers"),
    (["--attention_layers", "0,0"], 'ATTENTION_LAYERS = [0, 0]: allowed is "all" or a list'),
    (["--attention_layers", "-1"], 'ATTENTION_LAYERS = [-1]: allowed is "all" or a list'),
    (["--attention_layers", "[1.7]"], 'ATTENTION_LAYERS = [1.7]: allowed is "all" or a list'),
    (["--attention_layers", "[null]"], 'ATTENTION_LAYERS = [None]: allowed is "all" or a list'),
    (["--attention_layers", "[]"], 'ATTENTION_LAYERS = []: allowed is "all" or a list'),
    (["--text_columns", "a,b,c"], "TEXT_COLUMNS = ['a', 'b', 'c']: allowed is a list of 0 to 2 texts"),
    (
        ["--attention_pattern", "(", "--attention_layers", "all"],
        "ATTENTION_PATTERN = '(': allowed is a regular expression",
    ),
    (["--attention_pattern", "q"], "ATTENTION_LAYERS = [0] contradicts ATTENTION_PATTERN = 'q'"),
    (["--dataset_config", "stsb"], "DATASET_CONFIG = 'stsb': allowed with GLUE is one of cola, sst2"),
    (["--dataset_config", "mnli"], "NUM_LABELS = 2: allowed with GLUE mnli is 3"),
    (["--num_epoch", "5"], "unrecognized arguments: --num_epoch 5 (did you mean --num_epochs?)"),
    (["stray"], "unrecognized arguments: stray"),
    (["--seed"], "argument --seed: expected one argument; --help"),
]


@pytest.mark.parametrize(
    ("flags", "message"), REFUSED, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_bad_settings_are_refused_in_one_line(flags, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        config.load(flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NUM_EPOCHS", True, "NUM_EPOCHS = True: allowed is a whole number"),
        ("NUM_EPOCHS", 3.0, "NUM_EPOCHS = 3.0: allowed is a whole number"),
        ("SHOTS", "1000", "SHOTS = '1000': allowed is a whole number"),
        ("LEARNING_RATE", None, "LEARNING_RATE = None: allowed is a number"),
        ("ATTENTION_LAYERS", 0, "ATTENTION_LAYERS = 0: allowed is"),
        ("ATTENTION_LAYERS", [True], "ATTENTION_LAYERS = [True]: allowed is"),
        ("SAMPLE_SENTENCES", "one", "SAMPLE_SENTENCES = 'one': allowed is a list"),
        ("MODEL_NAME", "a\0b", "MODEL_NAME = 'a\\x00b': allowed is text"),
        ("NUM_EPOCS", 3, "NUM_EPOCS = 3: unknown setting in config.py (did you mean NUM_EPOCHS?)"),
    ],
)
def test_badly_edited_constants_are_refused(monkeypatch, name, value, message):
    monkeypatch.setattr(config, name, value, raising=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        config.load([])


def test_a_deleted_constant_is_named(monkeypatch):
    monkeypatch.delattr(config, "SHOTS")
    with pytest.raises(ValueError, match=r"SHOTS is missing from config\.py"):
        config.load([])


RANGES = [(name, *limit[1:]) for name, limit in config._LIMITS.items() if limit[0] in ("a whole number", "a number")]


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_limits_at_their_ends(name, low, high):
    """The ends of every range are allowed, one step beyond is not."""
    for bound in (low, high):
        assert config._checked(name, bound) == bound
    for outside in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"^{name} = "):
            config._checked(name, outside)


def test_help_shows_every_setting_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as caught:
        config.load(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for name in config.Settings._fields:
        start = text.index(f"--{name} VALUE\n" if f"--{name} VALUE\n" in text else f"--{name} VALUE ")
        entry = text[start : text.find("\n  --", start + 1)]
        assert "[default: " in " ".join(entry.split()) and len(entry) > 60, name


def test_write_atomically_replaces_files_and_folders_and_cleans_up(tmp_path):
    for text in ("one", "two"):
        config.write_atomically(tmp_path / "a.json", lambda path, text=text: path.write_text(text))
        config.write_atomically(tmp_path / "folder", lambda path, text=text: (path.mkdir(), (path / text).touch()))
    assert (tmp_path / "a.json").read_text() == "two"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]

    def broken(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        config.write_atomically(tmp_path / "a.json", broken)
    assert (tmp_path / "a.json").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]
