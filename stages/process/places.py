"""Which process of how many this one is: the launcher says so in the environment, and what an earlier launcher left there does not.

Torch-free: the pipeline clears the environment of what it starts, and a stage that is started by hand clears its own.
"""

from collections.abc import Mapping, MutableMapping
from pathlib import Path

from data.system.limits import count_allowed, count_cores
from stages.blocks import HardwareSettings

# torchrun's words for a process's place among others, and for where they meet; one that ends in "_" stands for all that begin with it.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE")
_TORCHRUN += ("ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_", "PET_")
# The same of other launchers, which accelerate and DeepSpeed read too; then engine and precision as `accelerate launch` hands them on.
_OTHERS = ("NODE_RANK", "CROSS_RANK", "CROSS_SIZE", "PMI_", "PMIX_", "OMPI_COMM_", "MV2_COMM_", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_OTHERS += ("SMDATAPARALLEL_", "FORK_LAUNCHED", "ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FP8_", "DS_ACCELERATOR")

# Values of ONEDNN_MAX_CPU_ISA that leave oneDNN instructions for bfloat16.
_ISAS_WITH_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")

_GPUS = ("/dev/nvidiactl", "/dev/kfd")  # what the drivers of NVIDIA and AMD leave


def has_gpu() -> bool:
    """Whether this machine has a GPU's driver, as far as is known without torch."""
    return any(Path(device).exists() for device in _GPUS)


def needs_launcher(hardware: HardwareSettings) -> bool:
    """Whether a stage's processes are started by torchrun, which tells each its place; one alone is plain Python."""
    return hardware.processes * hardware.nodes > 1 or hardware.engine == "deepspeed"


def hides_bfloat16(environment: Mapping[str, str]) -> bool:
    """Whether instructions for bfloat16 that the processor may have are hidden from the libraries.

    ONEDNN_MAX_CPU_ISA hides instructions from oneDNN, which computes the products, ATEN_CPU_CAPABILITY from torch's own kernels.
    """
    isa = (environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or "DEFAULT").upper()
    kernels = environment.get("ATEN_CPU_CAPABILITY", "").lower()
    return not any(name in isa for name in _ISAS_WITH_BFLOAT16) or kernels in ("default", "avx2")


def limit_threads(environment: Mapping[str, str]) -> int:
    """Say by how many threads a process computes where a group (of a container, a job) has the time of fewer cores than it may run on.

    Threads on all of them stand still together for the rest of each period: two in a group with the time of one core took 24 times as
    long as one thread.

    Returns:
        0: torch's default, all cores that there are, or what OMP_NUM_THREADS says.
    """
    cores = count_cores()
    return 0 if environment.get("OMP_NUM_THREADS") or cores == count_allowed() else cores


def clear_leftovers(environment: MutableMapping[str, str], *, launched: bool = False) -> list[str]:
    """Remove what another launcher left in an environment.

    Args:
        environment: Is changed.
        launched: torchrun started this very process: its own words stay.

    Returns:
        The names of what was removed, sorted.
    """
    names = _OTHERS if launched else (*_TORCHRUN, *_OTHERS)
    found = sorted(name for name in environment if any(name == word or (word.endswith("_") and name.startswith(word)) for word in names))
    for name in found:
        del environment[name]
    return found


def find_misplacement(hardware: HardwareSettings, environment: MutableMapping[str, str]) -> str | None:
    """Say what is wrong where torchrun started another number of processes than the recipe says, or did not start this one."""
    needed = hardware.processes * hardware.nodes
    found = environment.get("WORLD_SIZE", "none")
    if found == str(needed):
        return None
    return (
        f"WORLD_SIZE: found {found}, needed hardware.processes x hardware.nodes = {needed}, set by torchrun; "
        "start the stage as `rlhf launch-command` prints it"
    )


def find_missing_gpus(hardware: HardwareSettings, num_gpus: int, environment: MutableMapping[str, str]) -> str | None:
    """Say what is wrong where the recipe needs more GPUs than torch finds on this node; a variable may hide them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    found = f"torch finds {num_gpus} GPUs here" + (
        f", with CUDA_VISIBLE_DEVICES={visible!r} in the environment" if visible is not None else ""
    )
    if hardware.device == "cuda" and num_gpus == 0:
        return f"hardware.device: found cuda, but {found}; show it some, or set hardware.device: auto"
    if hardware.device != "cpu" and 0 < num_gpus < hardware.processes:
        return f"hardware.processes: found {hardware.processes}, but {found}, needed one for each process; lower it, or show it more"
    return None
