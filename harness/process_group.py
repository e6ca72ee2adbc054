"""One run over several processes, as torchrun starts them: each one's share of the work, and what they must share.

All processes hold the same weights. Each takes its shard of every batch, of the circuits and of the evaluation; rank
0 alone touches the results folder. In a plain `python train.py` there is one process, whose shard is everything.
torchrun ends the others when a process dies, and names its rank; TIMEOUT ends them when one hangs.
"""

import contextlib
import datetime
import functools
import os
import signal
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from harness.command_line import Stopped

TIMEOUT = datetime.timedelta(minutes=10)  # of waiting for each other; rank 0 may write a checkpoint meanwhile


def rank():
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(use_cuda):
    """Join the processes that torchrun started, and leave them at the end; without torchrun, do nothing.

    use_cuda: whether the model is on CUDA devices, whose gradients nccl sums. SIGTERM raises KeyboardInterrupt.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=TIMEOUT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun sends it where another process has failed
    try:
        with stopped_by_lost_process(), open(os.devnull, "w") as nowhere, contextlib.ExitStack() as quiet:
            if rank() > 0:
                quiet.enter_context(contextlib.redirect_stdout(nowhere))
            yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def stopped_by_lost_process():
    """Turn what torch raises when another process is gone, or does not answer within TIMEOUT, into Stopped."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "nccl", "connection closed", "connection reset")
        if not (isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)):
            raise
        raise Stopped("another process of this run is gone or does not answer, torchrun names it") from error


# --- Shards of the work


def shard(items):
    """This process's part of a list; the parts of all processes together are the list."""
    return items[rank() :: world_size()]


def distribute(model, uses_all_weights):
    """The model to run forward: after backward, every weight's gradient is the sum over the processes."""
    if world_size() == 1:
        return model
    wrapped = DistributedDataParallel(model, find_unused_parameters=not uses_all_weights)
    wrapped.register_comm_hook(None, _sum_gradients)
    return wrapped


def _sum_gradients(_, bucket):
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def accumulating(model, last):
    """The context of one batch of a step: gradients are summed over the processes with the step's last batch only."""
    return contextlib.nullcontext() if last or world_size() == 1 else model.no_sync()


def all_reduce(*numbers):
    """Each number summed over the processes, as a sequence of floats."""
    if world_size() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def all_reduce_tensor(tensor):
    """Sum a tensor over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def seed_dropout(seed, step):
    """Let every process but rank 0 draw the dropout of a step from a random stream of its own.

    It is a function of seed, step and rank, so that a checkpoint needs the random state of rank 0 alone.
    """
    if rank():
        torch.manual_seed((seed * 2**20 + step) * 2**11 + rank())


# --- What one process finds, for all of them


def on_rank_zero(call, *arguments):
    """What call(*arguments) returns, or the ValueError or OSError it raises, on rank 0, in every process."""
    if world_size() == 1:
        return call(*arguments)
    outcome = [None, None]
    if rank() == 0:
        try:
            outcome[0] = call(*arguments)
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def raised_on_every_rank():
    """Raise a FloatingPointError, OSError or ValueError of the block in one process in all of them."""
    if world_size() == 1:
        yield
        return
    failure = None
    try:
        yield
    except (FloatingPointError, OSError, ValueError) as error:
        kind = next(kind for kind in (FloatingPointError, OSError, ValueError) if isinstance(error, kind))
        failure = kind, str(error)
    failures = [None] * world_size()
    dist.all_gather_object(failures, failure)
    for number, failed in enumerate(failures):
        if failed is not None:
            kind, text = failed
            raise kind(f"rank {number}: {text}" if number else text)


def require_same(facts):
    """Raise ValueError in all processes where one of the facts, a dict by name, differs between them."""
    everyones = [facts]
    if world_size() > 1:
        everyones = [None] * world_size()
        dist.all_gather_object(everyones, facts)
    for number, theirs in enumerate(everyones):
        for name, value in theirs.items():
            if value != everyones[0][name]:
                raise ValueError(f"{name} of rank {number}: {value}, must be the {everyones[0][name]} of rank 0")


@functools.cache
def print_once(line):
    """Print a line on stderr, from rank 0 alone, and once however many runs of a study have reason to."""
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)
