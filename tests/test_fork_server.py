"""A forked program is, to its user, one that an interpreter of its own runs."""

import os
import signal
import subprocess
import sys
import time

import fork_server
import pytest
from conftest import ROOT, wait_for


@pytest.fixture
def start(tmp_path):
    """Start a program given as text."""

    def start(text, *argv, fresh=False, cwd=tmp_path, **environment):
        program = tmp_path / f"program_{hash(text)}.py"
        program.write_text(text)
        environment = {**fork_server.server().environment, **environment}
        return fork_server.start(program, list(argv), cwd, environment, fresh)

    return start


@pytest.mark.parametrize(
    "text",
    [
        "print('a')",
        "import sys; print('a'); sys.exit(3)",
        "import sys; sys.exit('a line')",
        "import sys; sys.exit(None)",
        "import atexit; atexit.register(print, 'at the end'); raise SystemExit(True)",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
        "import os; print('lost'); os._exit(7)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import sys, os; print(sys.argv, os.getcwd(), sys.stdin.read(), sys.stdout.isatty(), __name__, __file__)",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
        "import os; print(os.environ['NAME'], sorted(os.environ) == sorted({**os.environ}))",
        "import os; os.write(1, b'\\xff'); os.system('echo from a child; echo told >&2')",
    ],
)
def test_a_forked_program_is_like_a_fresh_one(start, text):
    ends = []
    for fresh in (False, True):
        process = start(text, "--flag", "a b", fresh=fresh, NAME="value ü")
        assert isinstance(process, fork_server.Fresh if fresh else fork_server.Forked)
        out, err = process.communicate(timeout=60)
        ends.append((out, err.splitlines()[-1:], process.returncode))  # of a traceback the last line
    assert ends[0] == ends[1]


def test_an_uncaught_error_is_a_traceback(start):
    process = start("def f():\n    return 1 / 0\nf()")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.startswith("Traceback")
    assert "in f\n" in err and err.endswith("ZeroDivisionError: division by zero\n")


def test_ctrl_c_and_kill_reach_the_program(start):
    waits = (
        "import time\nprint('now', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('caught')\n"
    )
    process = start(waits)
    wait_for(lambda: process.output()[0], process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "now\ncaught\n" and process.returncode == 0
    process = start(waits)
    assert process.poll() is None and process.returncode is None
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    process.send_signal(signal.SIGINT)  # to one that has ended: nothing
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_out_of_time_a_program_is_killed_and_its_words_are_shown(start):
    process = start("import sys, time; print('so far', file=sys.stderr, flush=True); time.sleep(60)")
    wait_for(lambda: process.output()[1], process)
    with pytest.raises(subprocess.TimeoutExpired, match="so far"):
        process.communicate(timeout=0.1)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL


def test_several_programs_run_side_by_side_and_know_nothing_of_each_other(start):
    first = start("import time, config; config.SHOTS = 5; time.sleep(0.3); print(config.SHOTS)", cwd=ROOT)
    second = start("import config; print(config.SHOTS)", cwd=ROOT)
    assert second.communicate(timeout=60)[0] == "1000\n" and first.communicate(timeout=60)[0] == "5\n"


def test_what_is_read_at_import_gets_an_interpreter_of_its_own(start, monkeypatch):
    for name in ("HF_HOME", "PYTHONIOENCODING", "OMP_NUM_THREADS"):
        assert isinstance(start("", **{name: "7" if name.startswith("OMP") else "ascii"}), fork_server.Fresh)
    assert isinstance(start("", QISKIT_IBM_TOKEN="a"), fork_server.Forked)
    environment = dict(fork_server.server().environment)
    assert not fork_server.reads_at_import(environment)
    environment.pop("PYTHONPATH", None)
    assert fork_server.reads_at_import(environment | {"PYTHONPATH": "elsewhere"})


def test_a_server_that_dies_says_so(tmp_path):
    dead = fork_server.Server()
    dead.popen.kill()
    dead.popen.wait(timeout=30)
    out, err = (open(tmp_path / name, "wb") for name in ("out", "err"))  # noqa: SIM115, closed below
    with out, err, pytest.raises(RuntimeError, match=r"the fork server .*: exit status -9"):
        fork_server.Forked(dead, {}, out, err)
    dead.socket.close()


def test_the_users_hub_settings_do_not_reach_the_tests():
    """Nor are the libraries that read them imported before they are taken out."""
    code = (
        "import os, sys, conftest; print('transformers' in sys.modules, [n for n in os.environ if n.startswith('HF_')])"
    )
    users = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_DATASETS_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | users
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", env=environment, capture_output=True)
    assert done.stdout == b"False []\n", done.stderr
