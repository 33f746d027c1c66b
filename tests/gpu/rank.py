"""Run by processes.py on each rank: stops that reach ranks a step apart, a checkpoint of all of them, two steps of SFT under DDP.

python -m torch.distributed.run ... -m tests.gpu.rank '{"directory": ..., "device": "cuda", "size": "small", "processes": 2}'

A rank alone, on a machine with one GPU, has nobody to stop with; it trains under DDP and NCCL all the same.
"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from stages.blocks import TokenSettings
from stages.process.checkpoint import latest_complete, save_checkpoint
from stages.process.context import StageContext
from stages.process.distributed import join
from stages.process.ranks import join_ranks
from stages.process.step_end import StepEnd
from stages.settings import SFTSettings
from tests.bench.our_models import open_policy
from tests.bench.stage_context import make_context
from tests.gpu.models import flatten_weights, train_two_steps
from tests.gpu.place import begin_anew, make_hardware

_STOP = 3  # the step of rank 0's signal; each other rank's comes a step later


def main(directory: Path, device: str, size: str, processes: int) -> dict[str, Any]:
    """Do all of it; returns what was found, alike on all ranks but for `walks`."""
    hardware = make_hardware("float32", device=device, engine="ddp", processes=processes)
    settings = SFTSettings(epochs=1, batch_size=8, micro_batch_size=4, save_every=10**9, log_every=10**9)
    tokens = TokenSettings(max_prompt_tokens=128, max_response_tokens=192)
    context = make_context("sft", settings, tokens, "float32", directory, hardware=hardware)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    policy = open_policy(size, 0.025, hardware)  # while each is alone: of several, transformers has the first one write
    found: dict[str, Any] = {}
    if processes > 1:
        join(context)
        found = {"stops": stop_apart(context), "whole": save_together(context)}
        wraps: Any = nullcontext()
    else:  # our stages make no group of one, and accelerate would not wrap a model for one
        wraps = patch.object(Accelerator, "multi_device", True)
        distributed.init_process_group("nccl", device_id=torch.device("cuda", 0))
    begin_anew()
    with wraps:
        trainer = train_two_steps("sft", size, StageContext(context.spec), policy)
    wrapped = trainer.model_wrapped
    if not isinstance(wrapped, DistributedDataParallel):
        raise RuntimeError(f"found {type(wrapped).__name__}; needed DistributedDataParallel around the model")
    if distributed.get_rank() == 0:
        torch.save(flatten_weights(trainer.model), directory / "weights.pt")
    return found | {"walks": wrapped.find_unused_parameters}


def stop_apart(context: StageContext) -> list[int]:
    """Signal each rank at a step of its own; returns the steps at which they stop."""
    context.install_signal_handlers()
    step_end, stop, step = StepEnd(context, None), False, 0
    context._stopping_at_step_end = True
    while not stop and step < 10:
        step += 1
        if step == _STOP + context.rank:
            os.kill(os.getpid(), signal.SIGTERM)
        stop, _ = step_end.decide()
    return join_ranks(context).gather([step])


def save_together(context: StageContext) -> bool:
    """Save a checkpoint to which each rank adds a file of the GPU's numbers; returns whether it is whole."""
    ranks, directory = join_ranks(context), context.spec.checkpoint_dir

    def write(path: Path) -> None:
        torch.save(torch.randn(2**20, device=ranks.device), path / f"rank-{ranks.index}.pt")
        ranks.wait()

    path = save_checkpoint(directory, 1, write, is_main=ranks.is_main, wait_for_everyone=ranks.wait)
    return latest_complete(directory) == (path, 1) and len(list(path.glob("rank-*.pt"))) == ranks.count


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = main(Path(given["directory"]), given["device"], given["size"], given["processes"])
    if distributed.get_rank() == 0:
        (Path(given["directory"]) / "found.json").write_text(json.dumps(found))
    distributed.barrier()
    os._exit(0)  # what libraries do at the end of a process of many is of no interest here
