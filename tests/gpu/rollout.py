"""Sampled tokens a second: ours with and without a graph, transformers' `generate` and its continuous batching, and vLLM's.

vLLM's program is named by RLHF_TEST_VLLM. Where continuous batching is faster than ours, it is what decoding should go by on a GPU. What a
graph says of the tokens it samples is compared with what the trainer will say of them.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from stages.models.policy import load_policy
from stages.models.precision import autocast
from stages.ppo.actor_critic import Actor
from stages.responses.generation import can_graph, generate_responses
from stages.responses.graphs import tell_once
from stages.responses.rollout import pack_rollout
from stages.responses.sampling import Response
from tests.bench.workload import EOS, PAD, PPOWork, add_biased_head, make_plain_policy, make_prompts
from tests.gpu.place import Figure, Place, at_most, attempt, free_memory, make_hardware, measure_s, not_shown, peak_memory
from tests.gpu.steps import find_models

_GOAL = 0.6  # of vLLM's speed
_FEW = 8  # tokens of transformers' unmeasured call: it keeps nothing for the next, where ours keeps graphs for all numbers of columns
_GAP = 2e-2  # nats: of bfloat16's rounding on average; a graph that reads a wrong column makes tenths
_COMPARED = 16  # responses, whose logits a GPU has room for
_LAUNCHED = ("stages.responses.generation.can_graph", lambda model: False)
# Run by vLLM's own Python: the model's directory and prompts from a file, tokens a second to standard output.
_VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
given = json.load(open(sys.argv[1]))
model = LLM(given["model"], dtype="bfloat16", skip_tokenizer_init=True, max_model_len=given["longest"], gpu_memory_utilization=0.6)
sampling = SamplingParams(temperature=1.0, max_tokens=given["tokens"], ignore_eos=True, detokenize=False)
prompts = [{"prompt_token_ids": ids} for ids in given["prompts"]]
for _ in range(2):
    start = time.perf_counter()
    outputs = model.generate(prompts, sampling)
    seconds = time.perf_counter() - start
print("tokens a second:", sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)
"""


def measure(place: Place) -> Iterator[Figure]:
    """Measure a small model with few rows and a large one with many; every response has all its tokens."""
    hardware = make_hardware("bfloat16")
    for size, rows in place.choose((("wide", 64), ("1b", 256)), (("tiny", 4),)):
        policy, case = load_policy(find_models(size)["sft"], hardware), f"{size}, {rows} rows"
        add_biased_head(policy, 0.0)
        policy.to("cuda").eval()
        yield from attempt(case, _measure_rows(place, policy, size, rows, case))


def _measure_rows(place: Place, policy: Any, size: str, rows: int, case: str) -> Iterator[Figure]:
    work = PPOWork(size, 0.0, rows, place.choose(64, 4), place.choose(256, 8), place.choose(256, 24), 1)
    prompts, seeds = make_prompts(work), itertools.count()
    sample_ours = partial(_sample_ours, policy, prompts=prompts, seeds=seeds)
    with peak_memory() as read_peak:
        ours = _rate(work, sample_ours)
        yield Figure(case, "ours", ours, "tokens/s")
        yield Figure(case, "peak memory", read_peak()[0], "GiB")
    with patch(*_LAUNCHED):
        launched = _rate(work, sample_ours)
    yield Figure(case, "ours, without a graph", launched, "tokens/s")
    yield place.reach(case, "with / without a graph", ours / launched, 1.0)
    yield from attempt(f"{case}, graph", _compare(policy, work, prompts, f"{case}, graph"))
    theirs = _rate(work, partial(_sample_transformers, policy, prompts=prompts), _FEW)
    yield Figure(case, "transformers' generate", theirs, "tokens/s")
    yield place.reach(case, "ours / generate", ours / theirs, 1.0)
    if size == "wide":  # a minute at 1.2 B; it computes in a thread of its own, which knows nothing of a pretend GPU
        yield from attempt(f"{case}, continuous batching", _measure_batched(size, work, prompts, case, ours))
    if vllm := os.environ.get("RLHF_TEST_VLLM"):
        free_memory()
        found = _run_vllm(vllm, size, work, prompts)
        yield Figure(case, "vLLM", found, "tokens/s")
        yield place.reach(case, "ours / vLLM", ours / found, _GOAL)
    else:
        yield not_shown(f"{case}, vLLM", "it needs vLLM's program, named by RLHF_TEST_VLLM")


def _compare(policy: Any, work: PPOWork, prompts: list[list[int]], case: str) -> Iterator[Figure]:
    captured = can_graph(policy) and not tell_once.cache_info().currsize
    yield Figure(case, "steps are captured", float(captured), "", "1", captured)
    found = _sample_ours(policy, work, prompts, itertools.repeat(0))[:_COMPARED]
    ids, logprobs = [response.ids for response in found], [response.logprobs for response in found]
    rollout = pack_rollout(prompts[: len(ids)], ids, [False] * len(ids), PAD, torch.device("cuda"), logprobs)
    with torch.no_grad():
        logprobs_K, _ = Actor(policy)(*rollout.pack(), 1.0)
    gap_BR = (rollout.unpack(logprobs_K) - rollout.engine_logprobs_BR).abs()
    gap = float(gap_BR.sum() / rollout.response_mask_BR.sum())
    yield at_most(case, "rollout and trainer apart, nats a token", gap, _GAP)


def _measure_batched(size: str, work: PPOWork, prompts: list[list[int]], case: str, ours: float) -> Iterator[Figure]:
    free_memory()
    model = make_plain_policy(size, 0, "cuda")
    add_biased_head(model, 0.0)
    model.to("cuda", torch.bfloat16).eval()
    batched = _rate(work, partial(sample_batched, model, prompts=prompts), _FEW)
    yield Figure(case, "transformers' continuous batching", batched, "tokens/s")
    yield Figure(case, "ours / continuous batching", ours / batched, "x")


def _rate(work: PPOWork, sample: Callable[[PPOWork], Any], tokens_before: int | None = None) -> float:
    sample(replace(work, max_new_tokens=tokens_before or work.max_new_tokens))
    return work.num_prompts * work.max_new_tokens / measure_s(lambda: sample(work))


def _sample_ours(policy: Any, work: PPOWork, prompts: list[list[int]], seeds: Iterator[int]) -> list[Response]:
    rows = {"max_new_tokens": work.max_new_tokens, "max_rows": len(prompts)}
    return generate_responses(policy, prompts, stop_token_ids={EOS}, seed=next(seeds), **rows)


@torch.no_grad()
def _sample_transformers(policy: Any, work: PPOWork, prompts: list[list[int]]) -> None:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts], device="cuda")
    config = GenerationConfig(max_new_tokens=work.max_new_tokens, do_sample=True, top_k=0, eos_token_id=EOS, pad_token_id=PAD)
    with autocast(policy.base_model, ids.device):
        policy.generate(input_ids=ids, attention_mask=(ids != PAD).long(), generation_config=config)


def sample_batched(model: Any, work: PPOWork, prompts: list[list[int]], **limits: Any) -> None:
    """Sample by transformers' continuous batching; a model of its own classes, on a CPU too; without limits in all free memory."""
    config = GenerationConfig(max_new_tokens=work.max_new_tokens, do_sample=True, top_k=0, eos_token_id=EOS, pad_token_id=PAD)
    batching = ContinuousBatchingConfig(**limits)
    answers = model.generate_batch(prompts, generation_config=config, continuous_batching_config=batching)
    found = [len(answer.generated_tokens) for answer in answers.values()]
    if found != [work.max_new_tokens] * len(prompts):
        raise RuntimeError(f"continuous batching made {found} tokens; needed {work.max_new_tokens} for each of {len(prompts)} prompts")


def _run_vllm(program: str, size: str, work: PPOWork, prompts: list[list[int]]) -> float:
    with tempfile.TemporaryDirectory() as directory:
        make_plain_policy(size, seed=0).to(torch.bfloat16).save_pretrained(directory)
        given = Path(directory) / "given.json"
        longest = max(map(len, prompts)) + work.max_new_tokens
        given.write_text(json.dumps({"model": directory, "prompts": prompts, "tokens": work.max_new_tokens, "longest": longest}))
        python = Path(program).with_name("python")
        done = subprocess.run([str(python), "-c", _VLLM, str(given)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        return float("nan")
    return float(done.stdout.rpartition("tokens a second:")[2])
