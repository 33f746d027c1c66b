"""What each of two processes holds while it loads a policy and puts an adapter on it: at ZeRO stage 3 a share of it and one weight.

    python -P -m tests.bench.load_memory wide        a size of tests.bench.sizes, its file in bfloat16; on the CPU, over gloo

Private memory (anonymous, by /proc/self/smaps_rollup, of which a file that is mapped is no part), above what it was before loading.
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

_SAMPLE_S = 0.01


def main() -> None:
    """Write the model, start two processes that load it, and print what they held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--stage", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_model(arguments.size, Path(directory))
        program = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__, directory]
        environment = os.environ | {"LOAD_MEMORY": json.dumps(vars(arguments)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, *program], env=environment, check=True)


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
    """Load in one of the processes; leaves its figures on standard output."""
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
    with watch_private() as read_peak:
        model = load_policy(str(directory), hardware, engine=choose_engine(context))
        adapted = apply_lora(model, lora, "CAUSAL_LM", hardware)
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
    print(json.dumps(figures), flush=True)
    leave()
    sys.stdout.flush()
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
    return 1024 * int(re.findall(r"^Anonymous: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)[0])


if __name__ == "__main__":
    if "LOAD_MEMORY" in os.environ and "RANK" in os.environ:
        load(Path(sys.argv[1]))
    else:
        main()
