"""A study: many runs, one after the other; what is finished is skipped, what was interrupted goes on."""

import contextlib
import io
import os
import shlex
import sys
import traceback
from pathlib import Path

from tqdm import tqdm

from harness import run_folder
from harness.command_line import exit_message
from harness.process_group import all_reduce, on_rank_zero, world_size
from harness.progress import progress_bar
from update_rules import RULES


def refuse_studies_on_devices(runs):
    """Raise ValueError where the runs, several Settings, include one on real hardware, or a dry run."""
    if any(RULES[run.update_rule].measures and run.backend.startswith("ibm") for run in runs):
        raise ValueError("a study on real hardware: must be one run at a time, whose jobs --resume finds again")
    if runs[0].dry_run == "yes":
        raise ValueError("DRY_RUN = 'yes': must be one run, not a study")


def run_study(runs, as_used, run_once, debug=False):
    """Run what RESULTS_DIR does not hold finished, by the settings in config.json; returns the exit status.

    runs: Settings as given. as_used: the same as they are really used (another model may stand in), in the same order.
    run_once: function (settings, keep_model, folder) -> exit status; folder is the run to go on with, or None. The
    models of the lowest seed are kept, of the others only the numbers. debug: whether tracebacks are shown.
    """
    todo = {run_folder.identity(used): (given, used) for given, used in zip(runs, as_used, strict=True)}
    results_dir = Path(os.path.expanduser(runs[0].results_dir))
    finished, resumable = on_rank_zero(run_folder.find_finished_and_resumable, results_dir)
    skipped, failed, lowest_seed = len(todo.keys() & finished), [], min(run.seed for run in runs)
    print(f"study:   {count_runs(len(todo))}, {skipped} of them finished before", flush=True)
    with progress_bar(len(todo), skipped, unit="run", keep=True) as bar:
        for key, (given, used) in todo.items():
            if key in finished:
                continue
            name, keep_model = f"{used.update_rule}, seed {used.seed}", used.seed == lowest_seed
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    status = resume_or_begin(run_once, given, used, keep_model, resumable.get(key))
            except Exception as error:  # one failed run must not lose the others
                if world_size() > 1:
                    raise  # the processes no longer know of each other where they are
                if debug:
                    traceback.print_exception(error)
                tqdm.write(f"{name}: {exit_message(error)[0]}", file=sys.stderr)
                status = 1
            if status == 130:
                print("interrupted; the same command goes on with the runs that are missing")
                return status
            failed += [name] * (status != 0)
            bar.set_postfix_str(f"last: {name}", refresh=False)
            bar.update()
    print(f"study finished, {count_runs(len(failed))} failed{': ' if failed else ''}{'; '.join(failed)}")
    print(f"now: python analyze.py {shlex.quote(str(results_dir))}")
    all_reduce(0)  # where a run failed, torchrun ends the others once one has exited: wait for the first, which writes
    return 1 if failed else 0


def count_runs(number):
    """A number of runs in words."""
    return f"{number} run{'' if number == 1 else 's'}"


def resume_or_begin(run_once, given, used, keep_model, folder):
    """Run once, going on with the run in `folder` where there is one and it can go on; returns the exit status."""
    if folder is not None:
        try:
            return run_once(used, keep_model, folder)
        except run_folder.CannotResume as error:
            tqdm.write(f"begun again, {error}", file=sys.stderr)
    return run_once(given, keep_model, None)
