"""PPO with a real vLLM server on this machine's CPU; opt-in, by `make test-vllm`."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

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


@contextmanager
def serve(card, model):
    """Serve an export by the command of its card, a little faster to start."""
    (command,) = re.findall(r"vllm serve NAME.*", card)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(model) if word == "NAME" else word for word in shlex.split(command)[1:]]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen([VLLM, *words, "--enforce-eager", "--port", str(port)], env=environment, start_new_session=True)

    def answers():
        assert process.poll() is None
        with suppress(httpx2.TransportError):
            return httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200
        return False

    try:
        wait_until(answers, 600)
        yield lambda path, **body: httpx2.post(f"http://127.0.0.1:{port}{path}", json={"model": str(model), **body}, timeout=120).json()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def export(pipeline, kind, directory):
    command = [sys.executable, "-m", "pipeline.cli", "export", kind, str(directory), "--merge", "--store", str(pipeline.store_root)]
    subprocess.run(command, check=True, capture_output=True)
    return (directory / "README.md").read_text(), AutoTokenizer.from_pretrained(directory)


def test_exports_that_it_serves_by_the_lines_of_their_cards_say_and_score_the_same(make_run, tmp_path):
    pipeline = make_run(*LORA)
    pipeline.run()
    messages = [{"role": "user", "content": "Order: white shelf. Status: delivered. Day: Friday. Mark asks: where is it?"}]

    policy = tmp_path / "policy"
    card, tokenizer = export(pipeline, "ppo", policy)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    ids = AutoModelForCausalLM.from_pretrained(policy).generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :]
    with serve(card.replace("vllm serve NAME", "vllm serve NAME --dtype float32"), policy) as ask:
        said = ask("/v1/chat/completions", messages=messages, temperature=0, max_tokens=12)["choices"][0]["message"]["content"]
    assert said == tokenizer.decode(ids, skip_special_tokens=True) and said

    model = tmp_path / "rm"
    card, tokenizer = export(pipeline, "rm", model)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + "On its way." + tokenizer.eos_token
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    logit = AutoModelForSequenceClassification.from_pretrained(model).eval()(input_ids=ids).logits[0, 0].item()
    with serve(card, model) as ask:
        (found,) = ask("/classify", input=text, add_special_tokens=False, use_activation=False)["data"]
    assert found["probs"] == pytest.approx([logit], abs=1e-4)
