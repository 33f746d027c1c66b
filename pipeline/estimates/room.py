"""Whether the stages of a recipe fit into this machine's memory, told before the first of them trains."""

import os
import subprocess
from pathlib import Path

from data.schema import DataError
from data.system.limits import find_memory
from pipeline.cost.machines import GPU, TIGHT
from pipeline.errors import ConfigError, StoreError
from pipeline.estimates.estimate import make_estimate
from pipeline.estimates.machine import Machine
from pipeline.inputs.demo import locate
from pipeline.recipe.base_files import list_weights
from pipeline.recipe.schema import Recipe
from pipeline.text import format_bytes
from stages.spec import StageName

_STATES = 8  # a weight of 2 bytes on the disk is 16 in training: itself, its gradient, two moments in float32
_LOOK = 0.25  # of the memory: where weights in training are less, a look would cost more than it tells


def warn_of_room(recipe: Recipe, stages: list[StageName], store_root: Path) -> list[str]:
    """Say which stages will run out of memory here; nothing is refused, since an estimate can be wrong.

    Args:
        recipe: Resolved recipe.
        stages: That will run.
        store_root: Of the store.
    """
    machine = _find_machine(recipe)
    if machine is None or not _may_be_short(recipe, machine, store_root):
        return []
    try:
        made = make_estimate(recipe, stages, store_root, machine, with_time=False)
    except (ConfigError, DataError, StoreError):  # whatever is wrong, the stages say it themselves
        return []
    return [
        f"{each.stage} needs about {format_bytes(int(each.verdict.need))} of {format_bytes(int(each.verdict.room))} "
        f"({each.peak.name}): it will run out of memory; `rlhf plan --cost` says what to change"
        for each in made.stages
        if each.verdict.word == "does not fit"
    ]


def _find_machine(recipe: Recipe) -> Machine | None:
    """Say what stages run on; None: a slice of a GPU (MIG), of which nvidia-smi tells no size."""
    gpus = [] if recipe.hardware.device == "cpu" else _list_gpus()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()  # the first of them; a UUID may be cut short
    if wanted.startswith("MIG-"):
        return None
    for index, (uuid, memory, capability, slices) in enumerate(gpus):
        if wanted and (wanted == str(index) or uuid.startswith(wanted)):
            if slices == "Enabled":
                return None
            gpu = GPU(float(memory) * 2**20, 1.0, 1.0, 1.0, 0.0, 1.0, float(capability))
            return Machine("GPU", gpu, gpu.memory, None)
    return Machine("cpu", None, find_memory(), None)


def _list_gpus() -> list[list[str]]:
    """List (UUID, memory in MiB, compute capability, whether it is cut into slices) of the GPUs here, as nvidia-smi counts them."""
    command = ["nvidia-smi", "--query-gpu=uuid,memory.total,compute_cap,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in said.splitlines()]
    return [row for row in rows if len(row) == 4 and (row[3] == "Enabled" or row[1].isdecimal())]


def _may_be_short(recipe: Recipe, machine: Machine, store_root: Path) -> bool:
    try:
        weights = sum(path.stat().st_size for path in list_weights(locate(recipe.base_model, store_root)))
    except (ConfigError, StoreError, OSError):
        return False
    processes = 1 if machine.gpu is not None else recipe.hardware.processes
    if not weights:  # a hub's, which are not here yet
        return machine.gpu is not None
    return weights * _STATES * processes > _LOOK * TIGHT * machine.memory
