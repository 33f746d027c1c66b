"""The processes of a stage: how they meet and part, and what they decide together.

torchrun starts WORLD_SIZE processes -> join(context) -> collectives, a heartbeat between them -> leave()
"""

import datetime
import os
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

from data.schema import DataError
from stages.internals import skip_inference_kernel
from stages.process.context import StageContext, uses_gpu
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.process.heartbeat import Heartbeat
from stages.spec import EXIT_USAGE

Found = TypeVar("Found")
_COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)  # one rank may load, merge or write 100s of GB; the heartbeat finds the dead


def join(context: StageContext) -> None:
    """Join the other processes of the stage, if there are any.

    Raises:
        StageError: the nodes do not share the directories of the run.
    """
    engine = choose_engine(context).name
    if engine == "none" or distributed.is_initialized():
        return
    gpu, device = uses_gpu(context), None
    if gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    with context.dies_of_signals():  # another process may never come
        restarted = _find_store_after_restart(context)
        meeting = {"store": restarted, "rank": context.rank, "world_size": context.world_size} if restarted else {}
        # Told its GPU, NCCL guesses none by the rank, as a barrier before the first collective would have it do.
        distributed.init_process_group("nccl" if gpu else "gloo", timeout=_COLLECTIVE_TIMEOUT, device_id=device, **meeting)
    if engine == "deepspeed":
        start_deepspeed(gpu)
    if context.world_size > 1:
        with context.dies_of_signals():
            _require_shared_directory(context)
        Heartbeat(context).start()


def _find_store_after_restart(context: StageContext) -> Any:
    """Give processes that torchrun started once more on one machine a part of its store of their own; None: nothing was restarted.

    Its store outlives a restart, with the addresses of processes that are gone: who came first would call those. On several machines
    the count may differ between them, so that there they meet as torchrun has it.
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if count == "0" or os.environ.get("LOCAL_WORLD_SIZE") != str(context.world_size):
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Any = distributed.TCPStore(address, port, is_master=False, timeout=_COLLECTIVE_TIMEOUT)  # pyright: ignore[reportPrivateImportUsage]
    return distributed.PrefixStore(f"restart-{count}", store)  # pyright: ignore[reportPrivateImportUsage]


def decide_in_main(context: StageContext, work: Callable[[], Found]) -> Found:
    """Have the main process look at the disk, and all processes go by what it saw: two that look for themselves may see two states.

    Raises:
        StageError, DataError: what the work raised, in every process.
    """
    if context.world_size == 1:
        return work()
    outcome: list[Any] = [None, None]
    if context.is_main:
        try:
            outcome[0] = work()
        except (StageError, DataError) as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def leave() -> None:
    """Wait for the others and close the connections; a process that ends while another still talks to it looks like a failure."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def start_deepspeed(gpu: bool) -> None:
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import logging

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    skip_inference_kernel()
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


def require_world_size(context: StageContext, found: int) -> None:
    """Check that a library sees the processes that the launcher started; it would train that many copies apart.

    Raises:
        StageError: it sees another number.
    """
    if found != context.world_size:
        raise StageError(f"accelerate sees {found} processes, the launcher started {context.world_size}; start them with torchrun")
