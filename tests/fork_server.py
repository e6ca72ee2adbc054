"""Programs as a user starts them, without the ten seconds of imports: a server that has them forks a child for each.

`start` gives a Process, much like subprocess.Popen. Where the environment holds what libraries read when they are
imported, or the system cannot fork, the program gets an interpreter of its own.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRELOADED = (
    *("train", "analyze", "datasets", "qiskit.visualization", "qiskit_ibm_runtime", "matplotlib.backends.backend_agg"),
    "transformers.models.distilbert.modeling_distilbert",
    "transformers.models.distilbert.tokenization_distilbert",
)
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHON", "OMP_", "MPL", "XDG_", "HOME")


# --- In the tests


class Process:
    """A program that runs: poll, communicate, send_signal, kill, pid and returncode are those of subprocess.Popen."""

    def __init__(self, out, err):
        self.files, self.returncode = (out, err), None

    def communicate(self, timeout=None):
        """(stdout, stderr) when the program has ended. After `timeout` seconds it is killed: TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(f"{self}\n{self.output()[1][-3000:]}", timeout)
            time.sleep(0.01)
        return self.output()

    def output(self):
        """(stdout, stderr) so far."""
        return tuple(Path(file.name).read_text(encoding="utf-8", errors="replace") for file in self.files)

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Forked(Process):
    """A child of the server. The server writes its pid and, when it ends, its exit status into a pipe."""

    def __init__(self, server, request, out, err):
        super().__init__(out, err)
        self.pipe, theirs = os.pipe()
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(request).encode())
            file.seek(0)
            try:
                socket.send_fds(server.socket, [b"."], [file.fileno(), out.fileno(), err.fileno(), theirs])
            except OSError as error:
                raise RuntimeError(f"the fork server is gone: {server.complaints()}") from error
            finally:
                os.close(theirs)
        self.server, self.pid = server, self.read()
        if self.pid is None:
            raise RuntimeError(f"the fork server ended before it could fork: {server.complaints()}")

    def read(self):
        """The next number in the pipe; None where the server has gone without one."""
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := os.read(self.pipe, 1)):
                return None
            line += byte
        return int(line)

    def poll(self):
        if self.returncode is None and select.select([self.pipe], [], [], 0)[0]:
            self.returncode = self.read()
            if self.returncode is None:
                raise RuntimeError(f"the fork server lost process {self.pid}: {self.server.complaints()}")
            os.close(self.pipe)
        return self.returncode


class Fresh(Process):
    """A program in an interpreter of its own."""

    def __init__(self, script, argv, cwd, environment, out, err):
        super().__init__(out, err)
        command = [sys.executable, str(script), *argv]
        self.popen = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        self.pid = self.popen.pid

    def poll(self):
        self.returncode = self.popen.poll()
        return self.returncode


class Server:
    """This file as a program. It ends when its socket closes, so with the tests at the latest."""

    def __init__(self):
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the server
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                **{"pass_fds": [theirs.fileno()], "env": self.environment, "cwd": ROOT},
                **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": self.stderr},
            )

    def complaints(self):
        """What the server has said."""
        self.stderr.seek(0)
        return self.stderr.read()[-3000:] or f"exit status {self.popen.poll()}"


@functools.cache
def server():
    """The server, started when the first program asks for it."""
    return Server()


STARTED = []


def start(script, argv, cwd, environment, fresh=False):
    """Start `python SCRIPT ARGV ...` in folder cwd with exactly this environment, a dict; returns the Process.

    fresh: in an interpreter of its own, which imports everything itself.
    """
    out, err = (tempfile.NamedTemporaryFile(prefix="output") for _ in range(2))  # noqa: SIM115, live with the Process
    if fresh or not hasattr(os, "fork") or reads_at_import(environment):
        process = Fresh(script, argv, cwd, environment, out, err)
    else:
        request = {"script": str(script), "argv": argv, "cwd": str(cwd), "environment": environment}
        process = Forked(server(), request, out, err)
    STARTED.append(process)
    return process


def reads_at_import(environment):
    """Whether the environment differs from the server's in what libraries read when they are imported."""
    changed = {name for name, _ in environment.items() ^ server().environment.items()}
    return any(name.startswith(READ_AT_IMPORT) for name in changed)


def close():
    """Kill the programs that still run, and end the server."""
    for process in STARTED:
        with contextlib.suppress(RuntimeError):
            process.kill()
    if server.cache_info().currsize:
        server().socket.close()
        server().popen.wait(timeout=30)
        server.cache_clear()


# --- In the server


def serve(requests):
    """Fork for every request on the socket. Returns, in the child alone, the request, a dict; in the server never."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the tests and for the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 4)
        if not message:
            os._exit(0)
        *files, pipe = descriptors
        if os.fork():
            for descriptor in (*files, pipe):
                os.close(descriptor)
            continue
        # A watcher forks the child and reports how it ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        requests.close()
        child = os.fork()
        if child:
            os.write(pipe, b"%d\n" % child)
            _, status = os.waitpid(child, 0)
            os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        os.close(pipe)
        request_file, out, err = files
        with open(request_file, "rb") as file:
            request = json.load(file)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        return request


def become(request):
    """Make this forked process what `python SCRIPT ARGV ...` would be when its imports are done."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["script"], *request["argv"]]
    sys.path[0] = str(Path(request["script"]).parent)


def run(script):
    """Run the script as __main__; returns the exit status that the interpreter would have. Its end is the same, but
    for the objects that it would take apart one by one."""
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status == -signal.SIGINT:  # what the interpreter does when nothing catches Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or every child would copy these pages
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
    os._exit(run(sys.argv[0]))
