"""Equal runs at once: one trains, the others wait and reuse it; of one that is killed another takes over. Real processes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.report.progress import ProgressView
from pipeline.store.disk import take_lock
from pipeline.store.store import Store
from tests.waiting import wait_until

DRIVER = Path(__file__).with_name("equal_runs_driver.py")
RLHF = [sys.executable, "-P", "-m", "pipeline.cli"]


@pytest.fixture
def start(recipe_path, fake_stages, tmp_path):
    """A function that starts `rlhf run --only sft` with an SFT that behaves in some way; all that still run are killed at the end."""
    started = []

    def start(behaviour, *arguments):
        command = [*RLHF, "run", recipe_path, "--only", "sft", "--store", tmp_path / "store", *arguments]
        environment = {**os.environ, "FAKE_SFT": behaviour}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_of_sixteen_equal_runs_one_trains_another_goes_on_when_it_is_killed_and_all_others_reuse_what_that_made(
    recipe_path, fake_stages, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAKE_SFT", "steps")
    (tmp_path / "told").mkdir()
    run = ["run", recipe_path, "--only", "sft", "--store", tmp_path / "store"]
    driver = subprocess.Popen([sys.executable, DRIVER, "16", tmp_path / "told", *run], stdout=subprocess.PIPE, text=True)
    processes = json.loads(driver.stdout.readline())
    wait_until(lambda: list(tmp_path.glob("store/runs/sft-*/checkpoints/step")), 60)
    (lock,) = tmp_path.glob("store/runs/sft-*/lock")
    holder = int(lock.read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    codes = dict(zip(processes, json.loads(driver.communicate(timeout=120)[0]), strict=True))
    told = {process: (tmp_path / "told" / f"{number}.out").read_text() for number, process in enumerate(processes)}
    assert [(tmp_path / "told" / f"{number}.err").read_text() for number in range(16)] == [""] * 16
    assert codes == dict.fromkeys(processes, 0) | {holder: -signal.SIGKILL}

    (heir,) = [process for process, text in told.items() if "sft: published sft@v1" in text]
    assert re.search(r"sft: goes on from step [1-9]", told[heir])
    others = set(processes) - {holder, heir}
    assert all("sft: reused sft@v1" in told[process] for process in others)
    assert all(re.search(rf"sft: waits for process ({holder}|{heir}) of", told[process]) for process in others)
    store = Store(tmp_path / "store")
    assert store.refs() == ["sft@v1"] and store.verify("sft@v1") == []
    assert (store.get("sft").path / "log.txt").read_text().count("from step") == 2


@pytest.mark.slow
def test_whoever_waits_says_for_whom_and_takes_over_from_the_last_checkpoint_of_one_that_is_killed(start, tmp_path):
    holder = start("child")
    wait_until(lambda: list(tmp_path.glob("store/runs/sft-*/checkpoints/waiting")), 60)
    (run_dir,) = tmp_path.glob("store/runs/sft-*")
    (run_dir / "checkpoints" / "step").write_text("15")
    heir, leaver, hasty = start("steps"), start("steps"), start("steps", "--no-wait")
    _, told = hasty.communicate(timeout=60)
    assert hasty.returncode == 5
    who = rf"process {holder.pid} of \S+ on \S+ \(since [-0-9]{{10}} [:0-9]{{8}} UTC\)"
    assert re.fullmatch(rf"{re.escape(str(run_dir))}: {who} runs this stage with the same inputs; .* leave --no-wait away to .*\n", told)
    lines = [process.stdout.readline() for process in (heir, leaver)]
    assert all(re.fullmatch(rf"sft: waits for {who}, which runs it with the same inputs\n", line) for line in lines), lines

    leaver.send_signal(signal.SIGINT)
    _, told = leaver.communicate(timeout=60)
    assert (leaver.returncode, told) == (130, "")

    worker = int(re.search(r"worker (\d+)", (run_dir / "log.txt").read_text())[1])
    holder.kill()
    lock = take_lock(run_dir / "lock", wait=True)  # or the heir has it first
    assert not Path(f"/proc/{worker}").exists() or b"sleep" not in Path(f"/proc/{worker}/cmdline").read_bytes()
    os.close(lock)
    out, told = heir.communicate(timeout=60)
    assert heir.returncode == 0, told
    assert "sft: goes on from step 15\n" in out
    assert "sft: published sft@v1" in out


@pytest.mark.slow
def test_whoever_waits_for_one_that_fails_ends_with_its_reason_and_does_not_fail_again(start, tmp_path):
    holder = start("slow-fail:3")
    wait_until(lambda: list(tmp_path.glob("store/runs/sft-*/checkpoints/waiting")), 60)
    waiters = [start("ok"), start("ok")]
    assert all("waits for" in process.stdout.readline() for process in waiters)
    for path in tmp_path.glob("store/runs/sft-*/checkpoints/waiting"):
        path.unlink()
    told = [process.communicate(timeout=60)[1] for process in (holder, *waiters)]
    assert [process.returncode for process in (holder, *waiters)] == [3, 3, 3]
    assert all(f"sft: process {holder.pid} of " in text and "for which this waited, failed: the loss is nan; " in text for text in told[1:])
    assert Store(tmp_path / "store").refs() == []
    assert start("ok").wait(60) == 0


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_wait_gives_a_sign_of_life_with_how_far_the_other_is(monkeypatch, is_terminal):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    view = ProgressView(Console(file=out, force_terminal=is_terminal, width=80, highlight=False))
    for waited in range(125):
        now[0] += 1
        view.stage_waits("sft", "process 7 of ann on node3", waited, [{"event": "progress", "step": waited, "total": 900}])
    view.stage_failed("sft")
    lines = out.getvalue().splitlines()
    if is_terminal:
        assert "has waited 2:04, it is at 124/900" in out.getvalue()
    else:
        assert lines == [
            "sft: waits for process 7 of ann on node3, which runs it with the same inputs",
            "sft: has waited 1:00, it is at 60/900",
            "sft: has waited 2:00, it is at 120/900",
        ]
