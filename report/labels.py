"""Names of arms in words: the update rule, and of its settings only what differs within a study."""

import math
from fractions import Fraction

import config


def angle_in_words(value):
    """An angle, radians, as text: a fraction of π where it is one."""
    fraction = Fraction(value / math.pi).limit_denominator(24)
    if not value or not math.isclose(float(fraction) * math.pi, value, rel_tol=1e-12):
        return f"angle {value}"
    top = "π" if fraction.numerator == 1 else f"{fraction.numerator}π"
    return f"angle {top}" if fraction.denominator == 1 else f"angle {top}/{fraction.denominator}"


def layers_in_words(value):
    """Numbers of layers, or "all", as text."""
    return "all layers" if value == "all" else f"layer{'s' * (len(value) > 1)} {', '.join(map(str, value))}"


def counted(noun):
    """A function that says how many of something there are: 1 -> "1 shot", 10 -> "10 shots"."""
    return lambda value: f"{value} {noun}{'s' * (value != 1)}"


# Setting -> a text with {} in place of the value, a dict of value -> text, or a function of the value.
WORDS = {
    "quantum_optimizer": {"sgd": "SGD", "adamw": "AdamW"},
    "quantum_learning_rate": "SGD rate {}",
    "quantum_schedule": "{} schedule",
    "circuit": "{} circuit",
    "num_qubits": counted("qubit"),
    "shots": counted("shot"),
    "shot_allocation": {"equal": "equal shots", "optimal": "optimal shots"},
    "entangling_angle": angle_in_words,
    "normalization": "scaled by {}",
    "backend": "{}",
    "device_selection": {"largest": "largest groups", "sampled": "sampled groups"},
    "device_noise": {"on": "noise", "off": "no noise"},
    "mitigation": {"none": "not mitigated", "readout": "readout mitigated"},
    "trained_weights": {"all": "all weights trained", "attention": "attention alone trained"},
    "attention_layers": layers_in_words,
    "model_name": "{}",
    "dataset_name": "{}",
    "dataset_config": "{}",
    "train_size": lambda value: counted("example")(value or "all"),
    "eval_size": lambda value: f"{value or 'all'} evaluated",
    "num_epochs": counted("epoch"),
    "batch_size": "batches of {}",
    "learning_rate": "learning rate {}",
    "weight_decay": "decay {}",
    "max_gradient_norm": "norm up to {}",
}

# Setting -> what it is, for titles and axes; without a name here it is its own, spaced.
NAMES = {
    "quantum_optimizer": "optimizer of the measured gradient",
    "quantum_learning_rate": "SGD rate on the measured gradient",
    "quantum_schedule": "schedule of that SGD rate",
    "num_qubits": "number of qubits",
    "shots": "number of shots",
    "shot_allocation": "allocation of the shots",
    "entangling_angle": "entangling angle in radians",
    "normalization": "scale of the encoding",
    "backend": "device",
    "device_selection": "choice of the measured groups",
    "device_noise": "noise of the device",
    "mitigation": "mitigation of readout errors",
    "model_name": "model",
    "dataset_name": "data",
    "dataset_config": "configuration of the data",
    "train_size": "number of training sentences",
    "eval_size": "number of evaluated sentences",
    "max_length": "longest sentence",
    "num_epochs": "number of epochs",
    "batch_size": "size of the batches",
    "accumulation_steps": "batches per step",
    "max_gradient_norm": "largest norm of the gradient",
    "autocast": "precision",
}


def name_in_words(name):
    """What a setting is, as text."""
    return NAMES.get(name, name.replace("_", " "))


def in_words(name, value):
    """A setting and its value as text; one that has no words here by its name."""
    words = WORDS.get(name, name.replace("_", " ") + " {}")
    if callable(words):
        return words(value)
    return words.get(value, f"{name} {value}") if isinstance(words, dict) else words.format(value)


def used_settings(settings):
    """The settings that a run's result depends on under its rule, without the seed, a dict."""
    return {name: value for name, value in config.settings_that_affect_result(settings).items() if name != "seed"}


def varying(settings):
    """Names of the settings, those that have words first, that differ between some dicts as used_settings gives them.

    A setting that some do not use differs only if it does between the others.
    """
    names = [*WORDS, *sorted({name for used in settings for name in used} - WORDS.keys() - {"update_rule"})]
    return [n for n in names if len({str(used[n]) for used in settings if n in used}) > 1]


def label(used, names):
    """The label of an arm: its update rule and, in words, those of the settings `names` that it uses.

    "any rule" where `used`, which may be a question's description of an arm, names none.
    """
    words = [in_words(name, used[name]) for name in names if name in used]
    return ", ".join([used.get("update_rule", "any rule"), *words])
