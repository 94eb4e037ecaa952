"""A run that is killed, in a process of its own: the folder says so and holds no half-written file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run did not come so far"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("signum", "code", "state"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted"),
        (signal.SIGKILL, -9, "running"),
    ],
)
def test_killed_in_the_middle(tmp_path, signum, code, state):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "resgrow", "fit", "--epochs", "10000", "--threads", "1", "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        history = folder / "history.jsonl"
        wait_for(lambda: history.exists() and history.read_text().count("\n") >= 2, process)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == state
    assert status["pid"] == process.pid
    assert (
        (signal.Signals(signum).name in status["message"])
        if state == "interrupted"
        else ("unfinished" in status["message"])
    )
    text = history.read_text()
    assert text.endswith("}\n")
    assert all(json.loads(line)["kind"] == "epoch" for line in text.splitlines())
    assert {path.name for path in folder.iterdir()} == {"status.json", "config.json", "history.jsonl"}
