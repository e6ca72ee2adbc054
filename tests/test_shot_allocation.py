"""Shots spent optimally: no bias, the noise that is predicted, the total, and the same bits however it is computed."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import only_run, read_json, run_training

import config
import quantum_circuits as qc
import shot_allocation
import train
from aer_engine import AerBackend
from harness import run_folder

PHI = math.pi / 4


def uneven_gradient(groups, n=3, seed=0):
    """Groups of very different sizes, float64, flat, the last group one entry short; one group is zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(groups, 1, generator=generator, dtype=torch.float64))
    gradient = torch.randn(groups, n, generator=generator, dtype=torch.float64) * sizes
    gradient[1] = 0
    return gradient.reshape(-1)[: groups * n - (n > 1)]


def updates_of(gradient, backend, shots, repeats, **options):
    """The measured gradient, repeats times: float64 (repeats, entries)."""
    arguments = {"learning_rate": 1.0, "shots": shots, **options}
    results = [
        qc.quantum_parameter_update(gradient, backend, seed=(7, i, 0), **arguments)[0].numpy() for i in range(repeats)
    ]
    return np.array(results)


def expected_shots(gradient, ansatz, shots):
    """(groups, moments v and m, expected shots) of the optimal allocation, by the formulas of its docstrings, slowly.

    The factor is found by bisection."""
    values = qc.as_groups(gradient, ansatz.circuit.num_qubits).numpy()
    scale = np.abs(values).max(axis=1)
    second = np.array([s**2 * sum(1 / np.diag(ansatz.response) ** 2) for s in scale])
    variance = second - (values**2).sum(axis=1)
    low, high = 0.0, 1e12
    for _ in range(200):
        factor = (low + high) / 2
        expected = np.maximum(factor * np.sqrt(variance), np.minimum(1, factor * np.sqrt(second)))
        low, high = (factor, high) if expected.sum() < shots * len(values) else (low, factor)
    return values, variance, second, expected


# --- The estimate


@pytest.mark.parametrize("rule", ["quantum", "independent"])
@pytest.mark.parametrize(
    ("name", "shots"), [("graph", 0.3), ("graph", 1), ("graph", 3), ("graph", 10), ("product", 0.3)]
)
def test_mean_and_noise_are_as_predicted(name, shots, rule):
    """E = g in every entry; of a group the noise is v E[1 / S], and of a sampled one m / p - |g|^2."""
    repeats, gradient = 3000, uneven_gradient(24)
    backend = AerBackend(qc.build_ansatz(name, 3, PHI), rule)
    values, variance, second, expected = expected_shots(gradient, backend.ansatz, shots)
    updates = updates_of(gradient, backend, shots, repeats, allocation="optimal")
    errors = updates - gradient.numpy()
    deviation = errors.std(axis=0)
    z = errors.mean(axis=0)[deviation > 0] / deviation[deviation > 0] * math.sqrt(repeats)
    rare = (np.repeat(expected, 3)[: len(gradient)] * repeats < 30)[deviation > 0]  # drawn too seldom for a z-score
    assert np.abs(z[~rare]).max() < 5 and (z[~rare] ** 2).mean() < 2

    sampled, fraction = expected < 1, expected % 1
    inverse_mean = (1 - fraction) / np.floor(expected).clip(1) + fraction / (np.floor(expected) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = second / expected - (values**2).sum(axis=1)
    predicted = np.where(sampled, np.where(second > 0, alone, 0), variance * inverse_mean)
    squares = np.zeros((repeats, len(values) * 3))
    squares[:, : len(gradient)] = errors**2
    per_group = squares.reshape(repeats, -1, 3).sum(axis=2)
    padded = np.arange(len(values)) == len(values) - 1  # its last entry is noise that nobody sees
    often = (expected * repeats > 300) & (second > 0) & ~padded
    error = per_group.std(axis=0) / math.sqrt(repeats)
    assert often.sum() > 8
    assert np.all(np.abs(per_group.mean(axis=0) - predicted)[often] < 5 * error[often] + 1e-4 * predicted[often])


def test_one_shot_for_a_qubit_that_is_certain_is_not_left_out():
    """With one qubit of `product` x is +1 or -1 and v is 0: without a shot there is no sign, which would be a bias."""
    gradient = uneven_gradient(24, n=1)
    backend = AerBackend(qc.build_ansatz("product", 1, PHI))
    for shots in (1, 5):
        (update,) = updates_of(gradient, backend, shots, 1, allocation="optimal")
        np.testing.assert_allclose(update, gradient, rtol=1e-12)
    updates = updates_of(gradient, backend, 0.5, 3000, allocation="optimal")
    error = updates.std(axis=0) / math.sqrt(3000)
    assert np.all(np.abs(updates.mean(axis=0) - gradient.numpy()) < 5 * error + 1e-12) and error.max() > 0


@pytest.mark.parametrize(("name", "shots"), [("graph", 100), ("product", 100), ("chain", 100)])
def test_gain_over_equal_is_the_one_reported(name, shots):
    gradient, backend = uneven_gradient(600), AerBackend(qc.build_ansatz(name, 3, PHI))
    exact, _ = qc.quantum_parameter_update(
        gradient, AerBackend(backend.ansatz, "exact"), learning_rate=1.0, shots=1, seed=(0, 0, 0)
    )
    noise = {
        allocation: ((updates_of(gradient, backend, shots, 40, allocation=allocation) - exact.numpy()) ** 2).sum(axis=1)
        for allocation in ("equal", "optimal")
    }
    settings = ["--circuit", name, "--num_qubits", "3", "--shots", str(shots), "--shot_allocation", "optimal"]
    settings = config.load(settings)
    _, usage = train.measure_gradients({"w": gradient}, backend, settings, 1, 1.0)
    gain = noise["equal"].mean() / noise["optimal"].mean()
    assert gain > 2 and usage["allocation_gain"] == pytest.approx(gain, rel=0.1)
    _, usage = train.measure_gradients({"w": gradient}, backend, settings._replace(shot_allocation="equal"), 1, 1.0)
    assert usage["allocation_gain"] is None


def test_gain_with_one_scale_for_the_tensor_is_that_of_its_variances():
    """Near 1: all groups are nearly as noisy. With `product` the variance of each weight is s^2 - g^2."""
    gradient, backend = uneven_gradient(600), AerBackend(qc.build_ansatz("product", 3, PHI))
    flags = ["--circuit", "product", "--num_qubits", "3", "--shots", "100", "--shot_allocation", "optimal"]
    settings = config.load([*flags, "--normalization", "tensor"])
    _, usage = train.measure_gradients({"w": gradient}, backend, settings, 1, 1.0)
    groups = qc.as_groups(gradient, 3).numpy()
    variance = (gradient.abs().max().item() ** 2 - groups**2).sum(axis=1)
    gain = len(groups) * variance.sum() / np.sqrt(variance).sum() ** 2
    assert 1 < gain < 1.5 and usage["allocation_gain"] == pytest.approx(gain, rel=1e-3)


def test_the_gain_of_several_weights_is_that_of_their_noise_together():
    backend = AerBackend(qc.build_ansatz("product", 3, PHI))
    flat = torch.randn(900, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = {"flat": flat, "spread": uneven_gradient(600) / 100}
    flags = ["--circuit", "product", "--num_qubits", "3", "--shots", "100", "--shot_allocation", "optimal"]
    settings = config.load(flags)

    def noise(allocation):
        chosen = settings._replace(shot_allocation=allocation)
        found = [train.measure_gradients(gradients, backend, chosen, step, 1.0)[0] for step in range(1, 41)]
        return sum(((update[name] - gradients[name]) ** 2).sum().item() for update in found for name in gradients)

    _, usage = train.measure_gradients(gradients, backend, settings, 1, 1.0)
    assert usage["allocation_gain"] == pytest.approx(noise("equal") / noise("optimal"), rel=0.1)


def test_a_part_of_the_groups_and_factors_of_theirs():
    """Of some groups, in any order, each with a factor of its own: the mean is the factor times the gradient."""
    gradient, groups = uneven_gradient(24), torch.tensor([20, 3, 23, 7])
    factors = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64)
    backend = AerBackend(qc.build_ansatz("graph", 3, PHI))
    expected = torch.zeros(72, dtype=torch.float64).view(24, 3)
    expected[groups] = qc.as_groups(gradient, 3)[groups] * factors[:, None]
    expected = expected.reshape(-1)[:71].numpy()
    for shots, allocation in ((1, "equal"), (0.8, "optimal"), (4, "optimal")):
        updates = updates_of(gradient, backend, shots, 2000, allocation=allocation, groups=groups, factors=factors)
        error = updates.std(axis=0) / math.sqrt(2000)
        assert np.all(np.abs(updates.mean(axis=0) - expected) <= 5 * error + 1e-12), shots


# --- The shots


@pytest.mark.parametrize("shots", [0.01, 0.3, 1, 2.5, 10, 1000])
@pytest.mark.parametrize("normalization", ["group", "tensor"])
def test_the_total_is_that_of_equal_and_counts_what_ran(shots, normalization):
    gradient, backend = uneven_gradient(700), AerBackend(qc.build_ansatz("graph", 3, PHI))
    arguments = {"learning_rate": 1.0, "seed": (1, 2, 3), "normalization": normalization}
    update, usage = qc.quantum_parameter_update(gradient, backend, shots=shots, allocation="optimal", **arguments)
    assert abs(usage.shots - 700 * shots) < 1
    changed = int(torch.any(qc.as_groups(update, 3) != 0, dim=1).sum())
    assert changed <= usage.circuits <= min(700, usage.shots)
    assert usage.entries in (usage.circuits * 3, usage.circuits * 3 - 1)
    if shots < 1:
        assert usage.circuits > 0.7 * usage.shots  # mostly one shot each, and no circuit without any
    if shots == 0.01 and normalization == "group":
        assert changed == 7


@pytest.mark.parametrize("shots", [0.02, 0.5, 1, 1.5, 4, 300])
@pytest.mark.parametrize("name", ["graph", "product"])
def test_optimal_shots_are_those_of_the_slow_reference(name, shots):
    gradient, ansatz = uneven_gradient(200), qc.build_ansatz(name, 3, PHI)
    values, variance, _, expected = expected_shots(gradient, ansatz, shots)
    found = shot_allocation.one_shot_moments(values, qc.scale_of(values), ansatz.inverse)
    largest = np.abs(values).max() ** 2
    np.testing.assert_allclose(found[0] * largest, variance, rtol=0, atol=1e-12 * largest)
    fast = shot_allocation.optimal_shots(*found, shots * len(values))
    np.testing.assert_allclose(fast, expected, rtol=4e-3, atol=1e-9)
    assert fast.sum() == pytest.approx(shots * len(values), rel=1e-12)


def test_whole_numbers_have_the_expected_ones_as_their_mean():
    expected = np.array([0.0, 0.25, 3.0, 2.6, 0.9, 1.0, 7.3, 0.05])
    drawn = np.array([shot_allocation.draw_whole(expected, np.random.default_rng(i)) for i in range(4000)])
    assert np.all((drawn == np.floor(expected)) | (drawn == np.ceil(expected)))
    assert np.abs(drawn.sum(axis=1) - expected.sum()).max() < 1
    assert np.all(np.abs(drawn.mean(axis=0) - expected) <= 5 * drawn.std(axis=0) / math.sqrt(4000) + 1e-12)


def test_inclusion_chances_are_exact_for_a_fixed_number():
    sizes = np.array([100.0, 8, 4, 4, 2, 1, 1, 0])
    chances = shot_allocation.inclusion_chances(sizes, 3)
    np.testing.assert_allclose(chances, [1, 0.8, 0.4, 0.4, 0.2, 0.1, 0.1, 0], atol=1e-12)
    drawn = np.array([shot_allocation.draw_whole(chances, np.random.default_rng(i)) for i in range(4000)])
    assert set(drawn.sum(axis=1)) == {3}
    np.testing.assert_allclose(drawn.mean(axis=0), chances, atol=5 * 0.5 / math.sqrt(4000))
    np.testing.assert_array_equal(shot_allocation.inclusion_chances(sizes, 9), [1] * 7 + [0])


@pytest.mark.parametrize("gradient", [torch.zeros(10), torch.zeros(0), torch.tensor([5e-324]).double()])
def test_gradients_with_nothing_to_tell(gradient):
    backend = AerBackend(qc.build_ansatz("product", 1, PHI))
    update, usage = qc.quantum_parameter_update(
        gradient, backend, learning_rate=1.0, shots=2, seed=(0, 0, 0), allocation="optimal"
    )
    assert torch.equal(update, gradient) and usage.circuits == (1 if gradient.any() else 0)


# --- The same bits


@pytest.mark.parametrize("rule", ["quantum", "independent"])
@pytest.mark.parametrize("shots", [3, 300])
def test_an_array_of_equal_shots_draws_what_the_number_does(rule, shots):
    """What "equal" has always drawn: an int is the slow reference of an array."""
    backend = AerBackend(qc.build_ansatz("graph", 3, PHI), rule)
    distributions = backend.probabilities(np.random.default_rng(0).uniform(-1, 1, (100, 3)))
    one, many = (
        backend.draw(distributions, backend.eigenvalues, given, np.random.default_rng(1))
        for given in (shots, np.full(100, shots))
    )
    np.testing.assert_array_equal(one, many)
    generator = np.random.default_rng(1)
    if rule == "independent":
        counts = generator.binomial(shots, ((1 + distributions @ backend.eigenvalues) / 2).clip(0, 1))
        np.testing.assert_array_equal(one, 2 * counts / shots - 1)
    elif shots > 255:
        counts = generator.multinomial(shots, distributions.clip(max=1))
        np.testing.assert_array_equal(one, counts @ backend.eigenvalues / shots)


@pytest.mark.parametrize("rule", ["quantum", "independent"])
@pytest.mark.parametrize("shots", [0.3, 2.5, 60])
def test_same_bits_whatever_the_threads_blocks_and_shares(rule, shots):
    ansatz, gradient = qc.build_ansatz("graph", 3, PHI), uneven_gradient(2100).float()
    arguments = {"learning_rate": 0.1, "shots": shots, "seed": (9, 8, 7), "allocation": "optimal"}
    alone, usage = qc.quantum_parameter_update(gradient, AerBackend(ansatz, rule), **arguments)
    before = torch.get_num_threads()
    try:
        for threads, block in ((1, 512), (2, 512), (2, 1024)):
            torch.set_num_threads(threads)
            backend = AerBackend(ansatz, rule, block)
            assert torch.equal(qc.quantum_parameter_update(gradient, backend, **arguments)[0], alone)
    finally:
        torch.set_num_threads(before)
    backend = AerBackend(ansatz, rule, 512)
    parts = [qc.quantum_parameter_update(gradient, backend, **arguments, share=(which, 3)) for which in range(3)]
    assert torch.equal(sum(update for update, _ in parts), alone)
    for column in ("entries", "circuits", "shots"):
        assert sum(getattr(part, column) for _, part in parts) == getattr(usage, column)
    other = qc.quantum_parameter_update(gradient, backend, **arguments | {"seed": (9, 8, 6)})[0]
    assert not torch.equal(other, alone)


def test_exact_has_no_shots_to_allocate():
    gradient, backend = uneven_gradient(50), AerBackend(qc.build_ansatz("graph", 3, PHI), "exact")
    arguments = {"learning_rate": 1.0, "seed": (0, 0, 0)}
    update, usage = qc.quantum_parameter_update(gradient, backend, shots=0.1, allocation="optimal", **arguments)
    assert torch.equal(update, qc.quantum_parameter_update(gradient, backend, shots=9, **arguments)[0])
    assert (usage.circuits, usage.shots) == (50, 0)


@pytest.mark.parametrize(
    ("shots", "allocation"), [(0.5, "equal"), (0, "equal"), (0, "optimal"), (math.nan, "optimal"), (1, "best")]
)
def test_what_cannot_be_allocated_is_refused(shots, allocation):
    backend = AerBackend(qc.build_ansatz("graph", 3, PHI))
    with pytest.raises(ValueError, match="must be"):
        qc.quantum_parameter_update(
            torch.ones(3), backend, learning_rate=1.0, shots=shots, seed=(0, 0, 0), allocation=allocation
        )


# --- Runs


def test_a_run_with_fewer_shots_than_circuits(tiny_flags, tmp_path):
    assert run_training([*tiny_flags, "--shots", "0.3", "--shot_allocation", "optimal"]) == 0
    run = run_folder.read(only_run(tmp_path / "results"))
    assert run["settings"]["shots"] == 0.3
    for row in run["rows"]:
        if row["loss"] is not None:
            assert 0.7 * row["shots"] < row["circuits"] <= row["shots"] and abs(row["shots"] - 4 * 52 * 0.3) < 4
            assert row["allocation_gain"] > 1 and 0.2 < row["coverage"] < 0.4


def test_finished_runs_from_before_are_read_as_what_they_did(finished_run, tmp_path):
    config_of, status = read_json(finished_run / "config.json"), read_json(finished_run / "training_statistics.json")
    metrics = (finished_run / "metrics.csv").read_text().splitlines()
    column = metrics[0].split(",").index("allocation_gain")
    old = tmp_path / "run_20260101_000000"
    old.mkdir()
    for name in run_folder.LATER_SETTINGS:
        del config_of[name]
    without = [",".join(cells[:column] + cells[column + 1 :]) for cells in (line.split(",") for line in metrics)]
    (old / "metrics.csv").write_text("\n".join([*without, ""]))
    (old / "config.json").write_text(json.dumps(config_of))
    (old / "environment.json").write_text((finished_run / "environment.json").read_text())
    (old / "training_statistics.json").write_text(json.dumps(status))
    assert run_folder.read(old)["settings"] == run_folder.read(finished_run)["settings"]
    assert run_folder.stored_settings(old) == run_folder.stored_settings(finished_run)
    (old / "training_statistics.json").write_text(json.dumps(status | {"status": "interrupted"}))
    with pytest.raises(ValueError, match="of another layout"):
        run_folder.stored_settings(old)
