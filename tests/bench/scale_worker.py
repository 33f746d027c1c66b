"""One optimizer step of SFT or RM, or one PPO update, per "go", by one process or several that share the work.

The first process starts the others and passes each "go" on to them. `apart` is the machine's own ceiling: two processes that know nothing
of one another, each with half of the work.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from data.tokens import EncodedComparison
from stages.blocks import HardwareSettings, TokenSettings
from stages.process.context import StageContext
from stages.process.distributed import join
from stages.process.engine import choose_engine
from stages.settings import RMSettings, SFTSettings
from stages.trl.rm import make_ranking_trainer
from stages.trl.sft import make_sft_trainer
from tests.bench.our_models import open_policy, open_reward_model
from tests.bench.ppo_worker import build_trainer, make_settings, open_models
from tests.bench.protocol import ROOT, Bench, Instant, Worker
from tests.bench.rm_worker import make_comparisons
from tests.bench.sft_worker import make_demonstrations
from tests.bench.stage_context import make_context
from tests.bench.workload import PPOWork, make_tokenizer

_ENGINES: dict[str, dict[str, Any]] = {
    "one": {},
    "apart": {},
    "ddp": {"engine": "ddp", "processes": 2},
    "zero2": {"engine": "deepspeed", "zero_stage": 2, "processes": 2},
    "zero3": {"engine": "deepspeed", "zero_stage": 3, "processes": 2},
}
_DIRECTORY = "RLHF_BENCH_DIRECTORY"  # which all processes of a stage share
_TOKENS = TokenSettings(max_prompt_tokens=256, max_response_tokens=192)
_QUIET = {"epochs": 10_000, "save_every": 10**9, "log_every": 10**9}


def start_others(processes: int, directory: str) -> list[subprocess.Popen[bytes]]:
    """Make this the first of several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), _DIRECTORY: directory}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    started: list[subprocess.Popen[bytes]] = []
    for rank in range(1, processes):
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "tests.bench.scale_worker", sys.argv[1]]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=2))
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    return started


class Gate:
    """Where every process waits for the next "go", and what the first one answers."""

    def __init__(self, bench: Bench | None, other: Worker | None) -> None:
        self.bench = bench
        self.other = other
        self.start = Instant.now()
        self.waiting: threading.Thread | None = None

    def wait(self) -> None:
        """Wait for the bench; then all begin together."""
        if self.bench is not None:
            self.bench.wait_for_go()
        if distributed.is_initialized():
            distributed.broadcast(torch.zeros(1), 0)
        if self.other is not None:
            self.waiting = threading.Thread(target=self.other.go)
            self.waiting.start()
        self.start = Instant.now()

    def answer(self) -> None:
        """Tell the bench how long it took until all were done."""
        if self.waiting is not None:
            self.waiting.join()
        if distributed.is_initialized():
            distributed.barrier()
        if self.bench is not None:
            self.bench.reply(phases={"total": self.start.until(Instant.now())})


class _AtEachStep(TrainerCallback):
    def __init__(self, gate: Gate, say_ready: Callable[[], None]) -> None:
        self.gate = gate
        self.say_ready = say_ready

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.say_ready()
        self.gate.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.gate.answer()
        self.gate.wait()


def make_scale_hardware(given: dict[str, Any]) -> HardwareSettings:
    """Describe the given engine."""
    return HardwareSettings.model_validate({"device": "cpu", "precision": given["precision"], "threads": 1} | _ENGINES[given["engine"]])


def join_stage(given: dict[str, Any], settings: Any, directory: Path) -> StageContext:
    """Make the context of a stage, and join the others; after the models are made, since transformers then writes in one process only."""
    context = make_context(given["stage"], settings, _TOKENS, given["precision"], directory, hardware=make_scale_hardware(given))
    join(context)
    return context


def serve_sft_or_rm(given: dict[str, Any], directory: Path, gate: Gate, say_ready: Callable[[], None]) -> None:
    """Serve optimizer steps on 32 demonstrations, or on 8 comparisons of 4 answers."""
    share = 2 if given["half"] else 1
    if given["stage"] == "sft":
        settings = SFTSettings(batch_size=32 // share, micro_batch_size=16, **_QUIET)
        policy = open_policy(given["size"], 0.025, make_scale_hardware(given))
        context = join_stage(given, settings, directory)
        pairs = make_demonstrations(given["size"], 96)
        trainer: Any = make_sft_trainer(context, settings, policy, make_tokenizer(given["size"]), pairs, [])
    else:
        settings = RMSettings(batch_size=8 // share, micro_batch_size=4, **_QUIET)
        model = open_reward_model(given["size"], 1, make_scale_hardware(given))
        context = join_stage(given, settings, directory)
        comparisons: list[EncodedComparison] = make_comparisons(given["size"], 4, 96, 64)
        trainer = make_ranking_trainer(context, settings, model, make_tokenizer(given["size"]), comparisons, [])
    trainer.add_callback(_AtEachStep(gate, say_ready))
    trainer.train()


def serve_ppo(given: dict[str, Any], directory: Path, gate: Gate, say_ready: Callable[[], None]) -> None:
    """Serve PPO updates on 64 prompts."""
    work = PPOWork(given["size"], 0.025, 32 if given["half"] else 64, 16, 64, 64, ppo_epochs=2)
    hardware = make_scale_hardware(given)
    models = open_models(work, hardware)
    context = join_stage(given, make_settings(work), directory)
    trainer = build_trainer(work, models, choose_engine(context))
    say_ready()
    while True:
        gate.wait()
        trainer.step()
        gate.answer()


def main() -> None:
    """Serve until the bench closes the line."""
    given = json.loads(sys.argv[1])
    processes, is_first = _ENGINES[given["engine"]].get("processes", 1), "RANK" not in os.environ
    bench = Bench() if is_first else None
    given.setdefault("half", given["engine"] == "apart")
    other = Worker("scale_worker", given | {"engine": "one"}, 1) if given["engine"] == "apart" else None
    serve = serve_ppo if given["stage"] == "ppo" else serve_sft_or_rm
    with tempfile.TemporaryDirectory() as directory:
        others = start_others(processes, directory) if is_first and processes > 1 else []
        try:
            serve(given, Path(os.environ.get(_DIRECTORY, directory)), Gate(bench, other), bench.say_ready if bench else lambda: None)
        finally:
            for process in others:
                process.kill()
            if other is not None:
                other.close()


if __name__ == "__main__":
    main()
