"""What `rlhf plan --cost` says of the memory of a recipe's stages on this CPU, in one process: tensors, and the process.

    python -P -m tests.bench.plan_worker RECIPE        a line of JSON for each stage

Tensors: without what only lies in a file's bytes, and without the buffers that DeepSpeed reserves and a CPU gives when they are written.
"""

import json
import sys
from pathlib import Path

from pipeline.cost.memory import PhaseMemory
from pipeline.estimates.estimate import make_estimate
from pipeline.estimates.machine import choose_machine
from pipeline.recipe.load import find_recipe, load_recipe

STAGES = ("sft", "rm", "ppo")


def count_tensors(phase: PhaseMemory, engine: str) -> int:
    """Bytes of a phase's tensors."""
    left_out = {"bytes of the file"} | ({"communication"} if engine == "deepspeed" else set())
    return sum(size for part, size in phase.device.items() if part not in left_out)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    recipe = load_recipe(find_recipe(str(path)), [])
    for made in make_estimate(recipe, STAGES, path.parent / "store", choose_machine(recipe.hardware, None), with_time=False).stages:
        tensors = max(count_tensors(phase, made.setup.engine) for phase in made.phases)
        print(json.dumps({"stage": made.stage, "logical": tensors, "resident": made.verdict.need / made.setup.per_node}))
