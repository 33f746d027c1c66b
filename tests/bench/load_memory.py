"""What each of two processes holds while it loads a policy and puts an adapter on it: at ZeRO stage 3 a share of it and one weight.

    python -P -m tests.bench.load_memory wide        a size of tests.bench.sizes, its file in bfloat16; on the CPU, over gloo

Private memory (RssAnon of /proc/self/status), above what it was before, when a tiny model was loaded for the imports. It has what was
freed and was not given back, and no page of a mapped file (RssFile): the system takes those whenever it needs them.
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.launch.environment import allocator_settings

_SAMPLE_S = 0.002


def main() -> None:
    """Print what two processes held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--stage", type=int, default=3)
    arguments = parser.parse_args()
    for figures in measure(arguments.size, precision=arguments.precision, stage=arguments.stage):
        print(json.dumps(figures))


def measure(size: str, *, precision: str = "bfloat16", stage: int = 3) -> list[dict[str, float]]:
    """Write the model, have two processes load it as those of a stage would; returns the figures of each."""
    with tempfile.TemporaryDirectory() as directory:
        for name in (size, "tiny"):
            write_model(name, Path(directory) / name)
        program = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__, str(Path(directory) / size)]
        given = {"LOAD_MEMORY": json.dumps({"precision": precision, "stage": stage}), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **allocator_settings(), **given}
        done = subprocess.run([sys.executable, *program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return [json.loads(path.read_text()) for path in sorted(Path(directory).glob("figures-*.json"))]


def write_model(size: str, directory: Path) -> None:
    """Write a model of zeros."""
    import torch

    from tests.bench.workload import make_plain_policy

    with torch.device("meta"):
        model = make_plain_policy(size, seed=0)
    model.to(torch.bfloat16).to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.zero_()
    model.save_pretrained(directory)


def load(directory: Path) -> None:
    """Load in one of the processes; leaves its figures beside the model."""
    from stages.blocks import LoRASettings, TokenSettings
    from stages.models.adapters import apply_lora
    from stages.models.policy import load_policy
    from stages.process.distributed import join, leave
    from stages.process.engine import choose_engine
    from stages.settings import SFTSettings
    from tests.bench.our_models import make_hardware
    from tests.bench.stage_context import make_context

    given = json.loads(os.environ["LOAD_MEMORY"])
    hardware = make_hardware(given["precision"], engine="deepspeed", zero_stage=given["stage"], processes=2)
    lora = LoRASettings(rank=16)
    context = make_context("sft", SFTSettings(lora=lora), TokenSettings(), given["precision"], directory, hardware=hardware)
    join(context)

    def open_adapted(path: Path) -> Any:
        model = load_policy(str(path), hardware, engine=choose_engine(context))
        return apply_lora(model, lora, "CAUSAL_LM", hardware)

    open_adapted(directory.with_name("tiny"))
    with watch_private() as read_peak:
        adapted = open_adapted(directory)
        peak = read_peak()
    weights = [getattr(weight, "ds_numel", weight.numel()) for weight in adapted.parameters()]
    held = [getattr(weight, "ds_tensor", weight) for weight in adapted.parameters()]
    figures = {
        "rank": context.rank,
        "weights": sum(weights),
        "largest": max(weights),
        "held_mb": sum(each.numel() * each.element_size() for each in held) / 1e6,
        "peak_mb": peak / 1e6,
    }
    directory.with_name(f"figures-{context.rank}.json").write_text(json.dumps(figures))
    leave()
    os._exit(0)


@contextmanager
def watch_private() -> Iterator[Callable[[], int]]:
    """Inside, watch this process's private memory; gives what reads how far it has grown at the most, in bytes."""
    gc.collect()
    before, peak, done = read_private(), [0], threading.Event()

    def look() -> int:
        peak[0] = max(peak[0], read_private() - before)
        return peak[0]

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield look
    finally:
        done.set()
        watcher.join()


def read_private() -> int:
    """Read the bytes of this process's private memory."""
    return 1024 * int(re.findall(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0])


if __name__ == "__main__":
    if "LOAD_MEMORY" in os.environ and "RANK" in os.environ:
        load(Path(sys.argv[1]))
    else:
        main()
