"""What environment.json holds: code, versions, machine, and what was really used."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from harness.process_group import world_size

PACKAGES = ("torch", "transformers", "datasets", "qiskit", "qiskit-aer", "qiskit-aer-gpu", "qiskit-ibm-runtime")
PACKAGES += ("numpy", "matplotlib", "tqdm")


def describe_environment(argv, device, backend, model, model_source, data_source):
    """Contents of environment.json, a dict. backend: name of the engine, or None where no circuits run."""
    changed = git("status", "--porcelain", "--", ":(top,exclude)results")  # runs published there are no change of code
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
        "argv": list(argv),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version_of(name))},
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "backend": backend,
        "model": model_source,
        "data": data_source,
        "initial_weights_sha256": hash_of_weights(model),
    }


def version_of(package):
    """The version of an installed package, a str; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git(*words):
    """What git prints about this checkout; None where it is none, or there is no git."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hash_of_weights(model):
    """SHA-256 of a model's weights, as hexadecimal digits."""
    hashed = hashlib.sha256()
    for weight in model.parameters():
        hashed.update(weight.detach().cpu().numpy())
    return hashed.hexdigest()
