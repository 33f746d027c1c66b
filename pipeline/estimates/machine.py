"""What a recipe will run on: a GPU of the table, or this machine's CPU."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.cost.machines import GPU, GPUS
from pipeline.errors import ConfigError
from stages.blocks import HardwareSettings


@dataclass(frozen=True)
class Machine:
    """What stages will run on.

    Args:
        name: Of the GPU, or `cpu`.
        gpu: Of the table; None: this machine's CPU.
        memory: Bytes of a GPU, or of this machine.
        price: Dollars an hour of one GPU, (least, most); None: not known.
    """

    name: str
    gpu: GPU | None
    memory: float
    price: tuple[float, float] | None


def choose_machine(hardware: HardwareSettings, name: str | None) -> Machine:
    """Say what stages run on: the GPU that is named, the one of a recipe for GPUs, else this machine's CPU.

    Raises:
        ConfigError: The table does not have it, or the recipe needs a GPU and none is named.
    """
    price = None if (own := hardware.price_per_gpu_hour) is None else (own, own)
    if name is None and hardware.device == "cuda":
        raise ConfigError([f"--gpu: not given, but hardware.device is cuda; needed one of {', '.join(GPUS)}; give --gpu h100"])
    if name is None:
        return Machine("cpu", None, find_memory(), price)
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise ConfigError([f"--gpu: found {name!r:.40}, needed one of {', '.join(GPUS)}; give the nearest"])
    return Machine(name.lower(), gpu, gpu.memory, price or gpu.price)


def count_cores() -> int:
    """Count the cores that this process may use, a core's two threads as two."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_memory(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes of this machine's memory, or those that a container, SLURM or systemd lets this process have.

    Args:
        cgroups: Where the kernel says the limits.
        own: Where it says which of them are this process's.
    """
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min([whole, *_list_limits(cgroups, own)])


def _list_limits(cgroups: Path, own: Path) -> Iterator[float]:
    """List the limits of this process's group and of all above it, of both versions of cgroups."""
    groups = [line.split(":", 2)[2].strip("/") for line in _read(own).splitlines() if line.count(":") >= 2]
    for group in dict.fromkeys(["", *groups]):
        for above in (Path(group), *Path(group).parents):
            for name in ("memory.max", "memory.limit_in_bytes"):
                for found in (cgroups / above / name, cgroups / "memory" / above / name):
                    if (text := _read(found).strip()).isascii() and text.isdigit():
                        yield float(text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
