"""Settings: what is accepted, what is refused and how the refusal reads."""

import re

import numpy as np
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


def test_a_list_of_numbers_is_a_sweep_in_config_as_it_is_as_a_flag(monkeypatch):
    monkeypatch.setattr(config, "SHOTS", [10, 100])
    assert config.parse([]).runs == config.parse(["--shots", "10,100"]).runs
    assert [run.shots for run in config.parse([]).runs] == [10, 100]
    assert config.load(["--shots", "5"]).shots == 5


def test_one_seed_or_rule_as_a_flag_is_one_run_whatever_study_config_describes(monkeypatch):
    monkeypatch.setattr(config, "SEEDS", [0, 1, 2])
    monkeypatch.setattr(config, "UPDATE_RULES", ["quantum", "exact"])
    assert len(config.parse([]).runs) == 6
    (run,) = config.parse(["--seed", "7", "--update_rule", "classical"]).runs
    assert (run.seed, run.update_rule) == (7, "classical")
    assert [run.seed for run in config.parse(["--update_rule", "classical"]).runs] == [0, 1, 2]


@pytest.mark.parametrize(("name", "value"), [("SHOTS", 10**400), ("LEARNING_RATE", 10**400), ("SEEDS", np.arange(3))])
def test_what_no_comparison_takes_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setattr(config, name, value)
    with pytest.raises(ValueError, match=f"{name} = .*: must be"):
        config.parse([])


def test_a_learning_rate_changed_in_config_is_chosen_like_a_flag(monkeypatch):
    """So that it wins over the embedded model's own; a flag for that wins over both constants."""
    assert "learning_rate" not in config.parse([]).given
    for value in (1e-3, [5e-5, 1e-3]):
        monkeypatch.setattr(config, "LEARNING_RATE", value)
        assert config.parse([]).given == {"learning_rate"}
        assert config.parse(["--embedded_learning_rate", "1e-4"]).given == {"embedded_learning_rate"}
        assert config.parse(["--resume", "latest"]).given == frozenset()  # a resumed run has its own


def test_a_pattern_takes_the_place_of_the_layers(monkeypatch):
    assert config.load(["--attention_pattern", "q"]) == config.load(
        ["--attention_pattern", "q", "--attention_layers", "all"]
    )
    monkeypatch.setattr(config, "ATTENTION_PATTERN", "q")
    assert config.load([]).attention_layers == "all"


def test_settings_are_immutable():
    with pytest.raises(AttributeError):
        config.load([]).num_epochs = 4


def test_given_flags():
    assert config.parse([]).given == frozenset()
    assert config.parse(["--seed", "3", "--model_name=x", "--debug"]).given == {"seed", "model_name"}


REFUSED = [
    (["--num_epochs", "0"], "NUM_EPOCHS = 0: must be a whole number from 1 to 10000"),
    (["--num_epochs", "2.5"], "NUM_EPOCHS = '2.5': must be a whole number from 1"),
    (["--num_epochs", "many"], "NUM_EPOCHS = 'many': must be a whole number"),
    (["--num_epochs", ""], "NUM_EPOCHS = '': must be a whole number"),
    (["--learning_rate", "nan"], "LEARNING_RATE = nan: must be a number from 0 to 10"),
    (["--quantum_learning_rate", "inf"], "QUANTUM_LEARNING_RATE = inf: must be a number"),
    (["--learning_rate", "-0.1"], "LEARNING_RATE = -0.1: must be a number from 0 to 10"),
    (["--entangling_angle", "1.5707963267948966"], "ENTANGLING_ANGLE = 1.5707963267948966: must be a number from 0"),
    (
        ["--update_rule", "quantums"],
        "UPDATE_RULE = 'quantums': must be one of quantum, independent, exact, gradient, classical, frozen",
    ),
    (["--seed", str(2**32)], "SEED = 4294967296: must be a whole number from 0 to 4294967295"),
    (["--shots", "0.3"], "SHOTS = 0.3 with SHOT_ALLOCATION = 'equal': must be a whole number"),
    (["--shots", "0.0009", "--shot_allocation", "optimal"], "SHOTS = 0.0009: must be a number from 0.001 to 10000000"),
    (["--shot_allocation", "best"], "SHOT_ALLOCATION = 'best': must be one of equal, optimal"),
    (
        ["--shot_allocation", "optimal", "--backend", "generic:5"],
        "SHOT_ALLOCATION = 'optimal' with BACKEND = 'generic:5': must be equal",
    ),
    (
        ["--seed", "3", "--seeds", "0-9"],
        "SEEDS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] contradicts SEED = 3: give one",
    ),
    (["--attention_pattern", "a{99999999999}"], "ATTENTION_PATTERN = 'a{99999999999}': must be a regular expression"),
    (["--text_columns", "[" * 100_000], "TEXT_COLUMNS = '[[["),
    (["--backend", "generic:100"], "BACKEND = 'generic:100': must be one of aer, ibm, ibm:NAME, fake:NAME and generic"),
    (["--device_selection", "all", "--backend", "generic:5"], "DEVICE_SELECTION = 'all': must be one of largest, samp"),
    (["--num_qubits", "11"], "NUM_QUBITS = 11: must be a whole number from 1 to 10"),
    (["--model_name", " "], "MODEL_NAME = ' ': must be text"),
    (["--attention_layers", "0,x"], "ATTENTION_LAYERS = '0,x': must be \"all\" or a list of whole numbers"),
    (["--attention_layers", "0,0"], 'ATTENTION_LAYERS = [0, 0]: must be "all" or a list'),
    (["--attention_layers", "-1"], 'ATTENTION_LAYERS = [-1]: must be "all" or a list'),
    (["--attention_layers", "[1.7]"], 'ATTENTION_LAYERS = [1.7]: must be "all" or a list'),
    (["--attention_layers", "[null]"], 'ATTENTION_LAYERS = [None]: must be "all" or a list'),
    (["--attention_layers", "[]"], 'ATTENTION_LAYERS = []: must be "all" or a list'),
    (["--text_columns", "a,b,c"], "TEXT_COLUMNS = ['a', 'b', 'c']: must be a list of 0 to 2 texts"),
    (
        ["--attention_pattern", "(", "--attention_layers", "all"],
        "ATTENTION_PATTERN = '(': must be a regular expression",
    ),
    (
        ["--attention_pattern", "q", "--attention_layers", "0"],
        "ATTENTION_LAYERS = [0] contradicts ATTENTION_PATTERN = 'q'",
    ),
    (["--dataset_config", "stsb"], "DATASET_CONFIG = 'stsb': must be one of cola, sst2"),
    (["--dataset_config", "mnli"], "NUM_LABELS = 2: must be 3 with GLUE mnli"),
    (["--seeds", "9-0"], "SEEDS = '9-0': must be a list of whole numbers from 0 to 4294967295"),
    (["--seeds", "0-2,x"], "SEEDS = '0-2,x': must be a list of whole numbers"),
    (["--seeds", ""], "SEEDS = []: must name at least one; without the flag SEED alone counts"),
    (["--seeds", "[]"], "SEEDS = []: must name at least one"),
    (["--update_rules", ""], "UPDATE_RULES = []: must name at least one; without the flag UPDATE_RULE alone counts"),
    (["--update_rules", " "], "UPDATE_RULES = []: must name at least one"),
    (["--update_rules", "quantum,"], "UPDATE_RULES = ['quantum', '']: must be a list of quantum, independent"),
    (["--update_rule", "quantum,classical"], "frozen; several make a study: UPDATE_RULES"),
    (["--seed", "0-9"], "SEED = '0-9': must be a whole number from 0 to 4294967295; several make a study: SEEDS"),
    (["--shots", "0"], "SHOTS = 0: must be a number from 0.001"),
    (["--shots", "10,x"], "SHOTS = 'x': must be a number"),
    (["--num_epoch", "5"], "unrecognized arguments: --num_epoch 5 (did you mean --num_epochs?)"),
    (["--num_epoch=5"], "unrecognized arguments: --num_epoch=5 (did you mean --num_epochs?)"),
    (["--lr", "1"], "unrecognized arguments: --lr 1 (did you mean --learning_rate?)"),
    (["--lr=1"], "unrecognized arguments: --lr=1 (did you mean --learning_rate?)"),
    (["--shots", "10", "100"], "unrecognized arguments: 100 (several values are joined by commas, such as 10,100)"),
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
        ("NUM_EPOCHS", True, "NUM_EPOCHS = True: must be a whole number"),
        ("NUM_EPOCHS", 3.0, "NUM_EPOCHS = 3.0: must be a whole number"),
        ("SHOTS", "1000", "SHOTS = '1000': must be a number from 0.001 to 10000000"),
        ("LEARNING_RATE", None, "LEARNING_RATE = None: must be a number"),
        ("ATTENTION_LAYERS", 0, "ATTENTION_LAYERS = 0: must be"),
        ("ATTENTION_LAYERS", [True], "ATTENTION_LAYERS = [True]: must be"),
        ("SAMPLE_SENTENCES", "one", "SAMPLE_SENTENCES = 'one': must be a list"),
        ("MODEL_NAME", "a\0b", "MODEL_NAME = 'a\\x00b': must be text"),
        ("NUM_EPOCS", 3, "NUM_EPOCS = 3: unknown setting in config.py (did you mean NUM_EPOCHS?)"),
        ("LR", 1e-3, "LR = 0.001: unknown setting in config.py (did you mean LEARNING_RATE?)"),
        ("UPDATE_RULE", "quantum,classical", "frozen; several make a study: UPDATE_RULES"),
        ("UPDATE_RULE", ["quantum", "exact"], "frozen; several make a study: UPDATE_RULES"),
        ("SHOTS", [], "SHOTS = []: must be a number"),
        ("SHOTS", [10, 0], "SHOTS = 0: must be a number"),
    ],
)
def test_badly_edited_constants_are_refused(monkeypatch, name, value, message):
    monkeypatch.setattr(config, name, value, raising=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        config.load([])


DEVICE_FLAGS = {
    "device_groups": "8",
    "device_selection": "sampled",
    "device_noise": "off",
    "mitigation": "readout",
    "dynamical_decoupling": "XX",
    "twirling": "gates",
    "max_qpu_seconds": "60.5",
    "dry_run": "yes",
}


@pytest.mark.parametrize(("name", "value"), DEVICE_FLAGS.items())
def test_flags_for_devices_are_refused_with_aer(name, value):
    flags = [f"--{name}", value]
    message = re.escape(f"{name.upper()} = ") + r".* with BACKEND = 'aer': must be left out, it is for devices"
    for backend in ([], ["--backend", "aer"], ["--update_rules", "quantum,classical", "--seeds", "0-2"]):
        with pytest.raises(ValueError, match=message):
            config.parse([*flags, *backend])
    with pytest.raises(ValueError, match=message):  # the default itself is as much without effect
        config.parse([f"--{name}", str(getattr(config, name.upper()))])
    (run,) = config.parse([*flags, "--backend", "fake:FakeManilaV2"]).runs
    assert str(getattr(run, name)) == value


def test_flags_for_devices_are_not_judged_by_the_default_backend_of_a_resumed_run():
    for name, value in DEVICE_FLAGS.items():
        command = config.parse(["--resume", "results/run_x", f"--{name}", value])
        assert (command.resume, command.given) == ("results/run_x", {name})
        assert str(getattr(command.runs[0], name)) == value


def test_what_config_says_now_keeps_no_run_from_going_on(monkeypatch):
    for name, value in {"SEEDS": [0, 1], "SHOTS": [10, 100], "BACKEND": "ibm", "DATASET_CONFIG": "stsb"}.items():
        monkeypatch.setattr(config, name, value)
    command = config.parse(["--resume", "results/run_x"])
    assert len(command.runs) == 1 and command.given == frozenset()
    command = config.parse(["--resume", "results/run_x", "--seeds", "3", "--update_rules", "exact"])
    assert {"seed", "update_rule"} <= command.given
    assert (command.runs[0].seed, command.runs[0].update_rule) == (3, "exact")
    assert len(config.parse(["--resume", "results/run_x", "--seeds", "3,4"]).runs) == 2  # to be refused


def test_a_name_too_long_for_any_file_is_no_path():
    assert not config.is_local("a" * 5000)


def test_a_dry_run_in_config_is_refused_with_aer_and_other_device_settings_wait_for_a_device(monkeypatch):
    monkeypatch.setattr(config, "MITIGATION", "readout")
    assert config.load([]).mitigation == "readout"
    monkeypatch.setattr(config, "DRY_RUN", "yes")
    with pytest.raises(ValueError, match="DRY_RUN = 'yes' with BACKEND = 'aer': must be left out"):
        config.load([])
    assert config.load(["--backend", "generic:5"]).dry_run == "yes"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "sst2"),
        (["--dataset_name", "glue"], "sst2"),
        (["--dataset_name", "nyu-mll/glue"], "sst2"),
        (["--dataset_name", "glue", "--dataset_config", "cola"], "cola"),
        (["--dataset_name", "imdb"], ""),
        (["--dataset_name", "imdb", "--dataset_config", "plain_text"], "plain_text"),
        (["--dataset_name", "imdb", "--dataset_config", "sst2"], "sst2"),
        (["--dataset_name", "someone/data"], ""),
        (["--dataset_name", "embedded"], ""),
        (["--dataset_name", "embedded", "--dataset_config", "cola"], ""),
        (["--dataset_name", "./here"], ""),
        (["--dataset_name", "~/data.csv", "--dataset_config", "plain_text"], ""),
    ],
)
def test_the_configuration_of_glue_is_for_glue_alone(flags, expected):
    assert config.load(flags).dataset_config == expected


def test_an_existing_folder_is_local_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue").mkdir()
    assert config.load([]).dataset_config == ""


def test_another_configuration_in_config_is_for_the_data_set_there(monkeypatch):
    monkeypatch.setattr(config, "DATASET_NAME", "imdb")
    assert config.load([]).dataset_config == ""
    for configuration in ("plain_text", "rte"):  # the second is one of GLUE, too
        monkeypatch.setattr(config, "DATASET_CONFIG", configuration)
        assert config.load([]).dataset_config == configuration


def test_whole_shots_stay_whole_numbers_and_a_mean_may_be_below_one():
    """10 and 10.0 are the same run; config.json and captions say 10."""
    for text in ("10", "10.0", "1e1"):
        shots = config.load(["--shots", text]).shots
        assert type(shots) is int and shots == 10
    runs = config.parse(["--shots", "0.1,3,2.5", "--shot_allocation", "optimal"]).runs
    assert [(run.shots, type(run.shots)) for run in runs] == [(0.1, float), (3, int), (2.5, float)]


def test_allocation_and_selection_count_where_they_are_used():
    def used(*flags):
        return config.settings_that_affect_result(config.load(flags)._asdict()).keys()

    assert "shot_allocation" in used() and "device_selection" not in used()
    assert "device_selection" in used("--backend", "generic:5")
    for rule in ("exact", "gradient", "classical", "frozen"):
        assert not used("--update_rule", rule) & {"shots", "shot_allocation", "device_selection"}


def test_seeds_are_ranges_and_lists():
    assert [run.seed for run in config.parse(["--seeds", "0-2, 7"]).runs] == [0, 1, 2, 7]
    assert [run.seed for run in config.parse(["--seeds", "3-3"]).runs] == [3]


def test_a_deleted_constant_is_named(monkeypatch):
    monkeypatch.delattr(config, "SHOTS")
    with pytest.raises(ValueError, match=r"SHOTS is missing from config\.py"):
        config.load([])


RANGES = [(name, *limit[1:]) for name, limit in config._LIMITS.items() if limit[0] in ("a whole number", "a number")]


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_limits_at_their_ends(name, low, high):
    """The ends of every range are allowed, one step beyond is not."""
    for bound in (low, high):
        assert config.checked(name, bound) == bound
    for outside in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"^{name} = "):
            config.checked(name, outside)


def test_help_shows_every_setting_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as caught:
        config.load(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for name in config.Settings._fields:
        start = text.index(f"--{name} VALUE\n" if f"--{name} VALUE\n" in text else f"--{name} VALUE ")
        entry = text[start : text.find("\n  --", start + 1)]
        assert "[default: " in " ".join(entry.split()) and len(entry) > 60, name
