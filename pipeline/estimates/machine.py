"""What a recipe will run on: a GPU of the table, or this machine's CPU."""

from dataclasses import dataclass

from data.system.limits import find_memory
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
