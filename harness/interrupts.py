"""Ctrl-C, SIGTERM and a closed terminal: where they end a run, and where they wait. However many come, a run is ended
once, and whole."""

import contextlib
import signal

HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # the terminal was closed; Windows has none
SIGNALS = {signal.SIGINT, signal.SIGTERM, HANGUP}
ASKED = []  # those that have come since the run began


def hold(number, _):
    """Handler where they wait."""
    ASKED.append(number)


def obey(number, _):
    """Handler where the first one raises KeyboardInterrupt: those that follow must not interrupt what it ends."""
    ASKED.append(number)
    if len(ASKED) == 1:
        raise KeyboardInterrupt


@contextlib.contextmanager
def handled_by(handler):
    """The handler of all within the block."""
    ignored = {HANGUP} if signal.getsignal(HANGUP) is signal.SIG_IGN else set()  # by nohup
    before = {number: signal.signal(number, handler) for number in SIGNALS - ignored}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def held():
    """Let them wait, from the making of a run folder to the end of a run, but for a block of `obeyed`. Yields the list
    of those that have come."""
    ASKED.clear()
    with handled_by(hold):
        yield ASKED


@contextlib.contextmanager
def obeyed():
    """Let the first that comes, or has been waiting, raise KeyboardInterrupt in the block."""
    with handled_by(obey):
        if ASKED:
            raise KeyboardInterrupt
        yield


@contextlib.contextmanager
def uninterrupted():
    """Let them wait until the end of the block, for what must happen whole within a block of `obeyed`.

    It raises, too, where a library has swallowed the KeyboardInterrupt before. Not where the block fails: its own error
    says more, and the state is not that of a whole step.
    """
    obeying = signal.getsignal(signal.SIGINT) is obey
    with handled_by(hold):
        yield
    if ASKED and obeying:
        raise KeyboardInterrupt
