"""Devices: placing circuits, agreement with Aer, and jobs that survive what services do. Nothing reaches a network."""

import itertools
import json
import math
import re
import socket

import numpy as np
import pytest
import qiskit_ibm_runtime
import torch
from conftest import (
    ROOT,
    assert_same_run,
    metric_rows,
    one_error,
    only_run,
    read_json,
    run_script,
    run_training,
    stop_at,
)
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime import executor_sampler, fake_provider
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from qiskit_ibm_runtime.exceptions import (
    IBMNotAuthorizedError,
    IBMRuntimeError,
    RuntimeInvalidStateError,
    RuntimeJobFailureError,
    RuntimeJobMaxTimeoutError,
    RuntimeJobNotFound,
)

import config
import devices
import quantum_circuits as qc
import train
from aer_engine import AerBackend
from report import summary

PHI = math.pi / 4
LocalSampler = executor_sampler.Sampler
SECRET = "planted-token-0123456789"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def waits(monkeypatch):
    """Attempts for which the backend paused, instead of the pauses."""
    paused = []
    monkeypatch.setattr(devices, "pause", paused.append)
    return paused


def make_backend(name="fake:FakeManilaV2", num_qubits=5, noise=False, circuit="graph", **options):
    device, service = devices.open_device(name, num_qubits, noise)
    return devices.DeviceBackend(qc.build_ansatz(circuit, num_qubits, PHI), device, service, **options)


def exact_means(backend, x):
    return np.array([qc.outcome_probabilities(backend.ansatz, row) for row in x]) @ qc.minus_z(x.shape[1])


# --- Placing


@pytest.mark.parametrize(
    ("name", "length", "fewest"), [("FakeBrisbane", 5, 20), ("FakeSherbrooke", 5, 18), ("FakeManilaV2", 2, 2)]
)
def test_lines_are_disjoint_connected_and_many(name, length, fewest):
    device = getattr(fake_provider, name)()
    lines = devices.qubit_lines(device.target, length, 10**6)
    edges = {frozenset(edge) for edge in device.coupling_map.get_edges()}
    assert len(lines) >= fewest
    assert len({qubit for line in lines for qubit in line}) == length * len(lines)
    assert all(frozenset(pair) in edges for line in lines for pair in itertools.pairwise(line))


def test_lines_avoid_faulty_qubits_and_start_with_the_best():
    device = fake_provider.FakeManilaV2()
    device.target["measure"][(2,)].error = 0.9
    assert devices.qubit_lines(device.target, 3, 10) == []  # a line 0-1-2-3-4 without its middle
    pairs = devices.qubit_lines(device.target, 2, 10)
    assert sorted(map(sorted, pairs)) == [[0, 1], [3, 4]]

    def fault(line):
        readout = sum(device.target["measure"][(qubit,)].error for qubit in line)
        return readout + min(device.target["cx"][edge].error for edge in (tuple(line), tuple(line[::-1])))

    assert fault(pairs[0]) < fault(pairs[1])


@pytest.mark.parametrize("circuit", ["graph", "chain"])
def test_every_gate_is_on_a_coupler_of_its_own_line(circuit):
    backend = make_backend("fake:FakeSherbrooke", circuit=circuit, most_lines=18)
    device = fake_provider.FakeSherbrooke()
    assert len(backend.lines) == 18
    for instruction in backend.circuit.data:
        qubits = tuple(backend.circuit.find_bit(qubit).index for qubit in instruction.qubits)
        name = instruction.operation.name
        if name != "barrier":
            assert device.target.instruction_supported(name, qubits), (name, qubits)
            assert sum(set(qubits) <= set(line) for line in backend.lines) == 1


@pytest.mark.parametrize("name", ["fake:FakeManilaV2", "generic:6"])
def test_qubit_k_after_layout_is_still_weight_k(name):
    shots = 4000
    backend = make_backend(name)
    x = np.vstack([np.eye(5), -np.eye(5)])
    measured, _, _ = backend.measure(x, shots, (0, 1, 0))
    assert np.abs(measured - 0.5 * x).max() < 5 / math.sqrt(shots)


# --- Agreement


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_packing_changes_no_result(lines):
    shots = 4000
    backend = make_backend("fake:FakeSherbrooke", 3, most_lines=lines)
    assert len(backend.lines) == lines and backend.circuit.num_clbits == 3 * lines
    x = np.random.default_rng(0).uniform(-1, 1, (7, 3))  # 7 groups: the last row of 2 or 3 copies is not full
    exact = exact_means(backend, x)
    measured, _, _ = backend.measure(x, shots, (0, 1, 0))
    assert np.all(np.abs(measured - exact) < 5 * np.sqrt((1 - exact**2) / shots) + 1 / shots)


def test_device_and_aer_agree_without_noise_through_the_whole_update():
    gradient = torch.randn(60, generator=torch.Generator().manual_seed(3))
    arguments = {"learning_rate": 1.0, "shots": 4000, "seed": (0, 1, 0)}
    device = make_backend()
    on_device, usage = qc.quantum_parameter_update(gradient, device, **arguments)
    assert (usage.entries, usage.circuits, usage.shots) == (60, 12, 48_000)
    on_aer, _ = qc.quantum_parameter_update(gradient, AerBackend(device.ansatz), **arguments)
    scale = gradient.view(-1, 5).abs().amax(1, keepdim=True)
    for update in (on_device, on_aer):
        error = (update - gradient).view(-1, 5) / scale / 2  # R^-1 doubles the noise of a mean at phi = pi / 4
        assert error.abs().max() < 5 / math.sqrt(4000)


def test_noise_biases_and_readout_mitigation_takes_some_of_it_back():
    shots = 4000
    x = np.random.default_rng(1).uniform(-1, 1, (24, 5))
    slopes = {}
    for noise, mitigation in ((False, "none"), (True, "none"), (True, "readout")):
        backend = make_backend(noise=noise, mitigation=mitigation)
        exact = exact_means(backend, x)
        measured, _, _ = backend.measure(x, shots, (0, 1, 0))
        slopes[noise, mitigation] = float((measured * exact).sum() / (exact**2).sum())
    error = 5 / math.sqrt(shots * (exact**2).sum())
    assert abs(slopes[False, "none"] - 1) < error
    assert slopes[True, "none"] < 1 - 2 * error
    assert slopes[True, "none"] + error < slopes[True, "readout"] < 1 + error


def test_mitigation_inverts_readout_errors_alone_exactly():
    backend = make_backend()
    backend.mitigation = "readout"
    backend.assignment = (np.array([0.1, 0.0, 0.05, 0.2, 0.0]), np.array([0.2, 0.0, 0.1, 0.1, 0.3]))
    share = np.random.default_rng(0).uniform(0, 1, (3, 5))  # of ones, before the errors
    seen = backend.assignment[0] + (1 - backend.assignment[0] - backend.assignment[1]) * share
    backend.run = lambda *_: (seen,)
    means, circuits, shots = backend.measure(np.zeros((3, 5)), 10, (0, 1, 0))
    np.testing.assert_allclose(means, 2 * share - 1, atol=1e-12)
    assert (circuits, shots) == (3, 30)


def test_readout_errors_are_those_of_the_circuits_that_prepare_zeros_and_ones():
    """Each qubit reads 1 for 0 and 0 for 1 with chances of its own."""
    backend = make_backend(mitigation="readout")
    false_ones, false_zeros = np.array([0.1, 0.0, 0.05, 0.2, 0.0]), np.array([0.2, 0.0, 0.1, 0.1, 0.3])
    share = np.random.default_rng(0).uniform(0, 1, (3, 5))
    jobs = [(false_ones[None], 1 - false_zeros[None]), (false_ones + (1 - false_ones - false_zeros) * share,)]
    backend.run = lambda *_: jobs.pop(0)
    means, circuits, shots = backend.measure(np.zeros((3, 5)), 10, (0, 1, 0))
    np.testing.assert_allclose(means, 2 * share - 1, atol=1e-12)
    assert (circuits, shots) == (3 + 2, 3 * 10 + 2 * 10 * devices.CALIBRATION_SHOTS)


def test_same_seed_same_bits_and_another_step_other_noise():
    x = np.zeros((4, 5))
    first, again, other = (make_backend().measure(x, 200, (0, step, 0))[0] for step in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_largest_groups_are_the_largest_over_all_tensors():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(7, 5, generator=generator), torch.randn(23, generator=generator), torch.zeros(5)]
    chosen = qc.largest_groups(gradients, 5, 6)
    norms = {
        (which, row): float(group.norm())
        for which, gradient in enumerate(gradients)
        for row, group in enumerate(qc.as_groups(gradient, 5))
    }
    expected = sorted(norms, key=norms.get)[-6:]
    assert [(which, row) for which, rows in enumerate(chosen) for row in rows.tolist()] == sorted(expected)


@pytest.mark.parametrize(
    ("small", "large", "dtype"),
    [(1e-32, 1e-30, torch.float32), (1e38, 3e38, torch.float32), (1e-62, 1e-60, torch.float64)],
)
def test_groups_are_chosen_by_size_at_any_scale(small, large, dtype):
    gradient = torch.full((50,), small, dtype=dtype)
    gradient[45:] = large
    assert [rows.tolist() for rows in qc.largest_groups([gradient], 5, 1)] == [[9]]
    gradient[:45] = 0
    (rows,), (weights,) = qc.sampled_groups([gradient], 5, 1, (0, 1))
    assert rows.tolist() == [9] and weights.tolist() == [1.0]


def test_only_the_chosen_groups_get_an_update():
    gradient = torch.randn(23, generator=torch.Generator().manual_seed(1))
    backend = AerBackend(qc.build_ansatz("graph", 5, PHI), "exact")
    for chosen, entries in (([0, 3], 10), ([1, 4], 8), ([], 0)):  # group 4 holds 3 entries and 2 of padding
        groups = torch.tensor(chosen, dtype=torch.int64)
        update, usage = qc.quantum_parameter_update(
            gradient, backend, learning_rate=1.0, shots=1, seed=(0, 0, 0), groups=groups
        )
        kept = torch.isin(torch.arange(23) // 5, groups)
        torch.testing.assert_close(update, gradient * kept)
        assert (usage.entries, usage.circuits) == (entries, len(chosen))


def test_sampled_groups_are_unbiased_and_the_largest_are_not():
    """With exact means, so that choosing the groups is the only randomness, over two tensors, the tail padded."""
    generator, repeats = torch.Generator().manual_seed(3), 4000
    gradients = {"a": torch.randn(40, generator=generator), "b": 3 * torch.randn(33, generator=generator)}
    gradients["a"][5:10] = 0
    backend = AerBackend(qc.build_ansatz("graph", 5, PHI), "exact")
    flags = ["--backend", "generic:5", "--device_groups", "6", "--device_selection"]

    def updates(selection, step):
        settings = config.load([*flags, selection])
        groups, factors = train.groups_for_device(gradients, settings, step)
        assert sum(map(len, groups)) == 6
        measured = [
            qc.quantum_parameter_update(
                gradient, backend, learning_rate=1.0, shots=1, seed=(0, step, 0), groups=rows, factors=factor
            )[0]
            for gradient, rows, factor in zip(gradients.values(), groups, factors, strict=True)
        ]
        return torch.cat(measured).double().numpy()

    whole = torch.cat(list(gradients.values())).double().numpy()
    sampled = np.array([updates("sampled", step) for step in range(repeats)])
    error = sampled.std(axis=0) / math.sqrt(repeats)
    assert np.all(np.abs(sampled.mean(axis=0) - whole) <= 5 * error + 1e-6) and error.max() > 0
    np.testing.assert_array_equal(updates("sampled", 3), sampled[3])
    largest = updates("largest", 1)
    np.testing.assert_array_equal(updates("largest", 2), largest)  # no randomness at all, so the mean is this
    missed = largest == 0
    assert np.linalg.norm(whole[missed]) > 0.25 * np.linalg.norm(whole)
    np.testing.assert_allclose(largest[~missed], whole[~missed], rtol=1e-5)


def test_a_run_of_sampled_groups_measures_as_many_as_asked_for(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--backend", "fake:FakeManilaV2", "--device_groups", "3", "--shots", "50"]
    assert run_training([*flags, "--device_selection", "sampled"]) == 0
    for row in metric_rows(only_run(tmp_path / "results")):
        if row["loss"]:
            assert 12 / 1024 <= float(row["coverage"]) <= 15 / 1024 and row["allocation_gain"] == ""


def test_every_setting_of_a_circuit_and_of_a_device_reaches_the_engine_of_a_run():
    flags = ["--entangling_angle", "0.3", "--num_qubits", "3"]
    ansatz = qc.build_ansatz("graph", 3, 0.3)
    np.testing.assert_array_equal(train.make_backend(config.load(flags)).ansatz.response, ansatz.response)
    flags += ["--backend", "fake:FakeManilaV2", "--mitigation", "readout"]
    noisy = train.make_backend(config.load([*flags, "--twirling", "measurement", "--dynamical_decoupling", "XX"]))
    np.testing.assert_array_equal(noisy.ansatz.response, ansatz.response)
    assert noisy.mitigation == "readout" and type(noisy.device) is fake_provider.FakeManilaV2
    twirling = {"enable_gates": False, "enable_measure": True}
    assert noisy.options == {"dynamical_decoupling": {"enable": True, "sequence_type": "XX"}, "twirling": twirling}
    plain = train.make_backend(config.load([*flags, "--device_noise", "off"]))
    assert type(plain.device) is AerSimulator and plain.device.options.noise_model is None
    assert not plain.options["dynamical_decoupling"] and not any(plain.options["twirling"].values())


# --- What is counted


@pytest.mark.parametrize("name", ["fake:FakeManilaV2", "generic:4"])
def test_circuits_and_shots_are_those_that_ran(name):
    """8 groups on 2 lines are 4 circuits: not a circuit per group."""
    gradient = torch.randn(16, generator=torch.Generator().manual_seed(2))
    arguments = {"learning_rate": 1.0, "shots": 50}
    backend = make_backend(name, 2, most_lines=2)
    assert len(backend.lines) == 2
    _, usage = qc.quantum_parameter_update(gradient, backend, seed=(0, 1, 0), **arguments)
    assert (usage.entries, usage.circuits, usage.shots) == (16, 4, 200)
    _, usage = qc.quantum_parameter_update(gradient[:13], backend, seed=(0, 1, 1), **arguments)  # 7 groups
    assert (usage.entries, usage.circuits, usage.shots) == (13, 4, 200)
    groups = torch.tensor([1, 2, 6])
    _, usage = qc.quantum_parameter_update(gradient, backend, seed=(0, 1, 2), groups=groups, **arguments)
    assert (usage.entries, usage.circuits, usage.shots) == (6, 2, 100)
    _, usage = qc.quantum_parameter_update(gradient, backend, seed=(0, 1, 3), groups=groups[:0], **arguments)
    assert (usage.entries, usage.circuits, usage.shots) == (0, 0, 0)


@pytest.mark.parametrize("shots", [1, 10, 37, 100])
def test_twirling_takes_no_more_shots_than_asked_for(monkeypatch, shots):
    taken, reach = [], devices.DeviceBackend.reach

    def counting(self, call, job=None):
        result = reach(self, call, job)
        if job:
            taken.append(result[0].data.meas.num_shots)
        return result

    monkeypatch.setattr(devices.DeviceBackend, "reach", counting)
    make_backend(num_qubits=2, most_lines=1, twirling="all").measure(np.zeros((2, 2)), shots, (0, 1, 0))
    assert taken == [shots]


@pytest.mark.parametrize("options", [{"twirling": "all"}, {"twirling": "all", "dynamical_decoupling": "XY4"}])
def test_twirling_and_decoupling_change_no_mean(options):
    x = np.random.default_rng(3).uniform(-1, 1, (6, 3))
    backend = make_backend(num_qubits=3, most_lines=1, **options)
    means, *_ = backend.measure(x, 4000, (0, 1, 0))
    assert np.abs(means - exact_means(backend, x)).max() <= 5 / math.sqrt(4000)


def test_readout_is_mitigated_on_a_device_of_other_gates():
    """FakeBurlingtonV2 has u1, u2 and u3: no X, and parameters in the global phase of what is translated to them."""
    x = np.random.default_rng(4).uniform(-1, 1, (6, 3))
    backend = make_backend("fake:FakeBurlingtonV2", 3, most_lines=1, noise=True, mitigation="readout")
    means, *_ = backend.measure(x, 4000, (0, 1, 0))
    unmitigated, *_ = make_backend("fake:FakeBurlingtonV2", 3, most_lines=1, noise=True).measure(x, 4000, (0, 1, 0))
    exact = exact_means(backend, x)
    assert np.std(means - exact) < np.std(unmitigated - exact)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Properties of fake_nighthawk")
def test_every_fake_runs_the_circuit_or_is_refused_in_a_line():
    names = [name for name in dir(fake_provider) if name.startswith("Fake") and "Provider" not in name]
    assert len(names) > 50
    for name in names:
        try:
            backend = make_backend(f"fake:{name}", 3, most_lines=1)
        except ValueError as error:
            assert re.search("cannot run the circuit|do not fit", str(error)) and "\n" not in str(error)
        else:
            devices.readout_circuits(backend.circuit, backend.device.target)


def test_calibration_circuits_count_in_the_update_that_ran_them():
    gradient = torch.randn(16, generator=torch.Generator().manual_seed(2))
    backend = make_backend("fake:FakeManilaV2", 2, most_lines=2, mitigation="readout", noise=True)
    assert devices.CALIBRATION_SHOTS == 10
    for step, expected in ((1, (16, 4 + 2, (4 + 2 * 10) * 50)), (2, (16, 4, 200)), (3, (16, 4, 200))):
        _, usage = qc.quantum_parameter_update(gradient, backend, learning_rate=1.0, shots=50, seed=(0, step, 0))
        assert (usage.entries, usage.circuits, usage.shots) == expected


def spy_on_jobs(monkeypatch):
    """(step, circuits, shots) of every job that a DeviceBackend submits from now on, from its PUBs themselves."""
    jobs, real = [], devices.DeviceBackend.submit

    def submit(self, pubs, rows, shots, seed, *rest):
        circuits = 0
        for _, *values in pubs:
            circuits += len(next(iter(values[0].values()))) if values else 1
        jobs.append((seed[1], circuits, circuits * shots))
        return real(self, pubs, rows, shots, seed, *rest)

    monkeypatch.setattr(devices.DeviceBackend, "submit", submit)
    return jobs


@pytest.mark.parametrize("mitigation", ["none", "readout"])
def test_metrics_of_a_run_count_what_ran(tiny_flags, tmp_path, monkeypatch, mitigation):
    jobs = spy_on_jobs(monkeypatch)
    selected = ["--attention_layers", "all", "--attention_pattern", r"layer\.0\.attention\.q_lin\.weight"]
    flags = ["--backend", "fake:FakeManilaV2", "--num_qubits", "2", "--device_groups", "8", "--shots", "50"]
    assert run_training([*tiny_flags, *flags, *selected, "--mitigation", mitigation]) == 0
    run = only_run(tmp_path / "results")
    rows = [row for row in metric_rows(run) if row["loss"]]
    calibrations = 2 if mitigation == "readout" else 0
    expected = [(4 + calibrations, (4 + 10 * calibrations) * 50), (4, 200), (4, 200)]
    assert [(int(row["circuits"]), int(row["shots"])) for row in rows] == expected
    submitted = [sum(column) for column in list(zip(*jobs, strict=True))[1:]]
    assert [sum(column) for column in zip(*expected, strict=True)] == submitted
    statistics = read_json(run / "training_statistics.json")
    assert [statistics["circuits"], statistics["shots"]] == submitted
    assert statistics["coverage"] == pytest.approx(16 / 256)


def test_a_run_that_goes_on_counts_its_calibration_once(tiny_flags, tmp_path, monkeypatch):
    device = ["--backend", "fake:FakeManilaV2", "--num_qubits", "2", "--device_groups", "8", "--shots", "50"]
    flags = [*tiny_flags, *device, "--mitigation", "readout", "--results_dir"]
    assert run_training([*flags, tmp_path / "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training([*flags, tmp_path / "cut"]) == 130
    assert run_training(["--resume", only_run(tmp_path / "cut")]) == 0
    assert_same_run(only_run(tmp_path / "whole"), only_run(tmp_path / "cut"))


def test_metrics_of_several_tensors_count_their_jobs_together(tiny_flags, tmp_path, monkeypatch):
    jobs = spy_on_jobs(monkeypatch)
    flags = ["--backend", "fake:FakeManilaV2", "--num_qubits", "2", "--device_groups", "9", "--shots", "50"]
    assert run_training([*tiny_flags, *flags]) == 0
    for row in metric_rows(only_run(tmp_path / "results")):
        if row["loss"]:
            ran = [job for job in jobs if job[0] == int(row["step"])]
            assert (int(row["circuits"]), int(row["shots"])) == tuple(map(sum, list(zip(*ran, strict=True))[1:]))
            assert int(row["circuits"]) < 9


# --- Jobs


class Service:
    """A service whose jobs do what a script says: `outcomes` are raised by result(), one a call, before it succeeds."""

    def __init__(self, monkeypatch, outcomes=(), seconds=2.0):
        self.stored, self.outcomes, self.seconds, self.lost_replies = {}, list(outcomes), seconds, 0
        self.options = []
        service, local = self, LocalSampler

        class Job:
            def __init__(self, inner, tags):
                self.inner, self.tags, self.name = inner, tags, f"job-{len(service.stored)}"

            def job_id(self):
                return self.name

            def result(self):
                if service.outcomes and (outcome := service.outcomes.pop(0)) is not None:
                    raise outcome
                return self.inner.result()

            def usage(self):
                return service.seconds

        class Sampler:
            def __init__(self, mode, options):
                self.tags = options["environment"]["job_tags"]
                service.options.append(options)
                self.local = local(mode=mode, options={"simulator": {"seed_simulator": 5}})

            def run(self, pubs, shots):
                job = Job(self.local.run(pubs, shots=shots), self.tags)
                service.stored[job.job_id()] = job
                if service.lost_replies:
                    service.lost_replies -= 1
                    raise ConnectionError("the reply was lost")
                return job

        monkeypatch.setattr(executor_sampler, "Sampler", Sampler)

    def job(self, job_id):
        if job_id not in self.stored:
            raise RuntimeJobNotFound("no such job")
        return self.stored[job_id]

    def jobs(self, limit, job_tags):
        return [job for job in self.stored.values() if set(job_tags) <= set(job.tags)][:limit]

    def backend(self, path, **options):
        device, _ = devices.open_device("fake:FakeManilaV2", 5, noise=False)
        ansatz = qc.build_ansatz("graph", 5, PHI)
        return devices.DeviceBackend(
            ansatz, device, self, journal=devices.Journal(path), tags=["run_x"], most_lines=1, **options
        )


def journal_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


THETA = np.zeros((2, 5))


def test_a_job_is_on_the_disk_before_it_is_waited_for(monkeypatch, tmp_path):
    path = tmp_path / "jobs.jsonl"
    service = Service(monkeypatch, [KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        service.backend(path).measure(THETA, 100, (0, 3, 1))
    (line,) = journal_lines(path)
    assert (line["job"], line["status"], line["step"], line["tensor"]) == ("job-0", "submitted", 3, 1)
    assert line["tags"][0] == "run_x" and len(line["angles_sha256"]) == 64


def test_a_run_started_again_fetches_its_job(monkeypatch, tmp_path):
    path = tmp_path / "jobs.jsonl"
    service = Service(monkeypatch, [KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        service.backend(path).measure(THETA, 100, (0, 3, 1))
    means, _, _ = service.backend(path).measure(THETA, 100, (0, 3, 1))  # another process: all it has is the file
    assert len(service.stored) == 1 and means.shape == (2, 5)
    service.backend(path).measure(THETA, 100, (0, 3, 1))  # finished: its result is fetched again, not paid again
    assert len(service.stored) == 1
    service.backend(path).measure(THETA + 0.1, 100, (0, 3, 1))  # other angles, other work
    assert len(service.stored) == 2


def test_a_job_submitted_just_before_a_kill_is_found_by_its_tags(monkeypatch, tmp_path):
    service = Service(monkeypatch, [KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        service.backend(tmp_path / "jobs.jsonl").measure(THETA, 100, (0, 3, 1))
    (tmp_path / "jobs.jsonl").unlink()
    service.backend(tmp_path / "jobs.jsonl").measure(THETA, 100, (0, 3, 1))
    assert len(service.stored) == 1
    found, done = journal_lines(tmp_path / "jobs.jsonl")
    assert found["job"] == done["job"] == "job-0"
    assert found["expected"] == pytest.approx(devices.JOB_SECONDS + 200 * devices.SHOT_SECONDS)  # until it is charged


def test_lost_connections_are_waited_out_without_submitting_again(monkeypatch, tmp_path, waits, capsys):
    lost = [ConnectionError("reset"), IBMRuntimeError("502"), TimeoutError("slow"), RequestsApiError("gone", 503)]
    lost += [RequestsApiError("too many", 429), RequestsApiError("timeout", 408)]
    service = Service(monkeypatch, lost)
    service.backend(tmp_path / "jobs.jsonl").measure(THETA, 100, (0, 1, 0))
    assert len(service.stored) == 1 and waits == [0, 1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("out of reach, trying again") == 6


@pytest.mark.parametrize(
    "refusal",
    [
        RuntimeInvalidStateError("was cancelled"),
        RuntimeJobMaxTimeoutError("over its time"),
        IBMNotAuthorizedError("401"),
        RequestsApiError("bad request", 400),
    ],
)
def test_what_would_not_get_better_ends_at_once(monkeypatch, tmp_path, waits, refusal):
    service = Service(monkeypatch, [refusal] * 9)
    with pytest.raises(devices.DeviceError):
        service.backend(tmp_path / "jobs.jsonl").measure(THETA, 100, (0, 1, 0))
    assert len(service.stored) == 1 and waits == []


@pytest.mark.parametrize("end", [RuntimeInvalidStateError("was cancelled"), RuntimeJobMaxTimeoutError("its time")])
def test_the_run_after_a_cancelled_job_submits_another(monkeypatch, tmp_path, end):
    path = tmp_path / "jobs.jsonl"
    service = Service(monkeypatch, [end])
    with pytest.raises(devices.DeviceError, match="job job-0 ended: "):
        service.backend(path).measure(THETA, 100, (0, 1, 0))
    service.stored["job-0"].result = None  # never asked again
    service.backend(path).measure(THETA, 100, (0, 1, 0))
    assert [line["status"] for line in journal_lines(path)] == ["submitted", "failed", "submitted", "done"]


def test_a_job_that_ran_on_other_qubits_is_not_taken(monkeypatch, tmp_path):
    """A device calibrated anew may get other lines, and readout is corrected for those."""
    path = tmp_path / "jobs.jsonl"
    service = Service(monkeypatch)
    service.backend(path).measure(THETA, 100, (0, 1, 0))
    other = service.backend(path)
    other.lines = [line[::-1] for line in other.lines]
    other.measure(THETA, 100, (0, 1, 0))
    assert len(service.stored) == 2


def test_a_job_that_the_service_no_longer_has_is_submitted_again(monkeypatch, tmp_path):
    path = tmp_path / "jobs.jsonl"
    service = Service(monkeypatch)
    service.backend(path).measure(THETA, 100, (0, 1, 0))
    service.stored["gone"] = service.stored.pop("job-0")
    service.stored["gone"].tags = []
    service.backend(path).measure(THETA, 100, (0, 1, 0))
    assert len(service.stored) == 2


def test_a_token_across_the_cut_of_a_long_message_does_not_leak(monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", SECRET)
    assert SECRET[:8] not in devices.without_secrets(ValueError("x" * 290 + SECRET))


def test_the_token_of_a_saved_account_does_not_leak(monkeypatch):
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    accounts = {"mine": {"token": SECRET}, "other": {}}
    monkeypatch.setattr(qiskit_ibm_runtime.QiskitRuntimeService, "saved_accounts", lambda: accounts)
    assert devices.without_secrets(ValueError(f"401 for {SECRET}")) == "401 for ***"


def test_a_submission_whose_reply_is_lost_is_not_made_twice(monkeypatch, tmp_path, waits):
    service = Service(monkeypatch)
    service.lost_replies = 1
    service.backend(tmp_path / "jobs.jsonl").measure(THETA, 100, (0, 1, 0))
    assert len(service.stored) == 1 and waits == [0]


def test_a_service_gone_for_good_ends_in_one_line_that_names_the_job(monkeypatch, tmp_path, waits):
    service = Service(monkeypatch, [ConnectionError(f"refused {SECRET}")] * 100)
    monkeypatch.setenv("QISKIT_IBM_TOKEN", SECRET)
    with pytest.raises(devices.DeviceError, match=r"out of reach: refused \*\*\*; job job-0 is kept"):
        service.backend(tmp_path / "jobs.jsonl").measure(THETA, 100, (0, 1, 0))
    assert len(waits) == devices.NETWORK_ATTEMPTS - 1


def test_a_failed_job_is_submitted_again_a_bounded_number_of_times(monkeypatch, tmp_path, waits):
    service = Service(monkeypatch, [RuntimeJobFailureError("calibration"), None])
    service.backend(tmp_path / "a.jsonl").measure(THETA, 100, (0, 1, 0))
    assert len(service.stored) == 2 and waits == [0]
    assert [line["status"] for line in journal_lines(tmp_path / "a.jsonl")] == [
        "submitted",
        "failed",
        "submitted",
        "done",
    ]

    service = Service(monkeypatch, [RuntimeJobFailureError("calibration")] * 9)
    with pytest.raises(devices.DeviceError, match="job job-2 failed, the last of 3 tries: 'calibration'"):
        service.backend(tmp_path / "b.jsonl").measure(THETA, 100, (0, 1, 0))
    assert len(service.stored) == 3


def test_quota_is_counted_from_the_jobs_and_survives_a_restart(monkeypatch, tmp_path):
    path = tmp_path / "jobs.jsonl"
    service = Service(monkeypatch, seconds=5.0)
    backend = service.backend(path, max_seconds=12)
    backend.measure(THETA, 100, (0, 1, 0))
    assert backend.journal.seconds == 5.0
    again = service.backend(path, max_seconds=12)
    again.measure(THETA, 100, (0, 1, 0))  # fetched, not charged twice
    again.measure(THETA, 100, (0, 2, 0))
    with pytest.raises(devices.QuotaReached, match="10 s of QPU time are used and the next job takes about 3 s"):
        again.measure(THETA, 100, (0, 3, 0))
    assert len(service.stored) == 2


def test_a_journal_cut_short_is_read_up_to_there(tmp_path):
    path = tmp_path / "jobs.jsonl"
    key = {"step": 1, "tensor": 0, "angles_sha256": "ab", "shots": 10}
    devices.Journal(path).add({"job": "j1", "status": "done", "seconds": 3.0, **key})
    path.write_text(path.read_text() + '{"job": "j2", "sta')
    journal = devices.Journal(path)
    assert journal.seconds == 3.0 and journal.known[devices.tag_of(key)] == "j1"
    journal.add({"job": "j3", "status": "done", "seconds": 4.0, **key, "step": 2})
    assert devices.Journal(path).seconds == 7.0


def test_a_job_whose_usage_is_not_known_counts_as_expected(monkeypatch, tmp_path):
    service = Service(monkeypatch, seconds=0.0)
    backend = service.backend(tmp_path / "jobs.jsonl", max_seconds=100)
    backend.measure(THETA, 100, (0, 1, 0))
    assert backend.journal.seconds == pytest.approx(backend.expected_seconds(200))


def test_a_job_may_take_no_longer_than_what_is_left_and_is_sent_its_options(monkeypatch, tmp_path):
    service = Service(monkeypatch, seconds=50.0)
    options = {"twirling": "gates", "dynamical_decoupling": "XpXm"}
    backend = service.backend(tmp_path / "jobs.jsonl", max_seconds=100, **options)
    for step in (1, 2):
        backend.measure(THETA, 100, (0, step, 0))
    assert [options["max_execution_time"] for options in service.options] == [60, 50]
    sent = service.options[0]
    assert sent["dynamical_decoupling"] == {"enable": True, "sequence_type": "XpXm"}
    twirling = {"enable_gates": True, "enable_measure": False, "num_randomizations": 25, "shots_per_randomization": 4}
    assert sent["twirling"] == twirling


def test_a_plan_beyond_what_a_job_may_have_is_refused(monkeypatch, tmp_path):
    service = Service(monkeypatch)
    backend = service.backend(tmp_path / "jobs.jsonl")
    most = 10 * len(backend.lines)
    assert backend.plan([10**6], groups=most, steps=1, shots=10**6)["shots"] == 10**7
    assert backend.plan([most] * 4, groups=10**6, steps=1, shots=10**6)["shots"] == 4 * 10**7  # four jobs
    assert backend.plan([4], groups=most + 1, steps=1, shots=10**6)["shots"] == 4 * 10**6  # there are no more
    with pytest.raises(
        ValueError, match=f"DEVICE_GROUPS = {most + 1} with SHOTS = 1000000: a job has 10,000,000 shots"
    ):
        backend.plan([10**6], groups=most + 1, steps=1, shots=10**6)
    mitigated = service.backend(tmp_path / "jobs.jsonl", mitigation="readout")
    with pytest.raises(ValueError, match="without MITIGATION"):
        mitigated.plan([1], groups=1, steps=1, shots=10**6)


def test_the_plan_counts_at_most_what_is_submitted(monkeypatch, tmp_path):
    service = Service(monkeypatch)
    backend = service.backend(tmp_path / "jobs.jsonl", mitigation="readout")
    plan = backend.plan([10, 10], groups=5, steps=3, shots=100)
    for step in range(3):
        for tensor, groups in ((0, 4), (1, 1)):
            backend.measure(np.zeros((groups, 5)), 100, (0, step + 1, tensor))
    assert len(service.stored) == plan["jobs"] == 7
    assert plan["circuits"] >= 3 * 5 + 2 and plan["seconds"] > 7 * devices.JOB_SECONDS


@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("sizes", [[4], [10, 10], [2, 9, 4]])
def test_the_plan_holds_for_every_way_to_choose_the_groups(monkeypatch, tmp_path, lines, sizes):
    backend = Service(monkeypatch).backend(tmp_path / "jobs.jsonl")
    backend.lines = [[0]] * lines
    for groups in range(1, sum(sizes) + 1):
        plan = backend.plan(sizes, groups, steps=1, shots=1)
        choices = [c for c in itertools.product(*(range(size + 1) for size in sizes)) if sum(c) == groups]
        most = max(sum(math.ceil(part / lines) for part in choice) for choice in choices)
        assert most <= plan["circuits"] < most + len(sizes)
        assert plan["jobs"] == max(sum(part > 0 for part in choice) for choice in choices)


def test_the_costs_of_a_step_in_the_document_are_those_of_the_plan(monkeypatch, tmp_path):
    document = (ROOT / "docs" / "HARDWARE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+), (\d+)[^|]*\| (\d+) \| (\d+) \| ([\d,]+) \| ([\d.]+) \|$", document, re.MULTILINE)
    backend = Service(monkeypatch).backend(tmp_path / "jobs.jsonl")
    backend.lines = [[0]] * 20
    assert len(rows) == 3
    for groups, shots, *expected in rows:
        plan = backend.plan([math.ceil(768 * 768 / 5)] * 4, int(groups), steps=1, shots=int(shots))
        assert expected == [str(plan["jobs"]), str(plan["circuits"]), f"{plan['shots']:,}", f"{plan['seconds']:.1f}"]


def test_a_shot_takes_at_least_as_long_as_the_device_waits_between_two():
    device, ansatz = fake_provider.FakeManilaV2(), qc.build_ansatz("graph", 5, PHI)
    for delay, each in ((1e-3, 1e-3), (1e-4, devices.SHOT_SECONDS), (None, devices.SHOT_SECONDS)):
        device.default_rep_delay = delay
        backend = devices.DeviceBackend(ansatz, device, service=object())
        assert backend.expected_seconds(1000, jobs=2) == pytest.approx(2 * devices.JOB_SECONDS + 1000 * each)


@pytest.mark.parametrize(
    ("numels", "num_qubits", "shots", "lines", "expected"),
    [
        ([100], 5, 10, 1, (1, 20, 3 + 20 * 10 * 3e-4)),
        ([100, 1], 5, 10, 20, (2, 2, 2 * 3 + 2 * 10 * 3e-4)),  # a job for each weight
        ([101], 1, 10**6, 1, (11, 101, 11 * 3 + 101 * 10**6 * 3e-4)),  # ten circuits fill a job
        ([4], 1, 6 * 10**6, 1, (4, 4, 4 * 3 + 24 * 10**6 * 3e-4)),  # two circuits would be too many for one
        ([768 * 768] * 4, 5, 1000, 20, (4, 23_596, 12 + 23_596 * 0.3)),  # 5.9 million executions each
    ],
)
def test_a_full_step_keeps_the_limits_of_a_job(numels, num_qubits, shots, lines, expected):
    jobs, circuits, seconds = summary.full_step(numels, num_qubits, shots, lines)
    assert (jobs, circuits, pytest.approx(seconds)) == expected


def test_the_table_of_full_steps_is_the_one_of_the_document():
    document = (ROOT / "docs" / "HARDWARE.md").read_text(encoding="utf-8")
    for row in summary.full_step_table([768 * 768] * 4)[2:]:
        assert "| " + " | ".join(re.split(r"  +", row.strip())) + " |" in document


# --- Whole runs


def test_a_run_on_a_fake_records_coverage_and_jobs(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--backend", "fake:FakeManilaV2", "--device_groups", "3", "--shots", "200"]
    assert run_training(flags) == 0
    run = only_run(tmp_path / "results")
    statistics = read_json(run / "training_statistics.json")
    assert statistics["circuits"] == 9 and statistics["coverage"] == pytest.approx(15 / 1024, abs=2 / 1024)
    assert read_json(run / "environment.json")["backend"] == "fake_manila"
    assert {line["status"] for line in journal_lines(run / "jobs.jsonl")} == {"submitted", "done"}


def test_dry_run_prints_the_plan_and_submits_nothing(tiny_flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(devices.DeviceBackend, "submit", None)
    assert run_training([*tiny_flags, "--backend", "fake:FakeManilaV2", "--dry_run", "yes"]) == 0
    said = capsys.readouterr().out
    assert "plan:    at most 12 jobs, 105 circuits, 105,000 shots" in said
    table = said.partition("QPU time of a step that measures all 1,024 weights")[2].splitlines()
    assert [line.split()[0] for line in table[1:]] == ["qubits", "1", "2", "3", "4", "5"]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("flags", [["--dry_run", "yes"], ["--device_groups", "8"], ["--max_qpu_seconds", "60"]])
def test_flags_for_devices_are_refused_where_a_resumed_run_has_none(tiny_flags, tmp_path, monkeypatch, flags):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training(tiny_flags) == 130
    run = only_run(tmp_path / "results")
    with pytest.raises(ValueError, match=f"{flags[0][2:].upper()} = .* with BACKEND = 'aer': must be left out"):
        run_training(["--resume", run, *flags])
    assert read_json(run / "training_statistics.json")["status"] == "interrupted"


def test_what_a_resumed_run_would_take_of_its_device_is_shown(tiny_flags, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_training([*tiny_flags, "--backend", "fake:FakeManilaV2", "--device_groups", "4"]) == 130
    run = only_run(tmp_path / "results")
    capsys.readouterr()
    assert run_training(["--resume", run, "--dry_run", "yes"]) == 0
    assert "plan:    at most 12 jobs" in capsys.readouterr().out
    assert read_json(run / "training_statistics.json")["status"] == "interrupted"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["fake:FakeManilla"], "no such fake device; near are FakeManila"),
        (["generic:4"], "'generic:4' has 4 qubits: NUM_QUBITS = 5 do not fit"),
        (["ibm"], "MAX_QPU_SECONDS = 0 with BACKEND = 'ibm': real hardware needs a limit"),
        (["fake:FakeManilaV2", "--update_rule", "exact"], "must be quantum, or one without circuits; devices measure"),
        (["ibmq"], "BACKEND = 'ibmq': must be one of aer, ibm"),
        (["ibm:x", "--max_qpu_seconds", "60"], "BACKEND = 'ibm:x': .*save an account"),
    ],
)
def test_what_cannot_run_is_refused(tiny_flags, tmp_path, monkeypatch, flags, message):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "qiskit_ibm_runtime.accounts.management._DEFAULT_ACCOUNT_CONFIG_JSON_FILE", str(tmp_path / "no")
    )
    with pytest.raises(ValueError, match=message):
        run_training([*tiny_flags, "--backend", *flags])
    assert not (tmp_path / "results").exists()


def test_more_than_the_quota_is_refused_before_anything_is_submitted(tiny_flags, tmp_path, monkeypatch):
    service = Service(monkeypatch)
    monkeypatch.setattr(devices, "open_ibm", lambda *_: (fake_provider.FakeManilaV2(), service))
    flags = [*tiny_flags, "--backend", "ibm:x", "--device_groups", "4", "--shots", "100"]
    with pytest.raises(ValueError, match="MAX_QPU_SECONDS = 20: the plan takes about"):
        run_training([*flags, "--max_qpu_seconds", "20"])
    assert not service.stored and not (tmp_path / "results").exists()
    assert run_training([*flags, "--max_qpu_seconds", "100"]) == 0
    run = only_run(tmp_path / "results")
    done = [line for line in journal_lines(run / "jobs.jsonl") if line["status"] == "done"]
    assert len(done) == len(service.stored) and all(run.name in job.tags for job in service.stored.values())


def test_the_least_busy_device_that_fits_is_taken_and_named_for_a_run_that_goes_on(tiny_flags, tmp_path, monkeypatch):
    service, device, asked = Service(monkeypatch), fake_provider.FakeManilaV2(), {}
    service.least_busy = lambda **filters: asked.update(filters) or device
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", lambda: service)
    flags = ["--backend", "ibm", "--device_groups", "1", "--shots", "10", "--max_qpu_seconds", "100"]
    assert run_training([*tiny_flags, *flags]) == 0
    assert asked == {"operational": True, "simulator": False, "min_num_qubits": 5}
    assert read_json(only_run(tmp_path / "results") / "config.json")["backend"] == "ibm:fake_manila"


def test_a_run_interrupted_in_the_queue_goes_on_with_the_same_job(tiny_flags, tmp_path, monkeypatch):
    service = Service(monkeypatch, [None, None, KeyboardInterrupt()])
    monkeypatch.setattr(devices, "open_ibm", lambda *_: (fake_provider.FakeManilaV2(), service))
    flags = [*tiny_flags, "--backend", "ibm:x", "--device_groups", "4", "--shots", "100", "--max_qpu_seconds", "100"]
    assert run_training(flags) == 130
    run = only_run(tmp_path / "results")
    assert len(service.stored) == 3 and not (run / "model").exists()
    assert run_training(["--resume", str(run)]) == 0
    lines = journal_lines(run / "jobs.jsonl")
    submitted = [line["job"] for line in lines if line["status"] == "submitted"]
    assert len(submitted) == len(set(submitted)) == len(service.stored)
    assert [line["status"] for line in lines if line["job"] == "job-2"] == ["submitted", "done"]


def test_a_service_that_stays_away_ends_a_run_in_one_line_and_resume_goes_on(
    tiny_flags, tmp_path, monkeypatch, capsys, waits
):
    away = [ConnectionError("refused")] * devices.NETWORK_ATTEMPTS
    service = Service(monkeypatch, [*[None] * 5, *away])
    monkeypatch.setattr(devices, "open_ibm", lambda *_: (fake_provider.FakeManilaV2(), service))
    flags = [*tiny_flags, "--backend", "ibm:x", "--device_groups", "4", "--shots", "100", "--max_qpu_seconds", "100"]
    assert run_training(flags) == 1
    run = only_run(tmp_path / "results")
    assert "out of reach: refused; job job-5 is kept" in one_error(capsys.readouterr().err)
    assert read_json(run / "training_statistics.json")["status"] == "failed"
    assert run_training(["--resume", str(run)]) == 0 and len(waits) == devices.NETWORK_ATTEMPTS - 1
    lines = journal_lines(run / "jobs.jsonl")
    assert [line["status"] for line in lines if line["job"] == "job-5"] == ["submitted", "done"]


def test_a_spent_quota_stops_cleanly_and_leaves_a_checkpoint(tiny_flags, tmp_path, monkeypatch, capsys):
    service = Service(monkeypatch, seconds=40.0)  # more than the plan said
    monkeypatch.setattr(devices, "open_ibm", lambda *_: (fake_provider.FakeManilaV2(), service))
    flags = [*tiny_flags, "--backend", "ibm:x", "--device_groups", "1", "--shots", "100", "--max_qpu_seconds", "60"]
    assert run_training(flags) == 130
    run = only_run(tmp_path / "results")
    assert read_json(run / "training_statistics.json")["status"] == "interrupted"
    assert "80 s of QPU time are used" in capsys.readouterr().err and len(service.stored) == 2
    assert (run / "checkpoint" / "step_00000002" / "sha256.json").exists()


def test_no_token_reaches_files_output_or_errors(tiny_flags, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise IBMRuntimeError(f"401 for token {SECRET}")

    monkeypatch.setenv("QISKIT_IBM_TOKEN", SECRET)
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", fail)
    with pytest.raises(ValueError, match=r"401 for token \*\*\*") as caught:
        run_training([*tiny_flags, "--backend", "ibm", "--max_qpu_seconds", "60"])
    assert SECRET not in repr(caught.value) and caught.value.__suppress_context__

    flags = [*tiny_flags, "--backend", "fake:FakeManilaV2", "--device_groups", "2", "--shots", "50"]
    status, out, err = run_script("train.py", *flags, QISKIT_IBM_TOKEN=SECRET)
    assert status == 0 and SECRET not in out + err + capsys.readouterr().err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
