"""A tiny recipe of three stages, and a pipeline that a test may start, kill and start again."""

import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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

    def __init__(self, recipe, directory, environment, *arguments):
        self.store_root = directory / "store"
        self.output_path = directory / "output.txt"
        self.marker = uuid.uuid4().hex
        self.warm_path = environment.get("RLHF_TEST_WARM")  # what its stages are forked by
        self._command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--store", str(self.store_root), *arguments]
        self._environment = environment

    def start(self):
        environment = {**self._environment, MARKER: self.marker}
        with self.output_path.open("ab") as output:
            return subprocess.Popen(self._command, stdout=output, stderr=output, env=environment, cwd=self.store_root.parent)

    def run(self):
        process = self.start()
        try:
            exit_code = process.wait(timeout=300)
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


@pytest.fixture(scope="session")
def recipe(demo_dir, base_model_dir, tmp_path_factory):
    """A recipe with 48 records of a kind: 12 SFT steps, 12 RM steps, 6 PPO iterations."""
    directory = tmp_path_factory.mktemp("kill-recipe")
    for path in demo_dir.glob("*.jsonl"):
        lines = path.read_text().splitlines()[: 8 if path.stem.endswith("eval") else 48]
        (directory / path.name).write_text("\n".join(lines) + "\n")
    path = directory / "kill.yaml"
    path.write_text(RECIPE.format(base=base_model_dir, data=directory))
    return path


@pytest.fixture(scope="session")
def make_pipeline(recipe, warm_start):
    """make_pipeline(directory, *arguments of `rlhf run`, warm=False, **environment); warm: its stages start with their imports done."""

    def make(directory, *arguments, warm=False, **environment):
        directory.mkdir(exist_ok=True)
        start = warm_start() if warm else {**os.environ, "PYTHONPATH": str(ROOT)}
        return Pipeline(recipe, directory, start | environment, *arguments)

    return make
