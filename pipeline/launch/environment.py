"""The environment of a stage process."""

import os
from collections.abc import Mapping

from pipeline.launch.processes import MARKER
from stages.process.places import clear_leftovers, has_gpu, limit_threads

# Nothing tells its makers that it is used: TRL, transformers and the hub's client; datasets; vLLM.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

# On a GPU torch 2.13 hands some operations of eager code (outer products by `bmm`; norms, top-k and sums by index too where CUTLASS's
# Python package is installed) to kernels that are compiled when they are first called, by Triton with a C compiler and Python's headers:
# where either is missing it fails in the middle of a forward. torch's own kernels need neither, and are those that were tried.
_OWN_KERNELS = {"TORCH_DISABLE_NATIVE_JIT": "1"}


def read_threads(environment: Mapping[str, str]) -> int:
    """Read how many threads OpenMP was told to use; 0: nothing that counts. It takes a list of numbers, one for each level."""
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0


def allocator_settings() -> dict[str, str]:
    """Have a stage on a CPU keep the memory of freed tensors, in huge pages; on a GPU have memory lie in segments that grow.

    glibc hands it back to the system above 32 MiB and at the heap's end, which then has to zero it anew, page by page of 4 KiB: of a PPO
    update 6 to 10 %. On a GPU (where a process would hold on to what it loaded) blocks of all sizes come and go with rows of all lengths:
    in segments that grow, what is free can be used again. torch reads that when CUDA starts; on an H200
    what was set after the imports came too late, so a process is born with it.

    Nothing where the user set the allocator, and below glibc 2.35, which takes one of the thresholds and refuses the other.
    """
    if has_gpu():
        is_set = any(name.startswith("PYTORCH_") and name.endswith("ALLOC_CONF") for name in os.environ)
        return {} if is_set else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    try:
        version = tuple(map(int, (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ").split(".")))
    except (ValueError, OSError):  # another C library
        return {}
    is_set = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if version < (2, 35) or is_set:
        return {}
    return {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={2**30}:glibc.malloc.trim_threshold={2**30}"}


def torch_settings() -> dict[str, str]:
    """Say what torch is to find in the environment of a process that it is born with, where the user says nothing else."""
    return {**allocator_settings(), **_OWN_KERNELS}


def stage_environment(marker: str, *, offline: bool, alone: bool = True) -> tuple[dict[str, str], list[str]]:
    """Build the environment of a stage process.

    Args:
        marker: Which run it belongs to.
        offline: Forbid the Hugging Face libraries to ask the network.
        alone: It computes as one process, not as several, of which torchrun gives each one thread.

    Returns:
        The environment; the names that were left out of it: another launcher's, see `stages.process.places`.
    """
    fixed = {
        MARKER: marker,
        "PYTHONSAFEPATH": "1",  # torchrun's workers do not inherit -P
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        # Whatever the terminal is: logs, records and names of files are UTF-8.
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "TOKENIZERS_PARALLELISM": "false",
        **QUIET,
    }
    given = dict(os.environ)
    left_out = clear_leftovers(given)
    threads = read_threads(given)
    given.pop("OMP_NUM_THREADS", None)
    threads = threads or (limit_threads(given) if alone else 0)
    given.pop("PYTHONINSPECT", None)  # with it Python takes the end of a program, exit code 0 too, for a failure
    if threads:  # accelerate takes one number, and fails on anything else
        given["OMP_NUM_THREADS"] = str(threads)
    return {**torch_settings(), **given, **fixed, **({"HF_HUB_OFFLINE": "1"} if offline else {})}, left_out
