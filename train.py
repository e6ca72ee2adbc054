"""Fine-tune a language model with quantum-measured updates of its attention weights: `python train.py`.

Settings are in config.py, or given as flags. Every run gets a folder of its own in RESULTS_DIR; `python analyze.py`
plots it. The training loop is `train`, below: one straight block, a stage at a time.
"""

import os
import sys

from harness import command_line

if __name__ == "__main__":
    COMMAND = command_line.parse_or_exit(sys.argv[1:])  # before the slow imports: --help and mistakes answer at once
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's spinning threads starve whatever else runs

import contextlib
import functools
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

import devices
import model_utils
import quantum_circuits
from aer_engine import AerBackend
from harness import checkpoints, files, interrupts, lifecycle, process_group, run_folder, study
from harness.environment import describe_environment
from harness.process_group import all_reduce, on_rank_zero, print_once
from harness.progress import StageTimer, progress_bar, show_step
from harness.record import open_record
from report import summary
from update_rules import RULES

IGNORED = -100  # label that cross_entropy leaves out


def main(command):
    """Make the run, or the study of several runs, that a config.Command describes. Returns the exit status: 0, 1 where
    a run diverged or failed, 130 where Ctrl-C, SIGTERM or SIGHUP came, or one was stopped and --resume can go on."""
    with process_group.process_group(use_cuda=torch.cuda.is_available()):
        if command.resume:
            folder, settings = on_rank_zero(run_folder.find_run_to_resume, command)
            return run_once(settings, command, folder=folder)
        on_rank_zero(run_folder.require_writable, Path(os.path.expanduser(command.runs[0].results_dir)))
        if len(command.runs) == 1:
            return run_once(command.runs[0], command)
        study.refuse_studies_on_devices(command.runs)
        with command_line.quit_on_interrupt():
            as_used = model_utils.resolve_stand_ins(command.runs, command.given, print_once)
        return study.run_study(
            command.runs, as_used, lambda settings, *rest: run_once(settings, command, *rest), command.debug
        )


# --- One run ----------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """Everything that a run needs, loaded and checked. weights: the selected ones by name, Parameters of the model.

    train_set, eval_set: tokenized examples, see model_utils.tokenize. backend: engine that measures the circuits, None
    where the rule has none. device: torch.device of the model. uses_all_weights: whether forward uses all of them.
    """

    settings: tuple
    model: torch.nn.Module
    tokenizer: object
    train_set: list
    eval_set: list
    weights: dict
    backend: object
    device: torch.device
    uses_all_weights: bool
    model_source: dict
    data_source: dict
    note: str


def run_once(settings, command, keep_model=True, folder=None):
    """One run from settings to summary; returns its exit status, see `main`.

    keep_model=False: only the numbers stay. folder: the run to go on with, a Path; None begins a new one.
    """
    with command_line.quit_on_interrupt(), process_group.raised_on_every_rank():
        job = prepare(settings, command.given if folder is None else frozenset(settings._fields))
    if job.settings.dry_run == "yes":
        return 0
    environment = describe_environment(
        command.argv, job.device, job.backend and job.backend.name, job.model, job.model_source, job.data_source
    )
    facts = {"data": job.data_source["sha256_of_examples"], "model": environment["initial_weights_sha256"]}
    process_group.require_same({name.upper(): value for name, value in job.settings._asdict().items()} | facts)
    with interrupts.held() as asked, contextlib.ExitStack() as held:
        run = folder or on_rank_zero(run_folder.create, Path(os.path.expanduser(job.settings.results_dir)))
        on_rank_zero(held.enter_context, run_folder.locked(run))
        checkpoint, error = None, None
        if folder is not None:
            environment, checkpoint = on_rank_zero(lifecycle.load_to_resume, run, job.settings, environment)
        try:
            lifecycle.begin(run, job.settings, environment, job.weights)
            if isinstance(job.backend, devices.DeviceBackend):
                job.backend.journal, job.backend.tags = devices.Journal(run / "jobs.jsonl"), [run.name]
            summary.announce(job, run)
            train(job, run, checkpoint)
            if keep_model and process_group.rank() == 0:
                files.write_atomically(run / "model", lambda path: save_model(path, job.model, job.tokenizer))
        except (Exception, KeyboardInterrupt) as caught:
            error = caught
        status = lifecycle.conclude(run, job.weights, error, command.debug, summary.show_results)
        if asked and error is None:
            command_line.complain(KeyboardInterrupt(), ", but this run has finished")
        return 130 if asked else status


def prepare(settings, given):
    """Load and check everything that a run needs, the Job; nothing is written before. Raises ValueError or OSError.

    given: names of the settings that the user gave, which nothing replaces.
    """
    device, backend = choose_device(settings.device), make_backend(settings)
    on_a_device = isinstance(backend, devices.DeviceBackend)
    if on_a_device and process_group.world_size() > 1:
        raise ValueError(f"BACKEND = {settings.backend!r} with several processes: must be aer")
    if on_a_device and settings.backend == "ibm":
        settings = settings._replace(backend=f"ibm:{backend.name}")  # the least busy one now; --resume needs the same
    settings, data, model, tokenizer, model_source = model_utils.load_or_stand_in(settings, given, print_once)
    weights, note = model_utils.attention_weights(model, settings.attention_layers, settings.attention_pattern)
    train_set = model_utils.tokenize(tokenizer, data.train, settings.max_length)
    eval_set = model_utils.tokenize(tokenizer, data.evaluation, settings.max_length)
    model_utils.check_vocabulary(tokenizer, train_set + eval_set, model, print_once)
    if on_a_device:
        numels = [weight.numel() for weight in weights.values()]
        summary.announce_plan(settings, backend, numels, count_steps(settings, len(train_set)))
    elif settings.dry_run == "yes":
        print(f"plan:    UPDATE_RULE = {settings.update_rule!r} runs no circuits")
    if settings.trained_weights == "attention":
        model_utils.train_attention_alone(model, weights, model_source["fresh_weights"])
    model.to(device)
    unused = model_utils.unused_weights(model, model_utils.collate(tokenizer, train_set[:1], device)[0])
    if lost := unused & weights.keys():
        raise ValueError(f"the selected weight {min(lost)} gets no gradient: the model does not use it, select others")
    sets = train_set, eval_set, weights, backend, device, not unused
    return Job(settings, model, tokenizer, *sets, model_source, data.source, note)


# --- The training loop ------------------------------------------------------------------------------------------------


def train(job, run, checkpoint=None):
    """Train job.model for all epochs, writing metrics.csv and checkpoints into the folder `run`.

    checkpoint: what checkpoints.load gives, to go on after it. Raises FloatingPointError where training diverges.
    """
    settings, model, weights, device = job.settings, job.model, job.weights, job.device
    total_steps = count_steps(settings, len(job.train_set))
    steps_per_epoch = total_steps // settings.num_epochs
    optimizer = make_optimizer(model, weights, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / total_steps)
    progress = checkpoints.start_or_restore(settings, model, optimizer, scheduler, checkpoint)
    distributed = process_group.distribute(model, job.uses_all_weights)
    model.train()
    with (
        open_record(run, weights if job.backend else (), progress["offsets"]) as record,
        progress_bar(total_steps, done=progress["step"]) as bar,
        checkpoints.saved_when_stopped(run, model, optimizer, scheduler, progress) as save_checkpoint,
    ):
        if progress["evaluation_due"]:
            evaluate_and_record(job, record, progress, steps_per_epoch)
        for step in range(progress["step"] + 1, total_steps + 1):
            epoch, place = 1 + (step - 1) // steps_per_epoch, (step - 1) % steps_per_epoch
            timer = StageTimer(device)

            # Accumulate the gradients of the step's batches, for every weight.
            batches = batches_of_step(len(job.train_set), settings, epoch, place)
            loss, accuracy = accumulate_gradients(job, distributed, batches, step, timer)
            gradients = {name: weight.grad for name, weight in weights.items()}

            # Measure those of the selected weights with the circuits.
            with timer("quantum"):
                rate = quantum_learning_rate(settings, done=(step - 1) / total_steps)
                updates, usage = measure_gradients(gradients, job.backend, settings, step, rate)

            # Step every weight once: the selected ones by what the rule gives, all others by AdamW. Record it.
            with interrupts.uninterrupted():
                with timer("other"):
                    row = {"step": step, "epoch": epoch, "loss": loss, "accuracy": accuracy}
                    row |= {"learning_rate": scheduler.get_last_lr()[0]}
                    changes = step_weights(weights, updates, optimizer, settings.quantum_optimizer)
                    row |= compare(gradients, changes) | usage
                    scheduler.step()
                    model.zero_grad()
                record.metrics.write(row | timer.columns())
                due = step == total_steps or step % (settings.eval_every or steps_per_epoch) == 0
                progress |= {"step": step, "evaluation_due": due, "offsets": record.offsets()}
                progress |= {"random": checkpoints.random_state()}

            # Evaluate and save where due.
            if due:
                evaluate_and_record(job, record, progress, steps_per_epoch)
            show_step(bar, row, progress["evaluation"])
            if step % steps_per_epoch == 0 or (settings.checkpoint_every and step % settings.checkpoint_every == 0):
                save_checkpoint()


def count_steps(settings, examples):
    """Steps of a whole run over that many training examples."""
    return settings.num_epochs * math.ceil(examples / (settings.batch_size * settings.accumulation_steps))


# --- Stages of a step -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # every step of an epoch asks for it
def shuffled(examples, seed, epoch):
    """The indices of the training examples in this epoch's order; a function of the arguments alone."""
    return torch.randperm(examples, generator=torch.Generator().manual_seed(seed * 2**16 + epoch)).tolist()


def batches_of_step(examples, settings, epoch, place):
    """The batches, lists of indices, of an epoch's step number `place`, from 0; the last step may have fewer."""
    size = settings.batch_size * settings.accumulation_steps
    chosen = shuffled(examples, settings.seed, epoch)[place * size : (place + 1) * size]
    return [chosen[first : first + settings.batch_size] for first in range(0, len(chosen), settings.batch_size)]


def accumulate_gradients(job, distributed, batches, step, timer):
    """Give every weight the mean gradient over all examples of the step, clipped; returns (loss, accuracy) over them.

    batches: lists of indices of job.train_set. distributed: job.model, as process_group.distribute gives it.
    Raises FloatingPointError, in all processes, for a loss or gradient that is not finite.
    """
    settings, examples, losses, num_correct = job.settings, sum(map(len, batches)), [], 0
    process_group.seed_dropout(settings.seed, step)
    for batch in batches:
        with process_group.accumulating(distributed, batch is batches[-1]):
            with timer("forward"):
                inputs, labels = model_utils.collate(job.tokenizer, own_examples(batch, job.train_set), job.device)
                with autocast(settings, job.device):
                    logits = distributed(**inputs).logits.float()
                loss = cross_entropy(logits, labels, reduction="sum") / examples
            with timer("backward"):
                loss.backward()
        losses.append(loss.item())
        num_correct += (logits.argmax(dim=-1) == labels).sum().item()
    with timer("backward"):
        loss, num_correct = all_reduce(sum(losses), num_correct)
        require_finite({"the loss": torch.tensor(loss)})
        require_finite({f"the gradient of {name}": weight.grad for name, weight in job.model.named_parameters()})
        if settings.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(job.model.parameters(), settings.max_gradient_norm)
    return loss, num_correct / examples


def own_examples(batch, train_set):
    """This process's examples of a batch, a list of indices; where there is none, one that counts for nothing, since
    all processes must take part in summing the gradients."""
    mine = [train_set[index] for index in process_group.shard(batch)]
    return mine or [train_set[batch[0]] | {"label": IGNORED}]


def autocast(settings, device):
    """The context in which the model runs forward; with AUTOCAST = "off" it changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast == "bf16")


def require_finite(tensors):
    """Raise FloatingPointError naming the first tensor of a dict that holds nan or infinity; None is no gradient."""
    for name, tensor in tensors.items():
        if tensor is not None and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} is not finite")


def quantum_learning_rate(settings, done):
    """The factor of the measured gradient in an update. done: part of all steps that lie behind, from 0 to 1."""
    if settings.quantum_optimizer == "adamw":
        return 1.0
    return settings.quantum_learning_rate * (1 - done if settings.quantum_schedule == "linear" else 1)


def measure_gradients(gradients, backend, settings, step, learning_rate):
    """(updates, usage): by name, what the rule makes of the gradients; empty where AdamW or nothing steps the weights.

    An update is to be subtracted; with QUANTUM_OPTIMIZER = "adamw" it is the measured gradient, for AdamW to step on.
    usage: coverage (part of the selected entries that were measured, None where none is to be), circuits, shots,
    allocation_gain and seconds by weight, as columns of metrics.csv. Raises Stopped where a device's quota is spent.
    """
    rule = RULES[settings.update_rule]
    if not rule.measures:
        stepped = gradients if rule.stepped_by == "quantum_optimizer" else {}
        updates = {name: learning_rate * gradient for name, gradient in stepped.items()}
        return updates, {"coverage": None, "circuits": 0, "shots": 0}
    chosen, factors = {}, {}
    if isinstance(backend, devices.DeviceBackend):
        parts = groups_for_device(gradients, settings, step)
        chosen, factors = (dict(zip(gradients, part, strict=True)) for part in parts)
    rank, world_size = process_group.rank(), process_group.world_size()
    updates, used = {}, {}
    with process_group.raised_on_every_rank():
        for index, (name, gradient) in enumerate(gradients.items()):
            try:
                updates[name], used[name] = quantum_circuits.quantum_parameter_update(
                    gradient,
                    backend,
                    learning_rate=learning_rate,
                    shots=settings.shots,
                    seed=(settings.seed, step, index),
                    normalization=settings.normalization,
                    allocation=settings.shot_allocation,
                    groups=chosen.get(name),
                    factors=factors.get(name),
                    share=((rank + index) % world_size, world_size),
                    transform=rule.transform,
                )
            except devices.QuotaReached as error:
                raise command_line.Stopped(error) from None
    for update in updates.values():
        process_group.all_reduce_tensor(update)
    # The fields of Usage, added up over weight matrices and processes, but for the seconds.
    entries, circuits, shots, _, equal, optimal = all_reduce(*map(sum, zip(*used.values(), strict=True)))
    return updates, {
        "coverage": entries / sum(gradient.numel() for gradient in gradients.values()),
        "circuits": int(circuits),
        "shots": int(shots),
        "allocation_gain": equal / optimal if optimal else None,
        **{run_folder.seconds_of(name): usage.seconds for name, usage in used.items()},
    }


def groups_for_device(gradients, settings, step):
    """(groups, factors): those that a device measures in this step, for each gradient, and factors of their updates."""
    selected, num_qubits, most = gradients.values(), settings.num_qubits, settings.device_groups
    if settings.device_selection == "sampled":
        return quantum_circuits.sampled_groups(selected, num_qubits, most, (settings.seed, step))
    return quantum_circuits.largest_groups(selected, num_qubits, most), [None] * len(gradients)


@torch.no_grad()
def step_weights(weights, updates, optimizer, quantum_optimizer):
    """Step every weight once and return what was subtracted from the selected ones, by name."""
    if updates and quantum_optimizer == "sgd":
        for name, weight in weights.items():
            weight -= updates[name]
        optimizer.step()  # holds all other weights
        return updates
    before = {name: weight.clone() for name, weight in weights.items()}
    for name, measured in updates.items():  # none with `classical` and `frozen`: AdamW, or nothing, steps the weights
        weights[name].grad = measured
    optimizer.step()
    return {name: before[name] - weight for name, weight in weights.items()}


def evaluate(job):
    """(losses, margins) of the whole evaluation set, see model_utils.evaluate, in every process."""
    rank, world_size = process_group.rank(), process_group.world_size()
    results = torch.zeros(2, len(job.eval_set), dtype=torch.float64)
    with autocast(job.settings, job.device):
        mine = model_utils.evaluate(
            job.model, job.tokenizer, process_group.shard(job.eval_set), job.settings.batch_size, job.device
        )
    results[:, rank::world_size] = torch.stack(mine)
    process_group.all_reduce_tensor(results)
    require_finite({"the evaluation loss": results[0]})
    return results


def evaluate_and_record(job, record, progress, steps_per_epoch):
    """Evaluate, write metrics and predictions, and note in `progress` that it is done."""
    epoch = math.ceil(progress["step"] / steps_per_epoch)
    losses, margins = evaluate(job)
    evaluation = {"eval_loss": losses.mean().item(), "eval_accuracy": (margins > 0).double().mean().item()}
    record.metrics.write({"step": progress["step"], "epoch": epoch, **evaluation})
    labels = [item["label"] for item in job.eval_set]
    columns = zip(labels, margins.tolist(), strict=True)
    record.predictions.write(
        *({"step": progress["step"], "example": i, "label": label, "margin": m} for i, (label, m) in enumerate(columns))
    )
    progress |= {"evaluation": evaluation, "evaluation_due": False, "offsets": record.offsets()}


def compare(gradients, changes):
    """Cosine between change and gradient over all selected weights (None where one is zero), and the norms of both."""
    dot = sum(torch.sum(gradients[name].double() * changes[name].double()).item() for name in gradients)
    gradient_norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))
    update_norm = math.sqrt(sum(change.double().square().sum().item() for change in changes.values()))
    cosine = dot / (gradient_norm * update_norm) if gradient_norm * update_norm > 0 else None
    return {"cosine": cosine, "gradient_norm": gradient_norm, "update_norm": update_norm}


# --- Preparation ------------------------------------------------------------------------------------------------------


def choose_device(name):
    """The torch.device that DEVICE names; under torchrun one CUDA device for each process of this machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("DEVICE = 'cuda': no CUDA device is present, must be auto or cpu here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, present = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= present:
        raise ValueError(f"DEVICE = {name!r} with more processes than the {present} CUDA devices: must be cpu")
    return torch.device("cuda", number)


def make_backend(settings):
    """The engine of a rule that measures, None for the other rules; the circuit is checked either way."""
    ansatz = quantum_circuits.build_ansatz(settings.circuit, settings.num_qubits, settings.entangling_angle)
    if not RULES[settings.update_rule].measures:
        return None
    if settings.backend == "aer":
        return AerBackend(ansatz, settings.update_rule, device=settings.aer_device)
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
    """AdamW over all weights but the selected ones where the rule steps them itself, or nothing does."""
    stepped_by = RULES[settings.update_rule].stepped_by
    aside = stepped_by == "nothing" or (stepped_by == "quantum_optimizer" and settings.quantum_optimizer == "sgd")
    excluded = {id(weight) for weight in weights.values()} if aside else set()
    rest = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in excluded]
    return torch.optim.AdamW(rest, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def save_model(folder, model, tokenizer):
    """Write model and tokenizer for from_pretrained; OSError where the disk is full, or what is to hold it is gone."""
    folder.mkdir()  # the libraries would make its parents, too
    with checkpoints.full_disk_is_an_os_error(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    command_line.run_as_script(main, COMMAND)
