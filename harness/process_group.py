"""One run over several processes, as torchrun starts them: each one's share of the work, and how they end together.

All hold the same weights. Each takes its share of every batch, of the circuits and of the evaluation; the first alone
touches the results folder. In a plain `python train.py` there is one process, whose share is everything.
"""

import _thread
import contextlib
import datetime
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import config

BEAT = 0.5  # seconds between two signs of life
DEAD = 5.0  # seconds of silence that tell who has died, once something has failed
SILENCE = 20.0  # seconds of silence that end the run by themselves
START = 600.0  # the same before the first sign of life: imports may be slow
GRACE = 10.0  # seconds that a process gets to end by itself, then it is ended

CONSEQUENCE = "another process is gone"

_roll_call = None  # of the processes of this run, like the process group that torch.distributed keeps


class Lost(Exception):
    """Another process of the run is gone."""


def rank():
    """This process's number, from 0; the first one writes."""
    return _roll_call.number if _roll_call else 0


def size():
    """How many processes the run has."""
    return len(_roll_call.heard) + 1 if _roll_call else 1


@contextlib.contextmanager
def together(use_cuda):
    """Join the processes that torchrun started, and leave them at the end; without torchrun, nothing.

    An error is told by one process, for all of them.
    """
    global _roll_call
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    store, number, count = next(dist.rendezvous("env://"))
    _roll_call = RollCall(store.clone(), number, count)
    # No time limit on waiting for each other, the first may write for minutes: the roll call ends what has died.
    backend, patience = "cpu:gloo,cuda:nccl" if use_cuda else "gloo", datetime.timedelta(days=30)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=patience)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the launcher's, where another process has failed
    try:
        with noticing_loss(), contextlib.redirect_stdout(sys.stdout if number == 0 else open(os.devnull, "w")):
            yield
        _roll_call.say("finished")
    except (Exception, KeyboardInterrupt) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already, and has something to say
        line, status = config.told(OSError(error) if isinstance(error, Lost) else error)
        tell(line)
        if config.debugging(sys.argv):
            raise
        sys.exit(status)
    finally:
        _roll_call.over.set()
        _roll_call = None
        dist.destroy_process_group()


# --- Shares of the work


def share(items):
    """This process's part of a list; all parts together are the list."""
    return items[rank() :: size()]


def parallel(model, inputs):
    """The model to run forward: after backward, every weight's gradient is the sum over the processes.

    inputs: those of one example, to find out whether the model uses all of its weights.
    """
    if size() == 1:
        return model
    model.eval()  # draws no dropout
    model(**inputs).logits.sum().backward()
    uses_all = all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    model.zero_grad()
    wrapped = DistributedDataParallel(model, find_unused_parameters=not uses_all)
    wrapped.register_comm_hook(None, _add_gradients)
    return wrapped


def _add_gradients(_, bucket):
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def adding_gradients(model, last):
    """The context of a batch: the gradients stay here until those of the step's last batch are added up with them."""
    return contextlib.nullcontext() if last or size() == 1 else model.no_sync()


def total(*numbers):
    """Each number summed over the processes."""
    if size() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def add_up(tensor):
    """A tensor summed over the processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


@contextlib.contextmanager
def diverging_together():
    """A FloatingPointError of the block in one process is one in all of them."""
    error = None
    try:
        yield
    except FloatingPointError as own:
        error = own
    (failures,) = total(int(error is not None))
    if failures:
        raise error or FloatingPointError("the share of another process is not finite")


def draw_own_dropout(seed, step):
    """Let every process but the first draw the dropout of a step from a random stream of its own.

    It is a function of seed, step and rank, so that a checkpoint needs the first process's random state alone.
    """
    if rank():
        torch.manual_seed((seed * 2**20 + step) * 2**11 + rank())


def from_first(call, *arguments):
    """What call(*arguments) gives, or raises, in the first process, for all of them; the others do not call it."""
    if size() == 1:
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


def require_same(facts):
    """ValueError in all processes where one of the facts, a dict by name, is not the same in each."""
    everyones = [facts]
    if size() > 1:
        everyones = [None] * size()
        dist.all_gather_object(everyones, facts)
    for number, theirs in enumerate(everyones):
        for name, value in theirs.items():
            if value != everyones[0][name]:
                raise ValueError(f"{name} of rank {number}: {value}, not the {everyones[0][name]} of rank 0")


# --- Ending together


@contextlib.contextmanager
def noticing_loss():
    """Turn what the libraries raise when another process is gone, and the roll call's own finding, into Lost."""
    try:
        yield
    except (RuntimeError, KeyboardInterrupt) as error:
        if _roll_call is None:
            raise
        words = ("gloo", "nccl", "connection closed", "connection reset")
        by_library = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
        if isinstance(error, KeyboardInterrupt) and _roll_call.silent is None:
            raise
        if isinstance(error, RuntimeError) and not by_library:
            raise
        _roll_call.noticed.set()
        raise Lost(f"{CONSEQUENCE}: {str(error)[:200]}" if str(error) else CONSEQUENCE) from error


def print_once(line):
    """Say on stderr what all processes have come to."""
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def tell(line, advice=""):
    """Say on stderr why this run ends; where it is because another process died or failed, say that in place of it.

    Of several processes the first that is left says it, for all.
    """
    if _roll_call is None:
        print(line + advice, file=sys.stderr)
        return
    about_others = _roll_call.leave(line)
    if about_others is not None:
        print((about_others or line) + advice, file=sys.stderr, flush=True)


class RollCall:
    """Who is still there, by a sign of life that every process writes each BEAT into the store they share.

    over: Event that ends it. silent: the rank whose silence ended the run, or None. noticed: Event, once the main
    thread knows of that.
    """

    def __init__(self, store, number, count):
        self.store, self.number, self.silent, self.said = store, number, None, False
        self.over, self.noticed = threading.Event(), threading.Event()
        self.heard = {other: (b"", time.monotonic()) for other in range(count) if other != number}
        self.ends = {}
        # Two, since asking a store that no longer answers may take for ever.
        for work in (self.listen, self.judge):
            threading.Thread(target=work, daemon=True).start()

    def listen(self):
        """Write signs of life, and keep what the others write."""
        beats = 0
        while not self.over.wait(BEAT):
            beats += 1
            with contextlib.suppress(RuntimeError):  # the store is gone: then all fall silent
                self.store.set(f"beat {self.number}", str(beats))
                for other in self.heard.keys() - self.ends.keys():
                    if self.store.check([f"end {other}"]):
                        self.ends[other] = self.store.get(f"end {other}").decode()
                    elif self.store.check([f"beat {other}"]):
                        beat = self.store.get(f"beat {other}")
                        if beat != self.heard[other][0]:
                            self.heard[other] = beat, time.monotonic()

    def judge(self):
        """End the run where another process has been silent for too long."""
        while not self.over.wait(BEAT):
            for other in self.heard.keys() - self.ends.keys():
                if self.quiet(other) > (SILENCE if self.heard[other][0] else START):
                    self.silent = other
                    quits = signal.getsignal(signal.SIGINT) is config.quit_at_once  # while loading
                    if not quits:
                        _thread.interrupt_main()
                    if quits or not (self.noticed.wait(GRACE) or self.over.is_set()):  # or in a library, waiting
                        print(f"\nerror: the process of rank {other} does not answer", file=sys.stderr, flush=True)
                        os._exit(1)
                    return

    def quiet(self, other):
        """Seconds since the last sign of life of another process."""
        return time.monotonic() - self.heard[other][1]

    def say(self, reason):
        """Leave word why this process ends; the first word counts."""
        if not self.said:
            self.said = True
            with contextlib.suppress(RuntimeError):
                self.store.set(f"end {self.number}", reason)

    def leave(self, reason):
        """Leave word, and find out what became of the others: a line; "" where nothing did; None where a lower rank
        is there to tell it."""
        self.say(reason)
        started, ends = time.monotonic(), {}
        while len(ends) < len(self.heard):
            for other in self.heard.keys() - ends.keys():
                word = self.ends.get(other)
                if word is None and self.heard[other][1] > started + 2 * BEAT:
                    word = "alive"  # waiting for this process, most likely
                elif word is None and self.quiet(other) > DEAD:
                    word = "died"
                if word is not None:
                    ends[other] = word
                    if other < self.number and word != "died":
                        return None
            time.sleep(0.1)
        for other, word in sorted(ends.items()):
            if word == "died":
                return f"error: the process of rank {other} died"
        for other, word in sorted(ends.items()):
            said = word.removeprefix("error: ")
            if word != reason and said not in ("alive", "finished") and CONSEQUENCE not in said:
                return f"rank {other} was interrupted" if said == "interrupted" else f"rank {other} ended: {word}"
        return ""
