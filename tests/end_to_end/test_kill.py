"""F2: `kill -9` of the whole pipeline at random points. Nothing invalid is ever visible, nothing stays alive, nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store import Store
from stages.spec import STAGES

ROOT = Path(__file__).parents[2]
NUM_CHAINS = 4  # of seven kills each
MARKER = "RLHF_KILL_TEST"

RECIPE = """
name: kill
seed: 5
base_model: {base}
data:
  demonstrations: {{train: {data}/demonstrations.train.jsonl, eval: {data}/demonstrations.eval.jsonl}}
  comparisons: {{train: {data}/comparisons.train.jsonl, eval: {data}/comparisons.eval.jsonl}}
  prompts: {{train: {data}/prompts.train.jsonl, eval: {data}/prompts.eval.jsonl}}
tokens: {{max_prompt_tokens: 96, max_response_tokens: 64}}
hardware: {{device: cpu, precision: float32, attention: eager, threads: 1}}
sft: {{epochs: 2, batch_size: 8, micro_batch_size: 8, learning_rate: 1e-3, save_every: 2, log_every: 2, eval_samples: 4}}
rm: {{epochs: 2, batch_size: 8, micro_batch_size: 8, learning_rate: 5e-4, save_every: 2, log_every: 2}}
ppo:
  iterations: 6
  rollout_batch_size: 8
  rollout_micro_batch_size: 8
  minibatch_size: 4
  max_tokens_per_microbatch: 512
  ppo_epochs: 2
  learning_rate: 1e-3
  max_response_tokens: 8
  save_every: 1
  eval_every: 3
  eval_samples: 4
"""


class Pipeline:
    """`rlhf run` of a tiny recipe on one store, started as often as the test likes."""

    def __init__(self, recipe, directory):
        self.store_root = directory / "store"
        self.output_path = directory / "output.txt"
        self.marker = uuid.uuid4().hex
        self._command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--store", str(self.store_root)]

    def start(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), MARKER: self.marker}
        with self.output_path.open("ab") as output:
            return subprocess.Popen(self._command, stdout=output, stderr=output, env=environment, cwd=self.store_root.parent)

    def run(self):
        process = self.start()
        try:
            exit_code = process.wait(timeout=180)
        finally:
            self.kill_all()
        assert exit_code == 0, self.output_path.read_text()[-4000:]

    def processes(self):
        """Ids of living processes that descend from a start, or that name the store on their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    marked = f"{MARKER}={self.marker}".encode() in (entry / "environ").read_bytes().split(b"\0")
                    if marked or os.fsencode(self.store_root) in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def kill_all(self):
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def saved_steps(self):
        """Newest step of each run that the disk holds a complete checkpoint of."""
        steps = {}
        for path in self.store_root.glob("runs/*/checkpoints/*/COMPLETE.json"):
            run = path.parents[2].name
            steps[run] = max(steps.get(run, 0), json.loads(path.read_text())["step"])
        return steps

    def resumed_steps(self):
        """Steps from which each run was started so far."""
        steps = {}
        for path in self.store_root.glob("runs/*/events.jsonl"):
            for line in path.read_text().splitlines():
                with suppress(ValueError):  # a kill can tear a line
                    event = json.loads(line)
                    if event["event"] == "start":
                        steps.setdefault(path.parent.name, []).append(event["resumed_step"])
        return steps


@pytest.fixture(scope="module")
def recipe(demo_dir, base_model_dir, tmp_path_factory):
    """A recipe with 48 records of a kind: 12 SFT steps, 12 RM steps, 6 PPO iterations."""
    directory = tmp_path_factory.mktemp("kill-recipe")
    for path in demo_dir.glob("*.jsonl"):
        lines = path.read_text().splitlines()[: 8 if path.stem.endswith("eval") else 48]
        (directory / path.name).write_text("\n".join(lines) + "\n")
    path = directory / "kill.yaml"
    path.write_text(RECIPE.format(base=base_model_dir, data=directory))
    return path


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory):
    """Content ids, and seconds, of a run that nobody disturbs."""
    pipeline = Pipeline(recipe, tmp_path_factory.mktemp("straight"))
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


def run_chain(recipe, straight, directory, seed):
    """Kill and start again until all kills are spent, then let it finish; return the number of kills and the steps gone on from."""
    content_ids, duration_s = straight
    rng = random.Random(seed)
    kills = [("time", "orchestrator")] * 3 + [(moment, "orchestrator") for moment in ("checkpoint", "result", "publish")]
    kills.append((rng.choice(["time", "checkpoint"]), "stage"))
    rng.shuffle(kills)
    num_kills, resumed = 0, []
    while kills:
        store_number = len(list(directory.iterdir()))
        (directory / str(store_number)).mkdir()
        pipeline = Pipeline(recipe, directory / str(store_number))
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
        assert [artifact.ref for artifact in store.list()] == ["ppo@v1", "rm@v1", "sft@v1"]
        assert not any(pipeline.store_root.glob(".staging/*")) and not any(pipeline.store_root.glob("runs/*/checkpoints"))
    return num_kills, resumed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_pipeline_killed_at_random_points_finishes_as_if_nothing_had_happened(recipe, straight, tmp_path):
    assert set(straight[0]) == set(STAGES)
    directories = [tmp_path / f"chain-{number}" for number in range(NUM_CHAINS)]
    for directory in directories:
        directory.mkdir()
    # Starting a stage is mostly imports on one core, so two chains share the machine.
    with ThreadPoolExecutor(max_workers=2) as pool:
        chains = list(pool.map(run_chain, [recipe] * NUM_CHAINS, [straight] * NUM_CHAINS, directories, range(NUM_CHAINS)))
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
