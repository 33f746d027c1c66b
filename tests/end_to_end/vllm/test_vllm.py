"""PPO with a real vLLM server on this machine's CPU; opt-in, by `make test-vllm`."""

import json
import os
import signal
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.waiting import wait_until

VLLM = os.environ.get("RLHF_TEST_VLLM")  # the program

pytestmark = [
    pytest.mark.skipif(VLLM is None, reason="needs vLLM in an environment of its own; run `make test-vllm`"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

ENGINE = ("--set", "ppo.rollout.engine=vllm", "--set", f"ppo.rollout.command=[{VLLM}]")
OPTIONS = ("--set", "ppo.rollout.options=[--enforce-eager, --gpu-memory-utilization, '0.2']")
LORA = ("--set", "ppo.lora.rank=4")
TWO = ("--set", "hardware.processes=2", "--set", "hardware.engine=deepspeed", "--set", "hardware.zero_stage=3")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """One store: SFT and RM are trained once."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture
def make_run(make_pipeline, directory):
    def make(*arguments):
        return make_pipeline(directory, *ENGINE, *OPTIONS, *arguments, VLLM_CPU_KVCACHE_SPACE="1")

    return make


def newest_metrics(pipeline):
    path = Store(pipeline.store_root).get("ppo").path / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("arguments", [LORA, (), (*LORA, *TWO)], ids=["lora", "all weights", "lora, ZeRO-3 on two processes"])
def test_the_server_samples_from_the_policy_as_it_is_now(make_run, arguments):
    pipeline = make_run(*arguments)
    pipeline.run()
    rows = [row for row in newest_metrics(pipeline) if "rollout/logprob_gap" in row]
    assert len(rows) == 6
    assert max(row["rollout/logprob_gap"] for row in rows) < 1e-5  # float32 on both sides
    assert max(row["objective/kl"] for row in rows) > 0.05  # the policy moved
    assert all(row["rollout/importance_capped"] == 0 and row["val/ratio_start_deviation"] < 1e-5 for row in rows)
    assert "Traceback" not in pipeline.output_path.read_text()


def test_a_server_that_dies_ends_the_run_with_a_message_and_the_next_run_goes_on(make_run):
    pipeline = make_run(*LORA, "--set", "ppo.iterations=40")
    process = pipeline.start()
    try:
        wait_until(lambda: any("ppo-" in run for run in pipeline.saved_steps()) or process.poll() is not None, 300)
        servers = [pid for pid in pipeline.processes() if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        assert servers, pipeline.output_path.read_text()
        os.kill(servers[0], signal.SIGKILL)
        assert process.wait(timeout=60) == 5
        assert "a server that answers is needed" in pipeline.output_path.read_text()
        wait_until(lambda: not pipeline.processes(), 10)
    finally:
        pipeline.kill_all()
    pipeline.run()
    (resumed,) = (steps for steps in pipeline.resumed_steps().values() if len(steps) == 2)
    assert resumed[1] > 0
