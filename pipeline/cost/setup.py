"""On what a stage runs, as plain numbers."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Setup:
    """Engine and processes of a stage.

    Args:
        engine: What computes together.
        processes: On all nodes.
        per_node: Processes on each node.
        zero_stage: Of DeepSpeed.
        offload_optimizer: DeepSpeed keeps optimizer and gradients in the host's memory.
        offload_parameters: And the weights, at stage 3.
        on_gpu: Whether each process has a GPU.
        precision: That products are computed in, settled.
        tf32: Whether float32 products of a GPU are rounded to TF32.
    """

    engine: Literal["none", "ddp", "deepspeed"]
    processes: int = 1
    per_node: int = 1
    zero_stage: int = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False
    on_gpu: bool = True
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    tf32: bool = False
