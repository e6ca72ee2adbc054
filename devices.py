"""Devices: the circuits on IBM hardware, or on fakes of it, through the current Sampler of qiskit-ibm-runtime.

`fake:NAME` and `generic:N` simulate a device with its noise; `ibm` and `ibm:NAME` are real. One code path serves all:
the circuit is routed onto a line of qubits once, as many copies as fit are placed side by side on good disjoint lines,
and the angles of every step are bound by one broadcast PUB. Jobs are written down before they are waited for, so that
a run that is started again fetches them instead of paying twice.
"""

import contextlib
import difflib
import hashlib
import json
import math
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap, TranspilerError, generate_preset_pass_manager
from qiskit_aer import AerSimulator

TRANSPILER_SEED = 0
# Qubits that a simulated device may use at once, but for a single group: with noise the cost doubles with each.
SIMULATED_QUBITS = 8
# Partial lines kept while searching: enough that a larger number finds the same lines on a 127-qubit lattice.
BEAM = 64
# An edge or a readout that fails this often is not used.
WORST_ERROR = 0.5
# Tries of a job that fails, and tries to reach the service, with waits of 1, 2, 4, ... 60 seconds between.
JOB_ATTEMPTS, NETWORK_ATTEMPTS = 3, 30
# Shots of a circuit that measures readout errors, for each shot of one that measures gradients.
CALIBRATION_SHOTS = 10
# The most shots of all circuits together that a job may have.
EXECUTIONS_PER_JOB = 10**7
# For the estimate, seconds: what a job takes besides its shots, and a shot at least.
JOB_SECONDS, SHOT_SECONDS = 3.0, 300e-6


class DeviceError(ConnectionError):
    """The device or its service cannot go on; the message is one line without secrets."""


class QuotaReached(Exception):
    """The next job would exceed MAX_QPU_SECONDS."""


# --- Finding a device -------------------------------------------------------------------------------------------------


def open_device(name, num_qubits, noise=True):
    """(device, service) for BACKEND = name; service is None where the device is simulated.

    noise=False simulates without noise on the same qubits and gates. Raises ValueError, in one line, where there is no
    such device, no account, or too few qubits; nothing is ever put in its place.
    """
    kind, _, which = name.partition(":")
    service = None
    if kind == "ibm":
        if not noise:
            raise ValueError(f"DEVICE_NOISE = 'off' with BACKEND = {name!r}: must be 'on' for a real device")
        device, service = open_ibm(name, which, num_qubits)
    elif kind == "generic":
        device = GenericBackendV2(int(which), seed=TRANSPILER_SEED)
    else:
        from qiskit_ibm_runtime import fake_provider

        fakes = [fake for fake in dir(fake_provider) if fake.startswith("Fake") and "Provider" not in fake]
        if which not in fakes:
            near = difflib.get_close_matches(which, fakes, 3, 0.5)
            raise ValueError(
                f"BACKEND = {name!r}: no such fake device{'; near are ' + ', '.join(near) if near else ''}"
            )
        device = getattr(fake_provider, which)()
    if device.num_qubits < num_qubits:
        raise ValueError(f"BACKEND = {name!r} has {device.num_qubits} qubits: NUM_QUBITS = {num_qubits} do not fit")
    if not noise:
        device = AerSimulator.from_backend(device, noise_model=None)
    return device, service


def open_ibm(name, which, num_qubits):
    """(device, service) of IBM Quantum, with the saved account or the one of the environment."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    try:
        service = QiskitRuntimeService()
        if which:
            return service.backend(which), service
        return service.least_busy(operational=True, simulator=False, min_num_qubits=num_qubits), service
    except Exception as error:  # whatever it is, the user gets one line and nothing has been submitted
        hint = ""
        if type(error).__name__ in ("AccountNotFoundError", "InvalidAccountError"):
            hint = "; save an account with QiskitRuntimeService.save_account(...) or set QISKIT_IBM_TOKEN"
        raise ValueError(f"BACKEND = {name!r}: {without_secrets(error)}{hint}") from None


def without_secrets(error):
    """The message of an error in one line, with every token known to this process taken out."""
    text = " ".join(str(error).split()) or type(error).__name__
    secrets = [value for key, value in os.environ.items() if "TOKEN" in key and "IBM" in key]
    with contextlib.suppress(Exception):  # an unreadable account file has no token to protect
        from qiskit_ibm_runtime import QiskitRuntimeService

        secrets += [account.get("token") for account in QiskitRuntimeService.saved_accounts().values()]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text[:300]


# --- Placing circuits -------------------------------------------------------------------------------------------------


def qubit_lines(target, length, most):
    """Up to `most` disjoint lines of `length` connected qubits, the least faulty first: a list of lists of int.

    The fault of a line is -log of the chance that each of its couplers and readouts works once. Greedy: the best line
    is taken, then the best of what is left; where that makes fewer than `most`, lines are cut from the corners of the
    device inwards instead, which leaves fewer gaps.
    """
    readout = {qubit: fault for (qubit,), fault in gate_faults(target, "measure").items()}
    couplers = {}
    for gate in target.operation_names:
        for qubits, fault in gate_faults(target, gate).items():
            if len(qubits) == 2:
                for edge in (qubits, qubits[::-1]):  # a gate serves both directions, at the price of single-qubit gates
                    couplers[edge] = min(fault, couplers.get(edge, math.inf))
    neighbours = {qubit: [b for a, b in couplers if a == qubit and b in readout] for qubit in readout}

    def best_line(starts, free):
        """(fault, line) of the best line that begins at one of the starts, None where there is none."""
        beam = sorted((readout[qubit], [qubit]) for qubit in starts)
        for _ in range(length - 1):
            longer = [
                (fault + couplers[line[-1], qubit] + readout[qubit], [*line, qubit])
                for fault, line in beam
                for qubit in neighbours[line[-1]]
                if qubit in free and qubit not in line
            ]
            beam = sorted(longer)[: BEAM * len(readout)]
        return beam[0] if beam else None

    def pack(corners):
        free, lines = set(readout), []
        while free and len(lines) < most:
            corner = min(free, key=lambda qubit: (len(free.intersection(neighbours[qubit])), readout[qubit]))
            line = best_line([corner] if corners else free, free)
            if line:
                lines.append(line)
            elif not corners:
                break
            free -= set(line[1]) if line else {corner}
        return [line for _, line in sorted(lines)]

    best_first = pack(corners=False)
    return best_first if len(best_first) == most else max(best_first, pack(corners=True), key=len)


def gate_faults(target, gate):
    """-log(1 - error) of a gate by qubits; without those that fail more often than WORST_ERROR. No error given is 0."""
    faults = {}
    for qubits, properties in (target[gate] or {}).items():
        error = getattr(properties, "error", None) or 0.0
        if qubits is not None and error < WORST_ERROR:
            faults[tuple(qubits)] = -math.log1p(-error)
    return faults


def place(ansatz, device, lines):
    """(ISA circuit, angles): a copy of the ansatz on every line, measured; angles is a ParameterVector, copy by copy.

    Classical bit j * n + k reads weight k of copy j, wherever routing has put its qubit. Raises ValueError where the
    device cannot run the circuit.
    """
    n = ansatz.circuit.num_qubits
    one = ansatz.circuit.copy()
    one.add_register(ClassicalRegister(n, "meas"))
    one.barrier()
    one.measure(range(n), range(n))
    on_a_line = generate_preset_pass_manager(
        optimization_level=3,
        coupling_map=CouplingMap.from_line(n) if n > 1 else None,
        basis_gates=["cx", "rz", "sx", "x"],
        seed_transpiler=TRANSPILER_SEED,
    ).run(one)
    angles = ParameterVector("θ", n * len(lines))
    packed = QuantumCircuit(device.num_qubits)
    packed.add_register(ClassicalRegister(n * len(lines), "meas"))
    for copy, line in enumerate(lines):
        bits = range(copy * n, (copy + 1) * n)
        bound = on_a_line.assign_parameters({ansatz.angles: [angles[bit] for bit in bits]})
        packed.compose(bound, qubits=line, clbits=bits, inplace=True)
    try:
        return translate(packed, device.target), angles
    except TranspilerError as error:
        raise ValueError(f"BACKEND {device.name} cannot run the circuit: {without_secrets(error)}") from None


def translate(circuits, target):
    """Circuits on the device's qubits, one or a list, with the gates of its target."""
    return generate_preset_pass_manager(
        optimization_level=1,
        target=target,
        initial_layout=list(range(target.num_qubits)),
        routing_method="none",  # every gate is on a coupler already: one that is not is an error, not a detour
        seed_transpiler=TRANSPILER_SEED,
    ).run(circuits)


def readout_circuits(isa, target):
    """Two circuits that prepare all zeros and all ones on the qubits that isa measures, read into the same bits."""
    measures = [instruction for instruction in isa.data if instruction.operation.name == "measure"]
    zeros, ones = (QuantumCircuit(*isa.qregs, *isa.cregs) for _ in range(2))
    ones.x([instruction.qubits[0] for instruction in measures])
    for circuit in (zeros, ones):
        circuit.barrier()
        for instruction in measures:
            circuit.append(instruction)
    return translate([zeros, ones], target)


# --- The engine -------------------------------------------------------------------------------------------------------


class DeviceBackend:
    """Measures groups on a device. Unlike AerBackend it has noise, and a circuit holds a group on every line.

    ansatz: Ansatz.  device, service: from open_device.  journal: Journal of the run's jobs.  mitigation: "none", or
    "readout": means are corrected by each qubit's measured assignment matrix.  dynamical_decoupling: "off" or a
    sequence name.  twirling: "off", "gates", "measurement" or "all".  tags: text put on every job.  max_seconds: of QPU
    time, math.inf for simulated devices.  most_lines: copies side by side; None is as many as fit.
    """

    block = 10**9  # all groups of a tensor in one job
    draws_shots = True

    def __init__(
        self,
        ansatz,
        device,
        service=None,
        *,
        journal=None,
        mitigation="none",
        dynamical_decoupling="off",
        twirling="off",
        tags=(),
        max_seconds=math.inf,
        most_lines=None,
    ):
        self.ansatz, self.device, self.service = ansatz, device, service
        self.name = device.name
        self.journal = journal or Journal()
        self.mitigation, self.tags, self.max_seconds = mitigation, list(tags), max_seconds
        decoupling = {"enable": True, "sequence_type": dynamical_decoupling} if dynamical_decoupling != "off" else {}
        self.options = {
            "dynamical_decoupling": decoupling,
            "twirling": {
                "enable_gates": twirling in ("gates", "all"),
                "enable_measure": twirling in ("measurement", "all"),
            },
        }
        n = ansatz.circuit.num_qubits
        fitting = device.num_qubits // n if service else max(1, SIMULATED_QUBITS // n)
        self.lines = qubit_lines(device.target, n, min(most_lines or fitting, device.num_qubits // n))
        if not self.lines:
            raise ValueError(
                f"BACKEND {self.name}: no line of {n} connected working qubits, NUM_QUBITS = {n} do not fit"
            )
        self.circuit, self.angles = place(ansatz, device, self.lines)
        self.assignment = None
        # Of QPU time, an estimate: the device's delay between shots leaves out the circuit and its readout.
        self.shot_seconds = max(getattr(device, "default_rep_delay", None) or 0, SHOT_SECONDS)

    def measure(self, x, shots, seed, first=0):
        """(means, circuits, shots): e = (ones - zeros) / shots, float64 (groups, n), by one job, and what was run.

        One circuit measures a group on every line. x: float64 (groups, n) in [-1, 1]. seed: (run seed, step, tensor):
        the job's name, and what a simulated device draws from. Circuits and shots count those that calibrate in step 1.
        Raises DeviceError where the device fails for good, QuotaReached before too much time is used.
        """
        calibrations = 0
        if self.mitigation == "readout" and self.assignment is None:
            pubs = [(circuit,) for circuit in readout_circuits(self.circuit, self.device.target)]
            content = hashlib.sha256(f"readout {self.name} {self.lines}".encode()).hexdigest()
            zeros, ones = self.run(pubs, len(pubs), CALIBRATION_SHOTS * shots, (seed[0], 0, 0), content)
            self.assignment = zeros[0], 1 - ones[0]  # chances to read 1 for 0, and 0 for 1
            calibrations = len(pubs) if seed[1] == 1 else 0  # a run that goes on has counted them
        copies, n = len(self.lines), x.shape[1]
        rows = -(-len(x) // copies)
        values = np.zeros((rows * copies, n))
        values[: len(x)] = self.ansatz.theta(x)
        values = values.reshape(rows, copies * n)
        content = hashlib.sha256(values.tobytes() + (str(self.lines).encode() if self.service else b"")).hexdigest()
        (ones,) = self.run([(self.circuit, {tuple(self.angles): values})], rows, shots, seed, content)
        if self.assignment is not None:
            false_ones, false_zeros = self.assignment
            ones = (ones - false_ones) / (1 - false_ones - false_zeros)
        means = 2 * ones.reshape(rows * copies, n)[: len(x)] - 1
        return means, rows + calibrations, (rows + CALIBRATION_SHOTS * calibrations) * shots

    def run(self, pubs, rows, shots, seed, content):
        """Share of ones by bit, float64 (rows, bits), for every PUB: of a job fetched, or submitted and waited for.

        rows: circuits of all PUBs together, bound.
        """
        key = {"step": seed[1], "tensor": seed[2], "angles_sha256": content, "shots": shots}
        expected = self.expected_seconds(rows * shots)
        for attempt in range(JOB_ATTEMPTS):
            job = self.fetch(key, expected) or self.submit(pubs, expected, shots, seed, key, attempt)
            try:
                result = self.reach(job.result, job)
            except JobFailed as error:
                self.journal.add({"job": job.job_id(), "status": "failed", "seconds": used_seconds(job), **key})
                if error.final:
                    raise DeviceError(f"job {job.job_id()} ended: {error}") from None
                if attempt == JOB_ATTEMPTS - 1:
                    raise DeviceError(f"job {job.job_id()} failed, the last of {JOB_ATTEMPTS} tries: {error}") from None
                pause(attempt)
                continue
            self.journal.add({"job": job.job_id(), "status": "done", "seconds": used_seconds(job), **key})
            bits = [item.data.meas.to_bool_array(order="little") for item in result]
            return [array.mean(axis=-2).reshape(-1, array.shape[-1]) for array in bits]

    def fetch(self, key, expected):
        """The job that the journal, or the service by its tags, already has for this work; None where there is none.

        expected: seconds of QPU time.
        """
        if self.service is None:
            return None
        job_id = self.journal.known.get(tag_of(key))
        if job_id is not None:
            job = self.reach(lambda: self.find(job_id))
            if job is None:
                self.journal.add({"job": job_id, "status": "failed", **key})
            return job
        found = self.reach(lambda: self.service.jobs(limit=1, job_tags=[*self.tags, tag_of(key)])) if self.tags else []
        found = [job for job in found if job.job_id() not in self.journal.failed]
        for job in found:  # submitted just before the run was killed
            self.journal.add({"job": job.job_id(), "status": "submitted", "expected": expected, **key})
        return found[0] if found else None

    def find(self, job_id):
        """The job of that id; None where the service no longer has it."""
        from qiskit_ibm_runtime.exceptions import RuntimeJobNotFound

        try:
            return self.service.job(job_id)
        except RuntimeJobNotFound:
            return None

    def submit(self, pubs, expected, shots, seed, key, attempt):
        """Submit a job, expected to take so many seconds, and write it down before anything waits for it."""
        from qiskit_ibm_runtime.executor_sampler import Sampler

        used = self.journal.seconds
        if used + expected > self.max_seconds:
            raise QuotaReached(
                f"{used:.0f} s of QPU time are used and the next job takes about {expected:.0f} s: "
                f"MAX_QPU_SECONDS = {self.max_seconds:g}"
            )
        options = {**self.options, "environment": {"job_tags": [*self.tags, tag_of(key)]}}
        if self.service is None:
            state = np.random.SeedSequence((*seed, attempt, int(key["angles_sha256"][:8], 16))).generate_state(1)
            options["simulator"] = {"seed_simulator": int(state[0])}  # a fixed one would replay the same noise
        else:
            options["max_execution_time"] = max(1, math.floor(min(max(60, 10 * expected), self.max_seconds - used)))
        # A number of randomizations that divides the shots: left to itself, the Sampler runs more shots, 64 at least.
        draws = max(number for number in range(1, 33) if shots % number == 0)
        randomizations = {"num_randomizations": draws, "shots_per_randomization": shots // draws}
        options["twirling"] = self.options["twirling"] | randomizations
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler, tried = Sampler(mode=self.device, options=options), []

            def once():
                """Submit; after a lost reply look first whether the job has arrived all the same."""
                found = self.fetch(key, expected) if tried else None
                tried.append(True)
                return found or sampler.run(pubs, shots=shots)

            job = self.reach(once)
        entry = {"job": job.job_id(), "status": "submitted", "expected": expected, **key}
        self.journal.add(entry | {"tags": options["environment"]["job_tags"]})
        return job

    def reach(self, call, job=None):
        """call(), tried again while the service cannot be reached.

        JobFailed where the job itself failed; DeviceError where trying again would not help: it was cancelled, it ran
        out of its time, the service refuses the request.
        """
        from qiskit_ibm_runtime.exceptions import (
            IBMError,
            IBMInputValueError,
            IBMNotAuthorizedError,
            RuntimeInvalidStateError,
            RuntimeJobFailureError,
            RuntimeJobMaxTimeoutError,
        )

        for attempt in range(NETWORK_ATTEMPTS):
            try:
                return call()
            except DeviceError:
                raise  # of a call within this one
            except (RuntimeJobFailureError, RuntimeInvalidStateError, RuntimeJobMaxTimeoutError) as error:
                raise JobFailed(without_secrets(error), final=not isinstance(error, RuntimeJobFailureError)) from None
            except (IBMNotAuthorizedError, IBMInputValueError) as error:
                raise DeviceError(f"{self.name}: {without_secrets(error)}") from None
            except (IBMError, OSError) as error:  # OSError: sockets
                if self.service is None or is_refusal(error):
                    raise DeviceError(f"{self.name}: {without_secrets(error)}") from None
                if attempt == NETWORK_ATTEMPTS - 1:
                    name = f"; job {job.job_id()} is kept" if job else ""
                    raise DeviceError(f"{self.name} out of reach: {without_secrets(error)}{name}") from None
                print(f"{self.name} out of reach, trying again: {without_secrets(error)}", file=sys.stderr)
                pause(attempt)

    def expected_seconds(self, shots, jobs=1):
        """Seconds of QPU time that jobs of so many shots, all circuits together, are expected to take."""
        return jobs * JOB_SECONDS + shots * self.shot_seconds if self.service else 0.0

    def plan(self, sizes, groups, steps, shots):
        """What a training takes at most: jobs, circuits, shots, seconds.

        sizes: groups of each selected weight matrix, a list of int. groups: that a step measures of all of them.
        Raises ValueError where one job, of the groups of one matrix, would have more shots than EXECUTIONS_PER_JOB.
        """
        groups, lines = min(groups, sum(sizes)), len(self.lines)
        largest = shots * (2 * CALIBRATION_SHOTS if self.mitigation == "readout" else 1)
        most = EXECUTIONS_PER_JOB // shots * lines
        if largest > EXECUTIONS_PER_JOB or min(groups, max(sizes)) > most:
            raise ValueError(
                f"DEVICE_GROUPS = {groups} with SHOTS = {shots}: a job has {EXECUTIONS_PER_JOB:,} shots at most, "
                f"on {self.name} these are {most:,} groups" + " without MITIGATION" * (largest > EXECUTIONS_PER_JOB)
            )
        matrices = min(len(sizes), groups)
        # The last circuit of each matrix may have empty lines.
        rows = min(-(-groups // lines) + matrices - 1, sum(-(-size // lines) for size in sizes))
        jobs, circuits, total = steps * matrices, steps * rows, steps * rows * shots
        if self.mitigation == "readout":
            jobs, circuits, total = jobs + 1, circuits + 2, total + 2 * CALIBRATION_SHOTS * shots
        return {"jobs": jobs, "circuits": circuits, "shots": total, "seconds": self.expected_seconds(total, jobs)}


class JobFailed(DeviceError):
    """A job ended without a result; final: it was cancelled, or ran out of its time, which another try may do, too."""

    def __init__(self, message, final):
        super().__init__(message)
        self.final = final


def is_refusal(error):
    """Whether the service answered that the request is wrong (4xx, but for timeouts and rate limits)."""
    codes = [getattr(cause, "status_code", None) for cause in (error, error.__cause__, error.__context__)]
    return any(code is not None and 400 <= code < 500 and code not in (408, 429) for code in codes)


def pause(attempt):
    time.sleep(min(2**attempt, 60))


def tag_of(key):
    return f"step{key['step']}-tensor{key['tensor']}-{key['angles_sha256'][:16]}"


def used_seconds(job):
    """Seconds of QPU time that a finished job was charged; 0 where the service does not say."""
    with contextlib.suppress(Exception):  # the result is there: nothing about its bill may lose it
        return float(job.usage() or 0.0)
    return 0.0


class Journal:
    """The jobs of a run in jobs.jsonl: a line when one is submitted and when it ends, on the disk before the next step.

    path: the file, read if it is there; None keeps them in memory.
    """

    def __init__(self, path=None):
        self.path, self.charged, self.failed, self.known = path, {}, set(), {}
        if path is not None and Path(path).exists():
            text = Path(path).read_text(encoding="utf-8")
            for line in text.splitlines():
                with contextlib.suppress(ValueError):  # a last line that a kill cut short
                    self.count(json.loads(line))
            if text and not text.endswith("\n"):
                with open(path, "a", encoding="utf-8") as file:
                    file.write("\n")

    @property
    def seconds(self):
        """QPU time used so far: of each job what it was charged, or was expected to take while that is not known."""
        return sum(self.charged.values())

    def add(self, entry):
        self.count(entry)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def count(self, entry):
        if entry.get("seconds"):
            self.charged[entry["job"]] = entry["seconds"]
        else:
            self.charged.setdefault(entry["job"], entry.get("expected", 0.0))
        if entry["status"] == "failed":
            self.failed.add(entry["job"])
            self.known.pop(tag_of(entry), None)
        else:
            self.known[tag_of(entry)] = entry["job"]
