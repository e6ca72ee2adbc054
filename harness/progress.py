"""How long the stages of a step take, and the progress bar."""

import contextlib
import os
import re
import sys
import time

import torch
from tqdm import tqdm

from harness.process_group import rank
from harness.run_folder import STAGES

SECONDS_BETWEEN_LINES = 10
CURSOR_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r")


class StageTimer:
    """Seconds of wall time by stage of a step: `with timer("quantum"): ...` adds to timer.seconds["quantum"]."""

    def __init__(self, device):
        self.device, self.seconds = device, dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def __call__(self, stage):
        started = self.now()
        yield
        self.seconds[stage] += self.now() - started

    def now(self):
        if self.device.type == "cuda":  # whose work is queued
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def columns(self):
        """The seconds as columns of metrics.csv."""
        return {f"seconds_{stage}": took for stage, took in self.seconds.items()}


class PlainLines:
    """A file for tqdm that is no terminal: every state of the bar becomes a line, without \\r and cursor codes."""

    def __init__(self, file):
        self.file, self.encoding = file, getattr(file, "encoding", None)

    def write(self, text):
        line = CURSOR_CODES.sub("", text).strip()
        if line:
            self.file.write(f"{line}\n")

    def flush(self):
        self.file.flush()


def progress_bar(total, done, unit="step", keep=None):
    """A tqdm bar that stands at `done` of `total`; only rank 0 shows it. keep: as tqdm's leave.

    Where stderr is no terminal, a line every SECONDS_BETWEEN_LINES seconds and one at the end.
    """
    options = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        options = {"file": PlainLines(sys.stderr), "mininterval": SECONDS_BETWEEN_LINES, "ncols": 0}
    elif 0 in os.get_terminal_size(sys.stderr.fileno()):  # it does not know its size
        options = {"ncols": 80, "nrows": 24}
    return tqdm(total=total, initial=done, unit=unit, leave=keep, disable=rank() > 0, **options)


def show_step(bar, row, evaluation):
    """Advance the bar by a step. row: of metrics.csv. evaluation: the last one, a dict with "eval_accuracy"."""
    cosine = "-" if row["cosine"] is None else f"{row['cosine']:.3f}"
    accuracy = f"{evaluation['eval_accuracy']:.3f}"
    bar.set_postfix(
        loss=f"{row['loss']:.3f}", lr=f"{row['learning_rate']:.1e}", cos=cosine, acc=accuracy, refresh=False
    )
    bar.update()
