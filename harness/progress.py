"""How long the stages of a step take, and the progress bar."""

import contextlib
import time

import torch
from tqdm import tqdm

from harness.process_group import rank
from harness.run_folder import STAGES


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


def progress_bar(total, done, unit="step", keep=None):
    """A tqdm bar that stands at `done` of `total`; only rank 0 shows it. keep: as tqdm's leave."""
    return tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, leave=keep, disable=rank() > 0)


def show_step(bar, row, evaluation):
    """Advance the bar by a step. row: of metrics.csv. evaluation: the last one, a dict with "eval_accuracy"."""
    cosine = "-" if row["cosine"] is None else f"{row['cosine']:.3f}"
    accuracy = f"{evaluation['eval_accuracy']:.3f}"
    bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['learning_rate']:.1e}", cos=cosine, acc=accuracy)
    bar.update()
