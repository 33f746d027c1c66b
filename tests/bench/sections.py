"""What is measured: each section starts its workers, has them take turns, and returns its cases as plain data for table.py.

A case is {"labels": {...}, "engines": {name: [figures of each turn]}}, with "facts" of the workers and what a table needs more.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.bench.floor import list_products, list_shapes
from tests.bench.protocol import Figures, Worker, take_turns
from tests.bench.trl_environment import ensure_trl_environment

Case = dict[str, Any]
PRECISIONS = ("float32", "bfloat16")
# Of a PPO update: a model of 34 M computes five times as long on a token as one of 6.9 M.
NUM_PROMPTS = {"tiny": 64, "small": 64, "wide": 16, "big": 16}
# Chance that a response ends at a token: at 0.025 the mean is 32 of 64 tokens; at 0 all are of full length.
PROFILES = {"half": 0.025, "full": 0.0}


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    sizes: tuple[str, ...]
    repeats: int
    threads: int
    quick: bool


def measure_ppo(options: Options) -> Iterator[Case]:
    """Measure PPO updates, ours and TRL 1.12.0's, and the floor under them."""
    python = ensure_trl_environment()
    for size in options.sizes:
        modes = (False, True) if size == "small" else (False,)  # compiled or not
        for profile in PROFILES if not options.quick else ["half"]:
            work = make_ppo_work(size, profile, options.quick)
            shapes = list(list_shapes(list_products(**describe_work(work))))
            with started(f"ppo {size} {profile}") as workers:
                for precision in PRECISIONS:
                    given = {"ppo": work, "precision": precision}
                    for compiled in modes:
                        workers[f"ours {precision} {compiled}"] = Worker("ppo_worker", given | {"compile": compiled}, options.threads)
                    workers[f"trl {precision}"] = Worker("trl_ppo_worker", given, options.threads, python)
                workers["floor"] = Worker("floor_worker", {"shapes": shapes}, options.threads)
                figures = take_turns(workers, options.repeats)
                facts = workers["floor"].facts
            for precision in PRECISIONS:
                for compiled in modes:
                    yield {
                        "labels": {"size": size, "answers": profile, "precision": precision, "ours compiled": "yes" if compiled else "no"},
                        "work": work,
                        "facts": facts,
                        "engines": {"trl": figures[f"trl {precision}"], "ours": figures[f"ours {precision} {compiled}"]},
                        "rates": [rate for turn in figures["floor"] for rate in turn["rates"] if rate["precision"] == precision],
                    }


def measure_rm(options: Options) -> Iterator[Case]:
    """Measure optimizer steps of the reward model on one prompt with K ranked answers."""
    for size in options.sizes:
        for answers in (2, 4, 9) if not options.quick else (4,):
            for precision in PRECISIONS if not options.quick else ("float32",):
                given = {"size": size, "answers": answers, "precision": precision, "prompt_tokens": 256, "answer_tokens": 128}
                labels = {"size": size, "K": answers, "precision": precision}
                yield _compare("rm_worker", given, "engine", ("trl", "trl at once", "ours"), options, labels)


def measure_sft(options: Options) -> Iterator[Case]:
    """Measure epochs of SFT on batches that TRL pads, on our unpadded ones, and on packed rows."""
    for size in options.sizes:
        for precision in PRECISIONS if not options.quick else ("float32",):
            given = {"size": size, "precision": precision, "demonstrations": 96 if not options.quick else 16}
            labels = {"size": size, "precision": precision}
            yield _compare("sft_worker", given, "engine", ("padded", "unpadded", "packed"), options, labels)


def measure_rollout(options: Options) -> Iterator[Case]:
    """Measure the sampling of one batch of responses."""
    for size in options.sizes:
        for profile in PROFILES if not options.quick else ["half"]:
            for precision in PRECISIONS if not options.quick else ("float32",):
                given = {"ppo": make_ppo_work(size, profile, options.quick), "precision": precision}
                labels = {"size": size, "answers": profile, "precision": precision}
                yield _compare("rollout_worker", given, "engine", ("generate", "ours"), options, labels)


def measure_lora(options: Options) -> Iterator[Case]:
    """Measure the memory of PPO with LoRA against that of SFT with LoRA, on one model."""
    for size in options.sizes:
        for precision in PRECISIONS if not options.quick else ("float32",):
            labels = {"size": size, "precision": precision}
            engines = ("four models", "one backbone", "sft")
            yield _compare("lora_worker", {"size": size, "precision": precision}, "engine", engines, options, labels)


def measure_scale(options: Options) -> Iterator[Case]:
    """Measure one process and two on the same work, each on one thread: without DeepSpeed, at ZeRO 2 and 3, and not knowing each other."""
    for size in options.sizes:
        for stage in ("sft", "rm", "ppo"):
            labels = {"size": size, "stage": stage, "precision": "float32"}
            engines = ("one", "ddp", "zero2", "zero3", "apart") if not options.quick else ("one", "zero2", "apart")
            given = {"size": size, "stage": stage, "precision": "float32"}
            yield _compare("scale_worker", given, "engine", engines, options, labels)


def make_ppo_work(size: str, profile: str, quick: bool) -> Figures:
    """Say what one update works on: the fields of workload.PPOWork."""
    return {
        "size": size,
        "hazard": PROFILES[profile],
        "num_prompts": 8 if quick else NUM_PROMPTS[size],
        "min_prompt_tokens": 16,
        "max_prompt_tokens": 64,
        "max_new_tokens": 32 if quick else 64,
        "ppo_epochs": 4,
    }


def describe_work(work: Figures, prompt_tokens: int | None = None, response_tokens: int | None = None) -> dict[str, Any]:
    """Give floor.list_products its arguments; token counts that are not yet known are expected ones, which fix the measured shapes."""
    expected_prompt = work["num_prompts"] * (work["min_prompt_tokens"] + work["max_prompt_tokens"]) // 2
    hazard, longest = work["hazard"], work["max_new_tokens"]
    expected_response = (1 - (1 - hazard) ** longest) / hazard if hazard else longest
    return {
        "size": work["size"],
        "num_prompts": work["num_prompts"],
        "prompt_tokens": prompt_tokens or expected_prompt,
        "response_tokens": response_tokens or round(work["num_prompts"] * expected_response),
        "max_new_tokens": longest,
        "ppo_epochs": work["ppo_epochs"],
    }


@contextmanager
def started(what: str) -> Iterator[dict[str, Worker]]:
    """Hold workers that are put into the dictionary, and close them in the end."""
    print(f"measuring {what}", file=sys.stderr, flush=True)
    workers: dict[str, Worker] = {}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def _compare(
    module: str, given: Figures, key: str, engines: tuple[str, ...] | dict[str, Any], options: Options, labels: dict[str, Any]
) -> Case:
    """Have workers that differ in `key` take turns."""
    values = engines if isinstance(engines, dict) else {engine: engine for engine in engines}
    with started(f"{module.removesuffix('_worker')} {' '.join(map(str, labels.values()))}") as workers:
        for engine, value in values.items():
            workers[engine] = Worker(module, given | {key: value}, options.threads)
        figures = take_turns(workers, options.repeats)
        facts = next(iter(workers.values())).facts
    return {"labels": labels, "facts": facts, "engines": figures}
