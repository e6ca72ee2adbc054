"""How a program ends: a mistake or an interruption is one line and an exit status, a traceback only with --debug."""

import contextlib
import errno
import io
import json
import os
import signal
import sys
import time

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
    sys.stdout, sys.stderr = interrupted_by_a_lost_reader(sys.stdout, 1), interrupted_by_a_lost_reader(sys.stderr, 2)
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    try:
        status = main(command)
    except (Exception, KeyboardInterrupt) as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C, or a lost reader, must not interrupt the ending
        if command.debug:
            raise
        complain(error)
        status = exit_message(error)[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torch's threads of several processes may abort a normal exit
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class Pipe(io.FileIO):
    """A pipe or terminal that may go away, as with `| head`: it is a Ctrl-C then, and what is written is dropped."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.EINVAL):  # EIO: a closed terminal; EINVAL: Windows
                raise
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            signal.raise_signal(signal.SIGINT)
            return len(data)


def interrupted_by_a_lost_reader(stream, descriptor):
    """The text stream stdout or stderr over a Pipe; a console of Windows as it is; for none one that drops all."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if sys.platform == "win32" and stream.isatty():
        return stream
    binary = io.BufferedWriter(Pipe(descriptor, "w", closefd=False))
    return io.TextIOWrapper(binary, stream.encoding, stream.errors, line_buffering=True)


def complain(error, advice=""):
    """Print the line about an error on stderr: once, where several processes have met the same one.

    torchrun's report, the last thing that it prints, shows it as the root cause where it is a failure.
    """
    line, status = exit_message(error)
    if status != 130 and (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):  # set by torchrun
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": line + advice, "timestamp": int(time.time())}, file)
    rank = rank_of_torchrun()
    if rank == "0":
        print(line + advice, file=sys.stderr, flush=True)
    elif status == 1 and not isinstance(error, FloatingPointError):  # a bug in this process alone, perhaps
        print(f"rank {rank}: {line}", file=sys.stderr, flush=True)


def rank_of_torchrun():
    """This process's number, a str; 0 where torchrun has not started it, whatever a scheduler puts into RANK."""
    return os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        if rank_of_torchrun() == "0":
            os.write(2, b"interrupted\n")  # print might be what was interrupted
    os._exit(130)
