"""A run that is killed at random moments, or asked to stop while it publishes: nothing invalid or half is there, the next one finishes."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.waiting import wait_until

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


@pytest.mark.slow
def test_f8_a_stage_that_is_published_when_a_signal_comes_is_there_as_a_whole_or_not_at_all(recipe_path, fake_stages, tmp_path):
    """One signal: it is published first, and no other stage begins. Two: it ends at once; what was renamed by then is there."""
    ends = [
        *(([number], at) for number in (signal.SIGTERM, signal.SIGINT) for at in ("hash", "rename", "renamed")),
        ([signal.SIGHUP], "rename"),
        ([signal.SIGINT, signal.SIGINT], "hash"),
        ([signal.SIGTERM, signal.SIGINT], "rename"),
        ([signal.SIGINT, signal.SIGTERM], "renamed"),
    ]
    cases = []
    for number, (signals, at) in enumerate(ends):
        arguments = ["run", str(recipe_path), "--until", "rm", "--store", str(tmp_path / str(number))]
        cases.append({"arguments": arguments, "output": str(tmp_path / f"{number}.txt"), "signals": signals, "at": at})
    again = [case | {"signals": [], "output": case["output"] + ".again"} for case in cases]
    (tmp_path / "cases.json").write_text(json.dumps(cases + again))
    # SIGHUP as under a terminal, whatever these tests were started by.
    driver = [sys.executable, "-P", str(Path(__file__).with_name("signal_driver.py")), str(tmp_path / "cases.json")]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    done = subprocess.run(driver, capture_output=True, text=True, timeout=300)
    signal.signal(signal.SIGHUP, before)
    codes = json.loads(done.stdout)
    assert codes[: len(cases)] == [143, 143, 143, 130, 130, 130, 143, 130, 130, 143], done.stderr
    assert set(codes[len(cases) :]) == {0}
    for number, case in enumerate(cases):
        store, told = Store(tmp_path / str(number)), Path(case["output"]).read_text()
        is_there = "sft: published sft@v1" in told
        assert is_there == (number < 7), (ends[number], told)
        assert "Traceback" not in told and "rm: runs" not in told
        reused = "sft: reused sft@v1" in Path(again[number]["output"]).read_text()
        assert reused == (is_there or ends[number][1] == "renamed")
        assert store.refs() == ["rm@v1", "sft@v1"] and [store.verify(ref) for ref in store.refs()] == [[], []]
        assert not list(store.root.glob(".staging/*")) and not list(store.root.glob("runs/*/checkpoints"))


@pytest.fixture
def run_on_terminal(recipe_path, fake_stages, tmp_path):
    """run_on_terminal(behaviour of SFT) -> the process once its stage waits, and our end of its terminal."""
    started = []

    def start(behaviour):
        ours, theirs = os.openpty()
        command = [sys.executable, "-P", "-m", "pipeline.cli", "run", str(recipe_path), "--only", "sft", "--store", str(tmp_path / "store")]
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "FAKE_SFT": behaviour, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: (fcntl.ioctl(0, termios.TIOCSCTTY, 0), signal.signal(signal.SIGHUP, signal.SIG_DFL)),
        )
        os.close(theirs)
        started.append(process)
        wait_until(lambda: list(tmp_path.glob("store/runs/sft-*/checkpoints/waiting")), 60)
        return process, ours

    yield start
    for process in started:
        process.kill()
        process.wait()


def read_terminal(ours):
    told = b""
    with suppress(OSError):  # of a terminal that nobody has open any more
        while piece := os.read(ours, 65_536):
            told += piece
    return told.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("typed", [b"\x03", b"\x03\x03"])
def test_f8_ctrl_c_on_a_terminal_lets_the_stage_save_and_a_second_one_ends_it(run_on_terminal, tmp_path, typed):
    process, ours = run_on_terminal("slow-stop" if len(typed) == 1 else "stubborn")
    (log,) = tmp_path.glob("store/runs/sft-*/log.txt")
    told = ""
    for number in range(len(typed)):
        os.write(ours, typed[number : number + 1])
        while not number and "one more ends it" not in told:
            told += os.read(ours, 65_536).decode(errors="replace")
    told += read_terminal(ours)
    assert process.wait(60) == 130
    assert "Traceback" not in told and "stopped by SIGINT" in told
    assert ("saved" in log.read_text()) == (len(typed) == 1)


@pytest.mark.slow
def test_f8_a_terminal_that_is_closed_lets_the_stage_save_though_nothing_can_be_printed_any_more(run_on_terminal, tmp_path):
    process, ours = run_on_terminal("slow-stop")
    os.close(ours)
    assert process.wait(60) == 143
    (log,) = tmp_path.glob("store/runs/sft-*/log.txt")
    assert log.read_text().endswith("saved\n")
    (record,) = tmp_path.glob("store/runs/sft-*/run.json")
    assert json.loads(record.read_text())["attempts"][-1]["outcome"] == "stopped"
    assert not list(tmp_path.glob("store/.staging/*"))


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
