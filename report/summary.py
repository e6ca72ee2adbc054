"""What `python train.py` prints before and after a run."""

import shlex

import devices
from harness import run_folder
from harness.run_folder import STAGES
from quantum_circuits import num_groups
from report import figures
from update_rules import RULES


def announce(job, run):
    """Print what will be trained, on what, how, and where it goes. job: train.Job. run: the run folder."""
    settings, rule = job.settings, RULES[job.settings.update_rule]
    entries = sum(weight.numel() for weight in job.weights.values())
    print(f"model:   {settings.model_name}, {job.model_source['parameters']:,} weights, on {job.device}")
    embedded = settings.model_name == "embedded" and settings.learning_rate == settings.embedded_learning_rate
    name = "EMBEDDED_LEARNING_RATE" if embedded else "LEARNING_RATE"
    print(f"rate:    {settings.learning_rate:g} for AdamW ({name}), decaying to 0")
    examples = f"{len(job.train_set)} training, {len(job.eval_set)} evaluation examples"
    print(f"data:    {settings.dataset_name}: {examples}, text of {' and '.join(job.data_source['columns'])}")
    number = f"{len(job.weights)} attention weight{'s' * (len(job.weights) > 1)}"
    print(f"weights: {entries:,} entries of {number}, rule {settings.update_rule}")
    if rule.measures:
        numels = [weight.numel() for weight in job.weights.values()]
        circuits = sum(num_groups(numel, settings.num_qubits) for numel in numels)
        if settings.backend != "aer":
            circuits = min(circuits, settings.device_groups)
        size = f"{settings.num_qubits} qubits" + (f", {settings.shots} shots" if rule.draws_shots else "")
        if rule.draws_shots and settings.shot_allocation == "optimal":
            size += " on average, optimally allocated; circuits without shots do not run"
        print(f"circuit: {settings.circuit}, {circuits:,} circuits per step, {size}")
    if job.note:
        print(f"note:    {job.note}")
    print(f"run:     {run}", flush=True)


def announce_plan(settings, backend, numels, steps):
    """Print what the whole run takes of a device, and with DRY_RUN what more shots and groups would.

    numels: entries of each selected weight. ValueError where the run takes more than MAX_QPU_SECONDS.
    """
    sizes = [num_groups(numel, settings.num_qubits) for numel in numels]
    plan = backend.plan(sizes, settings.device_groups, steps, settings.shots)
    lines = len(backend.lines)
    side = f"{lines} group{'s' * (lines > 1)} at once on qubits {'; '.join(map(str, backend.lines[:3]))}"
    print(f"device:  {backend.name}, {side}{'; ...' if lines > 3 else ''}")
    print(
        f"plan:    at most {plan['jobs']:,} jobs, {plan['circuits']:,} circuits, {plan['shots']:,} shots, "
        f"about {plan['seconds']:,.0f} s of QPU time",
        flush=True,
    )
    if settings.dry_run == "yes":
        print("", *full_step_table(numels, backend.shot_seconds), sep="\n")
    if settings.dry_run == "no" and plan["seconds"] > backend.max_seconds:
        raise ValueError(
            f"MAX_QPU_SECONDS = {settings.max_qpu_seconds:g}: the plan takes about {plan['seconds']:,.0f} s, none were "
            "used; fewer steps, DEVICE_GROUPS or SHOTS take less"
        )


def full_step(numels, num_qubits, shots, lines, shot_seconds=devices.SHOT_SECONDS):
    """(jobs, circuits, seconds) that measuring every entry of some weights once takes of a device, an estimate.

    numels: entries of each weight; a weight has jobs of its own, of whole circuits. shots: per circuit, int, at most
    EXECUTIONS_PER_JOB. lines: groups measured side by side. seconds: of QPU time, JOB_SECONDS a job and shot_seconds,
    float, a shot.
    """
    circuits = [-(-numel // (num_qubits * lines)) for numel in numels]
    jobs = sum(-(-number // (devices.EXECUTIONS_PER_JOB // shots)) for number in circuits)
    return jobs, sum(circuits), jobs * devices.JOB_SECONDS + sum(circuits) * shots * shot_seconds


def full_step_table(numels, shot_seconds=devices.SHOT_SECONDS):
    """Lines of text: QPU time of `full_step` for 1 to 5 qubits and 1 to 1000 shots, on one line and on 20."""
    columns = [(lines, shots) for lines in (1, 20) for shots in (1, 10, 100, 1000)]
    head = "".join(f"{f'{lines} x {shots}':>12}" for lines, shots in columns)
    title = f"QPU time of a step that measures all {sum(numels):,} weights, by groups side by side x shots:"
    rows = [title, f"qubits{head}"]
    for num_qubits in range(1, 6):
        seconds = [full_step(numels, num_qubits, shots, lines, shot_seconds)[2] for lines, shots in columns]
        rows.append(f"{num_qubits:6}" + "".join(f"{duration(value):>12}" for value in seconds))
    return rows


def duration(seconds):
    """Seconds as text, in the largest unit of which there are two at least: 90 s, 2.0 min, 3.5 h, 8.2 days."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def show_results(run):
    """Draw the curves of a run, as run_folder.read gives it, and print what it came to and where its files are."""
    statistics, steps = run["statistics"], run["statistics"]["steps"]
    figures.save_curves(run["folder"] / "training_curves.png", run)
    print(f"\n{figures.caption(run)}\n{statistics['status']} after {steps} steps", end="")
    if steps:
        stages = [f"{name} {statistics[f'seconds_{name}'] / steps:.2f}" for name in STAGES]
        print(f", {statistics['seconds_per_step']:.2f} s per step ({', '.join(stages)})", end="")
    if statistics["evaluations"]:
        first, last = statistics["evaluations"][0]["accuracy"], statistics["evaluations"][-1]["accuracy"]
        print(f"; evaluation accuracy {first:.3f} before, {last:.3f} now", end="")
    predictions = [
        margins > 0 for _, margins in run_folder.read_predictions(run["folder"] / "predictions.csv").values()
    ]
    if len(predictions) > 1:
        gained, lost = (predictions[-1] & ~predictions[0]).sum(), (predictions[0] & ~predictions[-1]).sum()
        print(f"; {gained} predictions became correct, {lost} wrong", end="")
    if statistics["mean_cosine"] is not None:
        print(f"; mean cosine of update and gradient {statistics['mean_cosine']:.3f}", end="")
    print()
    for path in sorted(run["folder"].iterdir()):
        print(f"  {path}{'/' if path.is_dir() else ''}")
    print(f"next: python analyze.py {shlex.quote(str(run['folder']))}")
