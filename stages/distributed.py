"""The processes of a stage: by which engine they compute together, and how they notice that one of them is gone.

torchrun starts WORLD_SIZE processes -> join(context) -> collectives, a heartbeat between them -> leave()
"""

import datetime
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import distributed

from stages.checkpoint import WHOLE, latest_complete
from stages.deepspeed_config import make_deepspeed_config
from stages.runtime import StageContext, StageError, uses_gpu
from stages.spec import EXIT_FAILED, EXIT_USAGE

Found = TypeVar("Found")
Engine = Literal["none", "ddp", "deepspeed"]

_COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)  # one rank may load, merge or write 100s of GB; the heartbeat finds the dead
_BEAT_S = 2.0
_SILENCE_S = 30.0  # after which a rank counts as gone
_START_S = 300.0  # within which every rank's first beat must come


def choose_engine(context: StageContext) -> Engine:
    """Say by which engine the stage's processes compute together."""
    hardware, world_size = context.spec.hardware, context.world_size
    wants_zero = hardware.engine == "deepspeed" or (hardware.engine == "auto" and world_size > 1 and uses_gpu(context))
    if wants_zero and hardware.zero_stage > 0:
        return "deepspeed"
    return "ddp" if world_size > 1 else "none"


def choose_zero3(context: StageContext) -> dict[str, Any] | None:
    """Make DeepSpeed's configuration where weights are shared out over the processes (ZeRO stage 3); None where each has them whole."""
    hardware = context.spec.hardware
    if choose_engine(context) != "deepspeed" or hardware.zero_stage < 3:
        return None
    return make_deepspeed_config(hardware, max_grad_norm=context.spec.settings.max_grad_norm)


def describe_layout(context: StageContext) -> str:
    """Name how the stage's checkpoints are laid out: one can be resumed only where this is the same."""
    if choose_engine(context) == "deepspeed":
        return f"ZeRO stage {context.spec.hardware.zero_stage} on {context.world_size} processes"
    return WHOLE


def join(context: StageContext) -> None:
    """Join the other processes of the stage, if there are any.

    Raises:
        StageError: the nodes do not share the directories of the run.
    """
    engine = choose_engine(context)
    if engine == "none" or distributed.is_initialized():
        return
    gpu = uses_gpu(context)
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=_COLLECTIVE_TIMEOUT)
    if engine == "deepspeed":
        _start_deepspeed(gpu)
    if context.world_size > 1:
        _require_shared_directory(context)
        Heartbeat(context).start()


def decide_in_main(context: StageContext, work: Callable[[], Found]) -> Found:
    """Have the main process look at the disk, and all processes go by what it saw: two that look for themselves may see two states.

    Raises:
        StageError: what the work raised, in every process.
    """
    if context.world_size == 1:
        return work()
    outcome: list[Any] = [None, None]
    if context.is_main:
        try:
            outcome[0] = work()
        except StageError as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def find_checkpoint(context: StageContext) -> tuple[Path, int] | None:
    """Find the checkpoint that the stage goes on from; every process gets the same. See `stages.checkpoint.latest_complete`."""
    directory, layout = context.spec.checkpoint_dir, describe_layout(context)
    return decide_in_main(context, lambda: latest_complete(directory, layout=layout, warn=context.note))


def leave() -> None:
    """Wait for the others and close the connections; a process that ends while another still talks to it looks like a failure."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _start_deepspeed(gpu: bool) -> None:
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import logging

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # A kernel for inference on one machine that nothing here uses; it would be compiled at the first start, for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Before transformers' TrainingArguments are made, which otherwise start it without knowing the number of processes.
    deepspeed.init_distributed("nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False, timeout=_COLLECTIVE_TIMEOUT)


def _require_shared_directory(context: StageContext) -> None:
    """Check that what the main process writes is what every other one reads."""
    name = [f".shared-{uuid.uuid4().hex}" if context.is_main else None]
    distributed.broadcast_object_list(name)
    path = context.spec.checkpoint_dir / str(name[0])
    if context.is_main:
        path.touch()
    distributed.barrier()
    missing = torch.tensor(0 if path.exists() else 1, device="cuda" if uses_gpu(context) else "cpu")
    distributed.all_reduce(missing)
    if context.is_main:
        path.unlink()
    if missing:
        raise StageError(
            f"{int(missing)} of {context.world_size} processes do not see {context.spec.checkpoint_dir}; needed: one directory for all "
            "nodes; put the store on a file system that they share",
            EXIT_USAGE,
        )


class Heartbeat:
    """A thread in each process that ends it when another one has not been heard of.

    A collective waits for a rank that hangs, is stopped, or lies beyond a network that is cut, until a timeout that must be long. Every
    rank listens to rank 0, and rank 0 to every rank, over torchrun's store and connections of their own.
    """

    def __init__(self, context: StageContext, silence_s: float = _SILENCE_S) -> None:
        self.context = context
        self.listens_to = [0] if context.rank else list(range(1, context.world_size))
        self.silence_s = silence_s
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = datetime.timedelta(seconds=silence_s / 2)
        store: Any = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            host, port, context.world_size, is_master=False, wait_for_workers=False, timeout=timeout
        )
        self._store: Any = distributed.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
            f"heartbeat-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
        )

    def start(self) -> None:
        """Begin to beat and to listen."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {rank: (b"", time.monotonic() + _START_S) for rank in self.listens_to}
        last_answer_s = time.monotonic()
        count = 0
        while True:
            count += 1
            try:
                self._store.set(str(self.context.rank), str(count))
                for rank in self.listens_to:
                    beat = self._store.get(str(rank)) if self._store.check([str(rank)]) else b""
                    if beat != heard[rank][0]:
                        heard[rank] = (beat, time.monotonic())
                last_answer_s = time.monotonic()
            except Exception as error:  # the store is gone, or the network
                if time.monotonic() - last_answer_s > self.silence_s:
                    self._end(f"the node of rank 0 has not answered for {self.silence_s:.0f} s ({type(error).__name__})")
            for rank, (_, heard_s) in heard.items():
                if time.monotonic() - heard_s > self.silence_s:
                    self._end(f"rank {rank} has not been heard of for {self.silence_s:.0f} s: it hangs, or its node or network is gone")
            time.sleep(_BEAT_S)

    def _end(self, message: str) -> None:
        message += "; run the same command to go on from the last checkpoint"
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.context.event("error", message=message, exit_code=EXIT_FAILED)
        os._exit(EXIT_FAILED)


def require_world_size(context: StageContext, found: int) -> None:
    """Check that a library sees the processes that the launcher started; it would train that many copies apart.

    Raises:
        StageError: it sees another number.
    """
    if found != context.world_size:
        raise StageError(f"accelerate sees {found} processes, the launcher started {context.world_size}; start them with torchrun")
