"""Faults by the hour, by `make soak`: random kills of a chain on two processes, the memory of a long PPO, edits of all that we parse.

make soak                               200 kills, two hours of PPO, five minutes of edits
make soak SOAK=5 SOAK_MINUTES=5         fewer
"""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.end_to_end.test_kill import check_resumed, check_store, wait_for_moment
from tests.waiting import wait_until

NUM_KILLS, MINUTES = int(os.environ.get("SOAK", "200")), float(os.environ.get("SOAK_MINUTES", "120"))
FUZZ_MINUTES = min(5.0, MINUTES)
ROOT = Path(__file__).parents[3]
VICTIMS = ("orchestrator", "launcher", "one rank", "all ranks")
MOMENTS = ("time", "time", "checkpoint", "result", "publish")
ENDS_WITHIN_S = 60

pytestmark = [
    pytest.mark.skipif("RLHF_TEST_SOAK" not in os.environ, reason="takes hours; run `make soak`"),
    pytest.mark.timeout(0),
]


def words_of(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def find(pipeline, victim, rng):
    """Find the processes to kill; none where there is no such process just now."""
    words = {pid: words_of(pid) for pid in pipeline.processes()}
    running = {pid: said for pid, said in words.items() if any(word.startswith(b"stages.") for word in said)}
    launchers = [pid for pid, said in running.items() if b"torch.distributed.run" in said]
    ranks = [pid for pid in running if pid not in launchers]
    if victim == "orchestrator":
        return [pid for pid, said in words.items() if b"pipeline.cli" in said]
    if victim == "launcher":
        return launchers
    return ranks if victim == "all ranks" else rng.sample(ranks, min(1, len(ranks)))


def kill(process, pipeline, victim, rng):
    """Kill, as soon as there is whom to kill; see that the run ends by itself, and that five seconds later nothing of it is left.

    Returns who was killed.
    """
    deadline_s = time.monotonic() + ENDS_WITHIN_S
    while not (victims := find(pipeline, victim, rng)) and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    if not victims:
        victim, victims = "orchestrator", [process.pid]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(ENDS_WITHIN_S)
    wait_until(lambda: not pipeline.processes(), 5, lambda: str([words_of(pid) for pid in pipeline.processes()]))
    output = pipeline.output_path.read_text()
    assert "Traceback" not in output.rpartition("error:")[2], output[-4000:]
    return victim


def test_a_chain_on_two_processes_that_is_killed_again_and_again_leaves_what_a_quiet_one_does(make_pipeline, tmp_path):
    rng, num_kills, num_chains, counts = random.Random(time.time_ns()), 0, 0, dict.fromkeys(VICTIMS, 0)
    options = ("--set", "hardware.processes=2")
    quiet = make_pipeline(tmp_path / "quiet", *options, warm=True)
    started_s = time.monotonic()
    quiet.run()
    duration_s = time.monotonic() - started_s
    content_ids = {artifact.kind: artifact.content_id for artifact in Store(quiet.store_root).list()}
    assert len(content_ids) == 4
    while num_kills < NUM_KILLS:
        pipeline = make_pipeline(tmp_path / "killed", *options, warm=True)
        try:
            finished = False
            while not finished and num_kills < NUM_KILLS:
                saved, starts = pipeline.saved_steps(), pipeline.resumed_steps()
                process = pipeline.start()
                moment = rng.choice(MOMENTS)
                wait_for_moment(pipeline, process, moment, rng, duration_s)
                finished = process.poll() == 0
                if not finished:
                    victim = kill(process, pipeline, VICTIMS[num_kills % len(VICTIMS)], rng)
                    finished = process.returncode == 0
                    counts[victim] += 1
                    num_kills += 1
                    print(f"kill {num_kills} of {NUM_KILLS}: {victim}, {moment}; {sorted(Store(pipeline.store_root).refs())}", flush=True)
                check_store(pipeline.store_root, content_ids)
                check_resumed(pipeline, saved, starts)
            if not finished:
                pipeline.run()
        finally:
            pipeline.kill_all()
        store = check_store(pipeline.store_root, content_ids)
        assert {artifact.kind: artifact.content_id for artifact in store.list()} == content_ids
        assert not any(pipeline.store_root.glob(".staging/*")) and not any(pipeline.store_root.glob("runs/*/checkpoints"))
        num_chains += 1
        shutil.rmtree(tmp_path / "killed")
    print(f"{num_kills} kills in {num_chains} chains: {counts}; a quiet run took {duration_s:.0f} s")


def resident_mb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def test_ppo_takes_no_more_memory_after_hours_than_after_its_first_ones(make_pipeline, tmp_path):
    options = [f"ppo.{setting}" for setting in ("iterations=1000000", "save_every=20", "eval_every=20")]
    pipeline = make_pipeline(tmp_path / "run", "--until", "ppo", *(word for option in options for word in ("--set", option)))
    process, used_mb = pipeline.start(), []
    try:
        wait_until(lambda: any("ppo-" in run for run in pipeline.saved_steps()) or process.poll() is not None, 600)
        ends_s = time.monotonic() + 60 * MINUTES
        while time.monotonic() < ends_s:
            assert process.poll() is None, pipeline.output_path.read_text()[-4000:]
            (pid,) = [pid for pid in pipeline.processes() if b"stages.ppo" in words_of(pid)]
            used_mb.append(resident_mb(pid))
            time.sleep(0.2)
        (iteration,) = [step for run, step in pipeline.saved_steps().items() if "ppo-" in run]
        process.terminate()
        assert process.wait(120) == 143
    finally:
        pipeline.kill_all()
    quarter = len(used_mb) // 4
    early, late = statistics.median(used_mb[quarter : 2 * quarter]), statistics.median(used_mb[-quarter:])
    print(f"{iteration} iterations in {MINUTES:.0f} minutes: {early:.0f} MB in the second quarter, {late:.0f} MB in the last")
    assert late <= 1.02 * early + 8


def test_edits_of_what_we_parse_are_tried_for_minutes(tmp_path):
    ends_s, rounds = time.monotonic() + 60 * FUZZ_MINUTES, 0
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/test_bad_input.py"]
    while time.monotonic() < ends_s:
        seed = random.SystemRandom().randrange(2**31)
        environment = {**os.environ, "RLHF_TEST_EDITS": "200"}
        done = subprocess.run([*command, f"--hypothesis-seed={seed}"], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"--hypothesis-seed={seed}: {done.stdout[-8000:]}"
        rounds += 1
    print(f"{rounds} rounds of 200 edits of each format")
