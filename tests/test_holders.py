"""A process that waits for a lock says which process holds it, and since when."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from datetime import datetime, timedelta, timezone

import pytest

from entropy_probe.runs import files
from entropy_probe.runs.files import lock, remove_leftovers, replace_file
from entropy_probe.runs.holders import holder

HOLD = """
import sys, time
from pathlib import Path
from entropy_probe.runs.files import lock
with lock([Path(sys.argv[1])]):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def stopped(tmp_path):
    """A process that holds a lock and is stopped, as by Ctrl-Z."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "cell.parquet")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        process.send_signal(signal.SIGSTOP)
        yield process
        process.send_signal(signal.SIGCONT)
        process.kill()


def test_waiting_process_names_the_stopped_one_and_continues_when_it_ends(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    path = tmp_path / "cell.parquet"
    timer = threading.Timer(1.0, lambda: os.kill(stopped.pid, signal.SIGKILL))
    timer.start()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with lock([path]) as locked:
            assert locked
            assert f"process {os.getpid()} on" in holder(path)
    (message,) = [str(warning.message) for warning in shown]
    assert "\n" not in message
    named = (
        rf"waiting for cell.parquet, which process {stopped.pid} on {re.escape(socket.gethostname())} holds since (.*);"
    )
    since = datetime.fromisoformat(re.match(named, message)[1])
    assert timedelta(0) <= datetime.now(timezone.utc) - since < timedelta(minutes=5)
    assert list(tmp_path.iterdir()) == []


def test_process_that_does_not_wait_says_nothing(stopped, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lock([tmp_path / "cell.parquet"], wait=False) as locked:
            assert not locked
    assert f"process {stopped.pid} on" in holder(tmp_path / "cell.parquet")


def test_record_of_a_killed_process_is_removed(stopped, tmp_path):
    stopped.kill()
    stopped.wait()
    assert {path.suffix for path in tmp_path.iterdir()} >= {".holder"}
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_record_does_not_follow_a_symbolic_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".cell.parquet.holder").symlink_to(victim)
    with lock([tmp_path / "cell.parquet"]):
        replace_file(tmp_path / "cell.parquet", b"x")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{}", '{"host": 1, "process": "x", "since": []}', "[" * 10**5, "x" * 20_000])
def test_damaged_record_is_another_process(tmp_path, content):
    (tmp_path / ".cell.parquet.holder").write_text(content)
    assert holder(tmp_path / "cell.parquet") == "another process holds"
