"""How a program ends: a mistake or an interruption is one line and an exit status, a traceback only with --debug."""

import contextlib
import os
import signal
import sys

import config


class Stopped(Exception):
    """The run cannot go on now, --resume can: a spent quota, another process that is gone."""


def exit_message(error):
    """(line for the user, exit status) of whatever ended a program or a run.

    130: Ctrl-C, or stopped so that --resume can go on. 2: what the user can mend (ValueError, OSError). 1: the run
    diverged (FloatingPointError), or a bug.
    """
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, Stopped):
        return f"stopped: {text}", 130
    if isinstance(error, FloatingPointError):
        return f"error: diverged: {text}", 1
    if isinstance(error, ValueError | OSError):
        return f"error: {text}", 2
    return f"error: {type(error).__name__}: {text}; --debug shows where", 1


def parse_or_exit(argv, parse=config.parse):
    """parse(argv) for the first lines of a script: a refused setting, or Ctrl-C during its imports, is one line."""
    signal.signal(signal.SIGINT, quit_at_once)
    try:
        return parse(argv)
    except ValueError as error:
        complain(error)
        sys.exit(exit_message(error)[1])


def run_as_script(main, command):
    """Call main(command) and exit with its status. An error, or Ctrl-C, becomes one line; with --debug, a traceback.

    command: anything with a field `debug`.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    try:
        status = main(command)
    except (Exception, KeyboardInterrupt) as error:
        if command.debug:
            raise
        complain(error)
        status = exit_message(error)[1]
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torch's threads of several processes may abort a normal exit
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def complain(error, advice=""):
    """Print the line about an error on stderr: once, where several processes have met the same one."""
    line, status = exit_message(error)
    rank = os.environ.get("RANK", "0")  # set by torchrun
    if rank == "0":
        print(line + advice, file=sys.stderr, flush=True)
    elif status == 1 and not isinstance(error, FloatingPointError):  # a bug in this process alone, perhaps
        print(f"rank {rank}: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quit_on_interrupt():
    """Let Ctrl-C end the process at once, for work that leaves nothing behind: imports and loading.

    Libraries catch KeyboardInterrupt and SystemExit halfway through an import and go on with half a module.
    """
    before = signal.signal(signal.SIGINT, quit_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def quit_at_once(*_):
    """Handler of Ctrl-C while nothing would be lost."""
    complain(KeyboardInterrupt())
    os._exit(130)
