"""Fine-tune a language model with quantum-measured updates of its attention weights: `python train.py`.

Settings are in config.py, or given as flags. Every run gets a folder of its own in RESULTS_DIR; `python analyze.py`
plots it. The training loop is `train`, below: one straight block, a stage at a time.
"""

import os
import sys

import config

if __name__ == "__main__":
    config.load_or_exit(sys.argv[1:])  # before the slow imports: --help and a mistyped setting answer at once
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's spinning threads starve whatever else runs

import contextlib
import functools
import hashlib
import io
import math
import platform
import shlex
import shutil
import subprocess
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import analyze
import checkpoints
import devices
import model_utils
import processes
import quantum_circuits
import run_folder

IGNORED = -100  # label that cross_entropy leaves out
PACKAGES = ("torch", "transformers", "datasets", "qiskit", "qiskit-aer", "numpy", "matplotlib", "tqdm")


class UnusedWeight(Exception):
    """A selected weight that the model does not use."""


STOPS = (devices.QuotaReached, processes.Lost)  # what --resume can go on from
FAILURES = (devices.DeviceError, UnusedWeight)


def main(argv):
    """One run, or a study of several. Returns the exit status: 0, 1 when a run diverged or failed, 130 after Ctrl-C."""
    runs = config.load_study(argv)
    with processes.together(use_cuda=choose_device(runs[0].device).type == "cuda"):
        if named := config.resumed_run(argv):
            found = processes.from_first(run_folder.resumed, named, runs, config.given_flags(argv))
            return run_once(found[1], argv, folder=found[0])
        return run_once(runs[0], argv) if len(runs) == 1 else run_study(runs, argv)


def run_study(runs, argv):
    """Every run of a study that RESULTS_DIR does not hold finished, by the settings in its config.json, not by name."""
    if any(config.measures(run.update_rule) and run.backend.startswith("ibm") for run in runs):
        raise ValueError("a study on real hardware: allowed is one run at a time, whose jobs --resume finds again")
    if runs[0].dry_run == "yes":
        raise ValueError("DRY_RUN = 'yes': allowed is one run, not a study")
    seeds = {run.seed for run in runs}
    with config.quit_on_interrupt():
        used = load_or_stand_in(runs[0], config.given_flags(argv))[0]
    swapped = {name: getattr(used, name) for name in ("model_name", "dataset_name", "dataset_config")}

    def as_used(run):
        if used.model_name == "embedded" and "learning_rate" not in config.given_flags(argv):
            run = run._replace(learning_rate=run.embedded_learning_rate)
        return run._replace(**swapped)

    todo = {run_folder.identity(as_used(run)): run for run in runs}
    done, begun = processes.from_first(run_folder.kept, Path(os.path.expanduser(runs[0].results_dir)))
    failed = []
    skipped = len(todo.keys() & done)
    print(f"study:   {len(todo)} runs, {skipped} of them finished before", flush=True)
    bar = tqdm(total=len(todo), initial=skipped, unit="run", dynamic_ncols=True, disable=processes.rank() > 0)
    with bar:
        for key, settings in todo.items():
            if key in done:
                continue
            name = f"{settings.update_rule}, seed {settings.seed}"
            keep_model = settings.seed == min(seeds)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    try:
                        used_settings = as_used(settings) if key in begun else settings
                        status = run_once(used_settings, argv, keep_model, folder=begun.get(key))
                    except run_folder.CannotGoOn as error:
                        tqdm.write(f"begun again, {error}", file=sys.stderr)
                        status = run_once(settings, argv, keep_model)
            except Exception as error:  # one failed run must not lose the others
                if processes.size() > 1:
                    raise  # the processes no longer know of each other where they are
                tqdm.write(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                status = 1
            if status == 130:
                print("interrupted; the same command goes on with the runs that are missing")
                return status
            failed += [name] * (status != 0)
            bar.set_postfix_str(f"last: {name}")
            bar.update()
    print(f"study finished, {len(failed)} runs failed{': ' if failed else ''}{'; '.join(failed)}")
    print(f"now: python analyze.py {runs[0].results_dir}")
    return 1 if failed else 0


def run_once(settings, argv, keep_model=True, folder=None):
    """One run from settings to summary; returns its exit status.

    keep_model=False: only the numbers stay. folder: the run to go on with; None begins a new one.
    """
    results = Path(os.path.expanduser(settings.results_dir))
    if os.path.lexists(results) and not results.is_dir():
        raise ValueError(f"RESULTS_DIR = {settings.results_dir!r}: is no folder, allowed is one, or a new name")
    given = config.given_flags(argv) if folder is None else frozenset(settings._fields)
    with config.quit_on_interrupt():
        device = choose_device(settings.device)
        backend = make_backend(settings)
        if processes.size() > 1 and isinstance(backend, devices.DeviceBackend):
            raise ValueError(f"BACKEND = {settings.backend!r} with several processes: allowed is aer")
        if settings.backend == "ibm" and backend:
            # The least busy one now; --resume needs the same.
            settings = settings._replace(backend=f"ibm:{backend.name}")
        settings, data, model, tokenizer, model_source = load_or_stand_in(settings, given)
        weights, note = model_utils.attention_weights(model, settings.attention_layers, settings.attention_pattern)
        train_set = model_utils.tokenize(tokenizer, data.train, settings.max_length)
        eval_set = model_utils.tokenize(tokenizer, data.evaluation, settings.max_length)
        if isinstance(backend, devices.DeviceBackend):
            announce_plan(settings, backend, len(weights), count_steps(settings, len(train_set)))
            if settings.dry_run == "yes":
                return 0

    environment = describe_environment(argv, device, backend, model, model_source, data.source)
    facts = {"data": data.source["sha256_of_examples"], "model": environment["initial_weights_sha256"]}
    processes.require_same({name.upper(): value for name, value in settings._asdict().items()} | facts)
    run = folder or processes.from_first(run_folder.create, results)
    with contextlib.ExitStack() as held:
        processes.from_first(held.enter_context, run_folder.alone(run))
        held.enter_context(checkpoints.terminate_like_ctrl_c())
        checkpoint = None
        if folder is not None:
            environment, checkpoint = processes.from_first(go_on, folder, environment, settings)
        statistics = {"selected_weights": {name: weight.numel() for name, weight in weights.items()}}
        status, ending = "failed", None
        try:
            if processes.rank() == 0:
                run_folder.write_json(run / "environment.json", environment)
                run_folder.write_json(run / "config.json", settings._asdict())
                run_folder.write_json(run / "training_statistics.json", statistics | {"status": "running"})
            announce(settings, run, device, data, weights, model_source, note)
            if isinstance(backend, devices.DeviceBackend):
                backend.journal, backend.tags = devices.Journal(run / "jobs.jsonl"), [run.name]
            sets = model.to(device), tokenizer, train_set, eval_set
            train(settings, run, *sets, weights, backend, device, checkpoint)
            if processes.rank() == 0 and keep_model:
                config.write_atomically(run / "model", lambda folder: save_model(folder, model, tokenizer))
            elif processes.rank() == 0:
                shutil.rmtree(run / "checkpoint")
            status = "finished"
        except (KeyboardInterrupt, FloatingPointError, OSError, *STOPS, *FAILURES) as error:
            status, ending = how_it_ended(error)
            if config.debugging(argv):
                traceback.print_exc()
        except ValueError as error:
            if folder is None:  # settings and data were checked before
                raise RuntimeError("a bug in the training loop, not in the settings") from error
            raise
        finally:
            with contextlib.suppress(KeyboardInterrupt), checkpoints.uninterrupted():
                if status == "diverged":  # all processes have, and a study goes on
                    processes.print_once(ending)
                elif ending:
                    processes.tell(ending, advice_to_resume(run) if status == "interrupted" else "")
                if processes.rank() == 0:
                    # What failed has been said; a full disk or a folder gone would only be said again.
                    with contextlib.suppress(OSError, ValueError) if status == "failed" else contextlib.nullcontext():
                        sum_up(run, statistics | {"status": status})
    if status == "failed" and processes.size() > 1:
        sys.exit(1)  # the others are waiting somewhere in this run
    return {"finished": 0, "interrupted": 130}.get(status, 1)


def how_it_ended(error):
    """(status of the run, line for the user)."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted"
    if isinstance(error, STOPS):
        return "interrupted", f"stopped: {text}"
    if isinstance(error, FloatingPointError):
        return "diverged", f"error: diverged: {text}"
    return "failed", f"error: {text}"  # a full disk, a folder gone, a device that fails: it cannot go on


def go_on(folder, environment, settings):
    """(environment, checkpoint) of a run that goes on. Raises CannotGoOn."""
    try:
        environment, checkpoint = (
            run_folder.continued_environment(folder, environment, settings),
            checkpoints.load(folder),
        )
    except ValueError as error:
        raise run_folder.CannotGoOn(error) from None
    metrics, position = folder / "metrics.csv", checkpoint["progress"]["position"]
    if not metrics.is_file() or metrics.stat().st_size < position:
        raise run_folder.CannotGoOn(f"--resume {folder}: metrics.csv lacks rows that were there at the checkpoint")
    return environment, checkpoint


def train(settings, run, model, tokenizer, train_set, eval_set, weights, backend, device, checkpoint=None):
    """The training loop, over tokenized sets. weights: the selected ones by name; every other weight is AdamW's.

    checkpoint: what checkpoints.load gives, to go on after it. Ctrl-C, SIGTERM, a spent quota and the loss of another
    process leave a checkpoint.
    """
    steps_per_epoch = count_steps(settings, len(train_set)) // settings.num_epochs
    total_steps = count_steps(settings, len(train_set))
    optimizer = make_optimizer(model, weights, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / total_steps)
    progress = start_or_resume(settings, model, optimizer, scheduler, checkpoint)
    parallel = processes.parallel(model, model_utils.collate(tokenizer, train_set[:1], device)[0])
    first, position, evaluation = progress["step"] + 1, progress["position"], progress["evaluation"]
    model.train()

    path = run / "metrics.csv" if processes.rank() == 0 else Path(os.devnull)
    with (
        run_folder.open_metrics(path, weights if backend else (), position) as (metrics, file),
        progress_bar(total_steps) as bar,
        checkpoint_when_stopped(run, model, optimizer, scheduler, progress),
    ):
        bar.update(first - 1)
        if evaluation is None:
            evaluation = evaluate(model, tokenizer, eval_set, settings, device)
            run_folder.write_row(
                metrics, file, {"step": first - 1, "epoch": (first - 1) // steps_per_epoch, **evaluation}
            )
            progress |= {"evaluation": evaluation, "position": file.tell()}

        for step in range(first, total_steps + 1):
            epoch, place = 1 + (step - 1) // steps_per_epoch, (step - 1) % steps_per_epoch
            order = shuffled(len(train_set), settings.seed, epoch)
            batches = batches_of_step(order, place, settings.batch_size, settings.accumulation_steps)

            # Run the batch forward, and backward: the mean gradient of every weight over all examples of the step.
            seconds, losses, right, examples = {"forward": 0.0, "backward": 0.0}, [], 0, sum(map(len, batches))
            processes.draw_own_dropout(settings.seed, step)
            for batch in batches:
                started = time.perf_counter()
                inputs, labels = model_utils.collate(tokenizer, own_share(batch, train_set), device)
                with processes.adding_gradients(parallel, batch is batches[-1]):
                    with autocast(settings, device):
                        logits = parallel(**inputs).logits.float()
                    loss = cross_entropy(logits, labels, reduction="sum") / examples
                    forward_done = time.perf_counter()
                    loss.backward()
                losses.append(loss.item())
                right += (logits.argmax(dim=-1) == labels).sum().item()
                seconds["forward"] += forward_done - started
                seconds["backward"] += time.perf_counter() - forward_done
            started = time.perf_counter()
            loss, right = processes.total(sum(losses), right)
            require_finite({"the loss": torch.tensor(loss)})
            require_finite({f"the gradient of {name}": weight.grad for name, weight in model.named_parameters()})
            if settings.max_gradient_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            gradients = selected_gradients(weights)
            seconds["backward"] += time.perf_counter() - started

            # Measure the gradients of the selected weights with the circuits.
            started = time.perf_counter()
            updates, cost = measure_gradients(gradients, backend, settings, step)
            seconds["quantum"] = time.perf_counter() - started

            # Step every weight once: the selected ones by what was measured, all others by AdamW. Record it.
            started = time.perf_counter()
            learning_rate = scheduler.get_last_lr()[0]
            with checkpoints.uninterrupted():
                changes = step_weights(weights, updates, optimizer, settings.quantum_optimizer)
                scheduler.step()
                row = {
                    "step": step,
                    "epoch": epoch,
                    "loss": loss,
                    "accuracy": right / examples,
                    "learning_rate": learning_rate,
                    **compare(gradients, changes),
                    **cost,
                }
                model.zero_grad()
                seconds["other"] = time.perf_counter() - started
                row |= {f"seconds_{stage}": took for stage, took in seconds.items()}
                run_folder.write_row(metrics, file, row)
                end_of_epoch = step % steps_per_epoch == 0
                progress |= {
                    "step": step,
                    "evaluation": None if end_of_epoch else evaluation,
                    "position": file.tell(),
                    "random": checkpoints.random_state(),
                }
            show_progress(bar, row, evaluation)

            # Evaluate at the end of the epoch; save every so often.
            if end_of_epoch:
                evaluation = evaluate(model, tokenizer, eval_set, settings, device)
                run_folder.write_row(metrics, file, {"step": step, "epoch": epoch, **evaluation})
                progress |= {"evaluation": evaluation, "position": file.tell()}
            if end_of_epoch or (settings.checkpoint_every and step % settings.checkpoint_every == 0):
                save_checkpoint(run, model, optimizer, scheduler, progress)


def start_or_resume(settings, model, optimizer, scheduler, checkpoint):
    """What is done so far: step, bytes of metrics.csv, last evaluation (None: due now), and random states."""
    if checkpoint:
        return checkpoints.restore(checkpoint, model, optimizer, scheduler)
    torch.manual_seed(settings.seed)  # dropout
    return {"step": 0, "evaluation": None, "position": 0, "random": checkpoints.random_state()}


def save_checkpoint(run, model, optimizer, scheduler, progress):
    if processes.rank() == 0:
        checkpoints.save(run, model, optimizer, scheduler, progress)


@contextlib.contextmanager
def checkpoint_when_stopped(run, model, optimizer, scheduler, progress):
    """Leave a checkpoint of the last whole step where the block is stopped by what --resume can go on from."""
    try:
        with processes.noticing_loss():
            yield
    except (KeyboardInterrupt, devices.QuotaReached, devices.DeviceError, processes.Lost):
        save_checkpoint(run, model, optimizer, scheduler, progress)
        raise


def count_steps(settings, examples):
    """Steps of a whole run over that many training examples."""
    return settings.num_epochs * math.ceil(examples / (settings.batch_size * settings.accumulation_steps))


# --- Stages of a step -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # every step of an epoch asks for it
def shuffled(examples, seed, epoch):
    """The indices of the training examples in this epoch's order; a function of the arguments alone."""
    return torch.randperm(examples, generator=torch.Generator().manual_seed(seed * 2**16 + epoch)).tolist()


def batches_of_step(order, place, batch_size, accumulation_steps):
    """The batches, lists of indices, of the epoch's step number `place`, from 0; the last step may have fewer."""
    size = batch_size * accumulation_steps
    chosen = order[place * size : (place + 1) * size]
    return [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]


def own_share(batch, train_set):
    """This process's examples of a batch, a list of indices; where there is none, one that counts for nothing, since
    all processes must take part in adding the gradients up."""
    mine = [train_set[index] for index in processes.share(batch)]
    return mine or [train_set[batch[0]] | {"label": IGNORED}]


def autocast(settings, device):
    """The context in which the model runs forward; with AUTOCAST = "off" it changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast == "bf16")


def require_finite(tensors):
    """FloatingPointError naming the first of the tensors that holds nan or infinity; None stands for no gradient."""
    for name, tensor in tensors.items():
        if tensor is not None and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} is not finite")


def selected_gradients(weights):
    """The gradients of the selected weights by name; UnusedWeight where the model does not use one of them."""
    for name, weight in weights.items():
        if weight.grad is None:
            raise UnusedWeight(f"the selected weight {name} gets no gradient: the model does not use it, choose others")
    return {name: weight.grad for name, weight in weights.items()}


def measure_gradients(gradients, backend, settings, step):
    """(updates by name, cost): what the circuits make of the gradients; no updates for classical and frozen weights.

    With QUANTUM_OPTIMIZER = "adamw" an update is the measured gradient itself, for AdamW to step on.
    cost: coverage (part of the selected entries that were measured, None where nothing is to be), circuits, shots, and
    seconds by weight.
    """
    if backend is None:
        return {}, {"coverage": None, "circuits": 0, "shots": 0}
    chosen = {}
    if isinstance(backend, devices.DeviceBackend):
        largest = quantum_circuits.largest_groups(gradients.values(), settings.num_qubits, settings.device_groups)
        chosen = dict(zip(gradients, largest, strict=True))
    updates, costs = {}, {}
    with processes.diverging_together():
        for index, (name, gradient) in enumerate(gradients.items()):
            updates[name], costs[name] = quantum_circuits.quantum_parameter_update(
                gradient,
                backend,
                learning_rate=settings.quantum_learning_rate if settings.quantum_optimizer == "sgd" else 1.0,
                shots=settings.shots,
                seed=(settings.seed, step, index),
                normalization=settings.normalization,
                groups=chosen.get(name),
                share=((processes.rank() + index) % processes.size(), processes.size()),
            )
    for update in updates.values():
        processes.add_up(update)
    entries, circuits, shots, _ = processes.total(*map(sum, zip(*costs.values(), strict=True)))
    return updates, {
        "coverage": entries / sum(gradient.numel() for gradient in gradients.values()),
        "circuits": int(circuits),
        "shots": int(shots),
        **{run_folder.seconds_of(name): cost.seconds for name, cost in costs.items()},
    }


@torch.no_grad()
def step_weights(weights, updates, optimizer, quantum_optimizer):
    """Step every weight once and return what was subtracted from the selected ones, by name."""
    if updates and quantum_optimizer == "sgd":
        for name, weight in weights.items():
            weight -= updates[name]
        optimizer.step()
        return updates
    before = {name: weight.clone() for name, weight in weights.items()}
    for name, measured in updates.items():
        weights[name].grad = measured
    optimizer.step()
    return {name: before[name] - weight for name, weight in weights.items()}


def evaluate(model, tokenizer, eval_set, settings, device):
    """Loss and accuracy on the evaluation set, as a row of metrics.csv has them."""
    mine = processes.share(eval_set)
    with autocast(settings, device):
        loss, right = processes.total(*model_utils.evaluate(model, tokenizer, mine, settings.batch_size, device))
    require_finite({"the evaluation loss": torch.tensor(loss)})
    return {"eval_loss": loss / len(eval_set), "eval_accuracy": right / len(eval_set)}


def compare(gradients, changes):
    """Cosine between change and gradient over all selected weights (None where one is zero), and the norms of both."""
    dot = sum(torch.sum(gradients[name].double() * changes[name].double()).item() for name in gradients)
    gradient_norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))
    update_norm = math.sqrt(sum(change.double().square().sum().item() for change in changes.values()))
    cosine = dot / (gradient_norm * update_norm) if gradient_norm * update_norm > 0 else None
    return {"cosine": cosine, "gradient_norm": gradient_norm, "update_norm": update_norm}


# --- Preparation ------------------------------------------------------------------------------------------------------


def load_or_stand_in(settings, given):
    """(settings, data, model, tokenizer, model source), settings as they are really used.

    Where the hub cannot give the published model or data, the embedded ones stand in, loudly. What the user named
    himself (`given`: the settings on the command line; or another name in config.py) is never swapped: OutOfReach.
    """
    named = (settings.dataset_name, settings.dataset_config)
    named_by_user = given & {"dataset_name", "dataset_config"} or settings.dataset_revision
    try:
        data = model_utils.load_data(settings)
    except model_utils.OutOfReach as why:
        if named != model_utils.PUBLISHED_DATA or named_by_user:
            raise
        warn(f"the embedded sentences stand in for {' '.join(named)}: {why}")
        settings = settings._replace(dataset_name="embedded", dataset_config="")
        data = model_utils.load_data(settings)
        data.source["stands_in_for"] = " ".join(named)

    stands_in_for = {}
    try:
        model, tokenizer, source = model_utils.load_model(settings)
    except model_utils.OutOfReach as why:
        if settings.model_name != model_utils.PUBLISHED_MODEL or "model_name" in given or settings.model_revision:
            raise
        warn(f"the embedded model stands in for {settings.model_name}, this is NOT a DistilBERT run: {why}")
        stands_in_for = {"stands_in_for": settings.model_name}
        settings = settings._replace(model_name="embedded")
        model, tokenizer, source = model_utils.load_model(settings)
    if settings.model_name == "embedded" and "learning_rate" not in given:
        settings = settings._replace(learning_rate=settings.embedded_learning_rate)
    return settings, data, model, tokenizer, source | stands_in_for


@functools.cache
def warn(message):
    """A loud line, said once however many runs of a study, and processes, have reason to."""
    processes.print_once(f"*** {' '.join(message.split())} ***")


def choose_device(name):
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("DEVICE = 'cuda': no CUDA device is present, allowed here is auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, devices_here = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= devices_here:
        raise ValueError(
            f"DEVICE = {name!r}: {devices_here} CUDA devices, allowed are as many processes, or DEVICE = cpu"
        )
    return torch.device("cuda", number)  # torchrun: one for each process


def make_backend(settings):
    """The engine of a rule that measures, None for classical and frozen; the circuit is checked either way."""
    ansatz = quantum_circuits.build_ansatz(settings.circuit, settings.num_qubits, settings.entangling_angle)
    if not config.measures(settings.update_rule):
        return None
    if settings.backend == "aer":
        return quantum_circuits.AerBackend(ansatz, settings.update_rule, device=settings.aer_device)
    device, service = devices.open_device(settings.backend, settings.num_qubits, settings.device_noise == "on")
    return devices.DeviceBackend(
        ansatz,
        device,
        service,
        mitigation=settings.mitigation,
        dynamical_decoupling=settings.dynamical_decoupling,
        twirling=settings.twirling,
        max_seconds=settings.max_qpu_seconds if service else math.inf,
    )


def make_optimizer(model, weights, settings):
    """AdamW over all weights but the selected ones where a quantum rule steps them itself, or nothing does (frozen)."""
    by_quantum = config.measures(settings.update_rule) and settings.quantum_optimizer == "sgd"
    aside = by_quantum or settings.update_rule == "frozen"
    excluded = {id(weight) for weight in weights.values()} if aside else set()
    rest = [parameter for parameter in model.parameters() if id(parameter) not in excluded]
    return torch.optim.AdamW(rest, lr=settings.learning_rate, weight_decay=settings.weight_decay)


# --- The run folder ---------------------------------------------------------------------------------------------------


def save_model(folder, model, tokenizer):
    with checkpoints.full_disk_is_an_os_error(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def describe_environment(argv, device, backend, model, model_source, data_source):
    """Contents of environment.json: code, versions, machine, and what was really used."""
    hashed = hashlib.sha256()
    for weight in model.parameters():
        hashed.update(weight.detach().cpu().numpy())
    digest = hashed.hexdigest()

    def git(*words):
        command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None  # not a checkout, or no git

    changed = git("status", "--porcelain")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
        "argv": list(argv),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": processes.size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "backend": backend.name if backend else None,
        "model": model_source,
        "data": data_source,
        "initial_weights_sha256": digest,
    }


# --- What the user sees -----------------------------------------------------------------------------------------------


def progress_bar(total_steps):
    return tqdm(total=total_steps, unit="step", dynamic_ncols=True, leave=None, disable=processes.rank() > 0)


def show_progress(bar, row, evaluation):
    accuracy = f"{evaluation['eval_accuracy']:.3f}"
    cosine = "-" if row["cosine"] is None else f"{row['cosine']:.3f}"
    bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['learning_rate']:.1e}", cos=cosine, acc=accuracy)
    bar.update()


def advice_to_resume(run):
    if not checkpoints.saved(run):
        return ""
    started = "python" if processes.size() == 1 else f"torchrun --nproc_per_node={processes.size()}"
    return f"; to go on: {started} train.py --resume {shlex.quote(str(run))}"


def announce(settings, run, device, data, weights, model_source, note):
    entries = sum(weight.numel() for weight in weights.values())
    circuits = sum(quantum_circuits.cost(weight.numel(), settings.num_qubits, 1)[0] for weight in weights.values())
    print(f"model:   {settings.model_name}, {model_source['parameters']:,} weights, on {device}")
    print(f"rate:    {settings.learning_rate:g} for AdamW, decaying to 0")
    print(f"data:    {settings.dataset_name}: {len(data.train)} training, {len(data.evaluation)} evaluation examples")
    print(f"weights: {entries:,} entries of {len(weights)} attention weights, rule {settings.update_rule}")
    if config.measures(settings.update_rule):
        if settings.backend != "aer":
            circuits = min(circuits, settings.device_groups)
        size = f"{settings.num_qubits} qubits, {settings.shots} shots"
        print(f"circuit: {settings.circuit}, {circuits:,} circuits per step, {size}")
    if note:
        print(f"note:    {note}")
    print(f"run:     {run}", flush=True)


def announce_plan(settings, backend, weights, steps):
    """Print what the whole run takes of a device; ValueError where that is more than MAX_QPU_SECONDS."""
    plan = backend.plan(weights, settings.device_groups, steps, settings.shots)
    side = f"{len(backend.lines)} groups side by side on qubits {'; '.join(map(str, backend.lines[:3]))}"
    print(f"device:  {backend.name}, {side}{', ...' if len(backend.lines) > 3 else ''}")
    print(
        f"plan:    at most {plan['jobs']:,} jobs, {plan['circuits']:,} circuits, {plan['shots']:,} shots, "
        f"about {plan['seconds']:,.0f} s of QPU time",
        flush=True,
    )
    if settings.dry_run == "no" and plan["seconds"] > backend.max_seconds:
        raise ValueError(
            f"MAX_QPU_SECONDS = {settings.max_qpu_seconds:g}: the plan takes about {plan['seconds']:,.0f} s, none were "
            "used; fewer steps, DEVICE_GROUPS or SHOTS take less"
        )


def sum_up(run, statistics):
    """Write training_statistics.json of a run that ended, show what it came to and draw its curves."""
    metrics = run / "metrics.csv"
    rows = run_folder.read_metrics(metrics) if metrics.exists() else []
    run_folder.write_json(run / "training_statistics.json", statistics | run_folder.summarise(rows))
    if rows:
        show_results(run_folder.read(run))


def show_results(run):
    """Draw the curves of a run, as run_folder.read gives it, and print what it came to and where its files are."""
    statistics = run["statistics"]
    if run["rows"]:
        analyze.save_curves(run["folder"] / "training_curves.png", run)
    print(f"\n{analyze.caption(run)}\n{statistics['status']} after {statistics['steps']} steps", end="")
    if statistics["steps"]:
        stages = [f"{name} {statistics[f'seconds_{name}'] / statistics['steps']:.2f}" for name in analyze.STAGE_COLOURS]
        print(f", {statistics['seconds_per_step']:.2f} s per step ({', '.join(stages)})", end="")
    if statistics["evaluations"]:
        first, last = statistics["evaluations"][0]["accuracy"], statistics["evaluations"][-1]["accuracy"]
        print(f"; evaluation accuracy {first:.3f} before, {last:.3f} now", end="")
    print()
    for path in sorted(run["folder"].iterdir()):
        print(f"  {path}{'/' if path.is_dir() else ''}")


if __name__ == "__main__":
    config.run_as_script(main)
