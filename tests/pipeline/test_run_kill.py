"""kill -9 of a whole run at random moments: no invalid artifact, no orphan, and the next run finishes."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store.store import Store

NUM_KILLS = 20


@pytest.mark.slow
def test_kill_9_at_random_moments_never_leaves_an_invalid_artifact_or_an_orphan(recipe_path, fake_stages, tmp_path, monkeypatch):
    """Each round kills the orchestrator or any process below it, then looks at the store; the last round is left alone."""
    for stage in ("SFT", "RM", "PPO"):
        monkeypatch.setenv(f"FAKE_{stage}", "steps")
    root = tmp_path / "store"
    command = [sys.executable, "-P", "-m", "pipeline.cli", "run", str(recipe_path), "--store", str(root)]
    chance = random.Random(7)
    finished = 0
    for round_number in range(NUM_KILLS):
        # Another seed each time all stages are done, so that there is always something to kill.
        orchestrator = subprocess.Popen([*command, "--set", f"seed={finished}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1, 4.0))
        victims = [orchestrator.pid, *children_of(orchestrator.pid)]
        victim = orchestrator.pid if round_number % 2 else chance.choice(victims)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        finished += orchestrator.wait(30) == 0
        deadline = time.monotonic() + 5
        while stages_of(root):
            assert time.monotonic() < deadline, f"round {round_number}: a stage outlived its orchestrator by 5 s"
            time.sleep(0.05)
        store = Store(root)
        store.reap()
        assert all(store.verify(ref) == [] for ref in store.refs())
        assert not list(root.glob(".staging/*")), f"round {round_number}: staging of a dead process was not removed"
    done = subprocess.run([*command, "--set", f"seed={finished}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "ppo" in done.stdout


def children_of(pid):
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def stages_of(root):
    """Processes that run a stage of this store."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with suppress(OSError):
                command = (directory / "cmdline").read_bytes()
                if str(root).encode() in command and b"stages." in command:
                    found.append(int(directory.name))
    return found
