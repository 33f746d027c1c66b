"""What only a GPU can show: that its branches compute what the CPU computes, how fast, and in how much memory.

    make gpu-check                       all parts, into tests/bench/results/gpu.md and gpu.json; eight to nine minutes on an H100
    make gpu-check GPU="rollout steps"   some of them, beside what is there of the others
    make gpu-check GPU=--pretend         all parts on a pretend GPU (ZeRO and the demo's plan on the CPU), at tiny sizes, into build/gpu/:
                                         to try this program without one

    parity     losses, gradients and log-probabilities of SFT, RM and PPO beside the CPU's in float32
    kernels    attention over spans, casts and memory in decoding, float32 and TF32
    models     what a GPU's models must not do (rows G1, G3, G12, G15 and G24 of tests/README.md)
    processes  what its processes must do: hand weights over, hash, stop, DDP, save by time (G10, G13, G2, G16, G17)
    steps      one step of SFT, RM and PPO at 134 M and 1.2 B weights: full, LoRA, QLoRA; tokens a second, MFU, peak memory
    zero2      the same under DeepSpeed on one process; only its peak memory
    zero3
    rollout    sampled tokens a second beside transformers' generate, and vLLM's where RLHF_TEST_VLLM names its program
    demo       the embedded demo in both precisions, held to its bands

Each part is a process of its own, which may take ten minutes. `steps` and `rollout` come first, each alone on the GPU: they measure speed.
Then the others run in three lanes beside each other; times that these tell (attention over spans, adapters' detour, hashing, weights
written) are hints. Where RLHF_TEST_VLLM names vLLM's program, `processes` runs
alone at the end. On a pretend GPU one part follows another.
What fails in a part is a line of its table, and the rest is measured.
What the machine cannot show (two processes without two GPUs, vLLM where none is named) is "not shown".
Exit code: 0, or 1 where a goal is missed, or 2 without a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pipeline.launch.environment import torch_settings
from stages.blocks import HardwareSettings
from stages.process.gpu import prepare_gpu
from tests.bench.protocol import ROOT
from tests.gpu.lanes import PARTS, Processes, arrange, run_turns
from tests.gpu.place import MODELS, Figure, Place, no_gpu
from tests.gpu.table import Parts, describe_gpu, holds, write_results
from tests.pretend_gpu import pretend_gpu

_ON_CPU = ("zero2", "zero3", "demo")  # with --pretend: DeepSpeed, and processes of their own, look for their devices themselves
_LIMIT_S = 600
_NO_GPU = 2


def main() -> int:
    """Run the parts that the command line names; the table is written anew after each."""
    arguments = parse_arguments()
    if not (arguments.pretend or torch.cuda.is_available()):
        print(
            "gpu-check: found no GPU that torch can use; needed: one; run it on a machine with one, or try it with --pretend",
            file=sys.stderr,
        )
        return _NO_GPU
    if arguments.into:
        return run_part(arguments.parts[0], arguments.into, pretend=arguments.pretend)
    path = ROOT / "build" / "gpu" / "gpu" if arguments.pretend else ROOT / "tests" / "bench" / "results" / "gpu"
    machine = describe_gpu(pretend=arguments.pretend)
    parts: Parts = read_results(path, machine)
    wanted, processes, writing = arguments.parts or PARTS, Processes(), threading.Lock()
    with tempfile.TemporaryDirectory() as models:

        def measure_part(name: str) -> None:
            into = path.with_name(f"gpu-{name}.json")
            found = start_part(name, into, models, processes, pretend=arguments.pretend)
            with writing:
                parts[name] = found
                write_results(path, machine, {each: parts[each] for each in PARTS if each in parts})

        run_turns(arrange(wanted, pretend=arguments.pretend), measure_part, processes)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"written: {path.relative_to(ROOT)}.md and .json")
    return 0 if holds({name: parts[name] for name in wanted}) else 1


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="See tests/gpu/__main__.py.")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--pretend", action="store_true", help="on a pretend GPU, at tiny sizes")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # run one part here, and leave its figures there
    return parser.parse_args()


def read_results(path: Path, machine: str) -> Parts:
    """Read what an earlier call on the same machine and versions left."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found["parts"] if found["machine"].rpartition(";")[0] == machine.rpartition(";")[0] else {}


def start_part(name: str, into: Path, models: str, processes: Processes, *, pretend: bool) -> dict[str, Any]:
    """Run a part as a process, which leaves its models in `models` for others; what it found before it failed counts."""
    into.parent.mkdir(parents=True, exist_ok=True)
    into.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.gpu", name, "--into", str(into), *(["--pretend"] if pretend else [])]
    environment = {**torch_settings(), **os.environ, "HF_HUB_OFFLINE": "1", MODELS: models}
    start = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        code = processes.run(command, _LIMIT_S, cwd=ROOT, env=environment)
        problem = f"it ended with exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        problem = f"it took more than {_LIMIT_S} s"
    figures = [json.loads(line) for line in into.read_text().splitlines()] if into.exists() else []
    into.unlink(missing_ok=True)
    return {"seconds": time.monotonic() - start, "problem": problem, "figures": figures}


def run_part(name: str, into: Path, *, pretend: bool) -> int:
    """Run a part in this process, and leave each of its figures as soon as it is there."""
    measure = find_measure(name)  # libraries are imported as they are where there is no GPU
    pretended = no_gpu() if name in _ON_CPU else pretend_gpu()
    with pretended if pretend else nullcontext() as gpu, into.open("w") as stream:
        prepare_gpu(HardwareSettings())  # before a tensor lies there: its allocator is settled then
        for figure in measure(Place(gpu)):
            stream.write(json.dumps(asdict(figure)) + "\n")
            stream.flush()
    return 0


def find_measure(name: str) -> Callable[[Place], Iterator[Figure]]:
    """Find what measures a part."""
    if name.startswith("zero"):
        return partial(import_module("tests.gpu.steps").measure_zero, stage=int(name[-1]))
    return import_module(f"tests.gpu.{name}").measure


if __name__ == "__main__":
    sys.exit(main())
