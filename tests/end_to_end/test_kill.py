"""F2: `kill -9` of the whole pipeline at random points. Nothing invalid is ever visible, nothing stays alive, nothing is lost."""

import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store.store import Store
from stages.spec import STAGES

ROOT = Path(__file__).parents[2]
NUM_CHAINS = 3  # of seven kills each


@pytest.fixture(scope="module")
def straight(make_pipeline, tmp_path_factory):
    """Content ids, and seconds, of a run that nobody disturbs."""
    pipeline = make_pipeline(tmp_path_factory.mktemp("straight"), warm=True)
    started_s = time.monotonic()
    pipeline.run()
    duration_s = time.monotonic() - started_s
    return {artifact.kind: artifact.content_id for artifact in Store(pipeline.store_root).list()}, duration_s


def wait_for_moment(pipeline, process, moment, rng, duration_s):
    """Wait for the moment of the kill, or for the end of the run."""
    patterns = {"checkpoint": "runs/*/checkpoints/checkpoint-*", "result": ".staging/*/result.json", "publish": "artifacts/*/v*"}
    if moment == "time":
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 0.4 * duration_s))
        return
    # Just after something new appears on the disk: while a checkpoint is written, an artifact published, the next stage started.
    before = set(pipeline.store_root.glob(patterns[moment]))
    while process.poll() is None and set(pipeline.store_root.glob(patterns[moment])) <= before:
        time.sleep(0.002)
    time.sleep(rng.choice([0, rng.uniform(0, 0.05), rng.uniform(0, 0.5)]))


def kill(process, pipeline, victim):
    """Kill the orchestrator alone, or the stage alone; see that all that was started is gone within five seconds."""
    if victim == "stage":
        for pid in pipeline.processes():
            with suppress(OSError):
                if b"stages." in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        # Without a stage to kill at this moment the pipeline goes on, and is killed as a whole.
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    process.kill()
    process.wait()
    deadline_s = time.monotonic() + 5
    while alive := pipeline.processes():
        assert time.monotonic() < deadline_s, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in alive]
        time.sleep(0.02)


def run_chain(make_pipeline, straight, directory, seed):
    """Kill and start again until all kills are spent, then let it finish; return the number of kills and the steps gone on from."""
    content_ids, duration_s = straight
    rng = random.Random(seed)
    kills = [("time", "orchestrator")] * 3 + [(moment, "orchestrator") for moment in ("checkpoint", "result", "publish")]
    kills.append((rng.choice(["time", "checkpoint"]), "stage"))
    rng.shuffle(kills)
    num_kills, resumed = 0, []
    while kills:
        store_number = len(list(directory.iterdir()))
        pipeline = make_pipeline(directory / str(store_number), warm=True)
        try:
            finished = False
            while not finished:
                saved, starts = pipeline.saved_steps(), pipeline.resumed_steps()
                if not kills:
                    pipeline.run()
                    finished = True
                else:
                    moment, victim = kills[-1]
                    process = pipeline.start()
                    wait_for_moment(pipeline, process, moment, rng, duration_s)
                    finished = process.poll() == 0
                    kill(process, pipeline, victim)
                    output = pipeline.output_path.read_text()[-4000:]
                    assert process.returncode in (0, -signal.SIGKILL) or (victim == "stage" and "killed by SIGKILL" in output), output
                    if not finished:
                        kills.pop()
                        num_kills += 1
                check_store(pipeline.store_root, content_ids)
                resumed += check_resumed(pipeline, saved, starts)
        finally:
            pipeline.kill_all()
        store = check_store(pipeline.store_root, content_ids)
        assert [artifact.ref for artifact in store.list()] == ["evaluation@v1", "ppo@v1", "rm@v1", "sft@v1"]
        assert not any(pipeline.store_root.glob(".staging/*")) and not any(pipeline.store_root.glob("runs/*/checkpoints"))
    return num_kills, resumed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_pipeline_killed_at_random_points_finishes_as_if_nothing_had_happened(make_pipeline, straight, tmp_path):
    assert set(straight[0]) == {stage.kind for name, stage in STAGES.items() if name not in ("pretrain", "sample")}
    directories = [tmp_path / f"chain-{number}" for number in range(NUM_CHAINS)]
    for directory in directories:
        directory.mkdir()
    # Starting a stage is mostly imports on one core, so two chains share the machine.
    with ThreadPoolExecutor(max_workers=2) as pool:
        chains = list(pool.map(run_chain, [make_pipeline] * NUM_CHAINS, [straight] * NUM_CHAINS, directories, range(NUM_CHAINS)))
    num_kills = sum(number for number, _ in chains)
    resumed = [step for _, steps in chains for step in steps]
    print(f"{num_kills} kills in {NUM_CHAINS} chains; a straight run took {straight[1]:.1f} s; started at steps {sorted(resumed)}")
    assert num_kills == 7 * NUM_CHAINS
    assert any(resumed), "no kill left a checkpoint to go on from"


def check_store(root, content_ids):
    """No damaged directory under a final name; what is published is what an undisturbed run publishes."""
    store = Store(root)
    assert [artifact.ref for artifact in store.list()] == store.refs()
    assert [problem for ref in store.refs() for problem in store.verify(ref)] == []
    for artifact in store.list():
        assert artifact.content_id == content_ids[artifact.kind]
    return store


def check_resumed(pipeline, saved, starts_before):
    """A run that was started again went on from its newest complete checkpoint; return those steps."""
    resumed = []
    for run, starts in pipeline.resumed_steps().items():
        # A run that begins anew forgets its old events.
        before = starts_before.get(run, [])
        for step in starts[len(before) :] if starts[: len(before)] == before else starts:
            assert step == saved.get(run, 0), (run, step, saved)
            resumed.append(step)
    return resumed
