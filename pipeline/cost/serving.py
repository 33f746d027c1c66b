"""A vLLM server, as a recipe names it: how many GPUs it has, and whose."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.cost.machines import CONTEXT_BYTES
from stages.blocks import AWAKE_SHARE, RolloutSettings

_TENSOR_PARALLEL = ("--tensor-parallel-size", "-tp")
_MEMORY_SHARE = "--gpu-memory-utilization"
_DEFAULT_SHARE = 0.9  # of vLLM
MAX_ROWS = 256  # responses that it decodes at once, at most


@dataclass(frozen=True)
class Serving:
    """A server.

    Args:
        gpus: That share its weights and rows.
        own: GPUs of it that no training process has.
        share: Of the memory of the GPUs that it shares with training processes; 0: it has its own.
        known: Whether the recipe says so; of a server that runs elsewhere it does not.
        sleeps: Whether it gives that share back while nobody asks it.
    """

    gpus: int
    own: int
    share: float
    known: bool = True
    sleeps: bool = False

    def measure_least(self, parameters: int) -> float:
        """Bytes that each of its GPUs needs before the first key and value: its part of the weights in bfloat16, CUDA's context."""
        return 2 * parameters / self.gpus + CONTEXT_BYTES

    def lacks_room(self, parameters: int, memory: float) -> bool:
        """Whether the weights are more than it may take of a GPU's memory; nobody knows of a server elsewhere."""
        return self.known and self.measure_least(parameters) > (self.share or 1.0) * memory


def find_serving(rollout: RolloutSettings) -> Serving | None:
    """Say what serves; None: the policy's own forward decodes."""
    if rollout.engine != "vllm":
        return None
    gpus = max(int(_read(rollout.options, _TENSOR_PARALLEL, 1)), 1)  # 0 of them vLLM refuses
    if rollout.server is not None:
        return Serving(gpus, gpus, 0.0, known=False)
    shown = [found[1] for word in rollout.command if (found := re.fullmatch(r"CUDA_VISIBLE_DEVICES=([\d,]+)", word))]
    if shown:
        return Serving(gpus, len(shown[0].split(",")), 0.0)
    sleeps = rollout.sleep is not False
    share = _read(rollout.options, (_MEMORY_SHARE,), AWAKE_SHARE if sleeps else _DEFAULT_SHARE)
    return Serving(gpus, 0, share, sleeps=sleeps)


def _read(options: Sequence[str], names: Sequence[str], default: float) -> float:
    """Read the number of an option, given as `--name 2` or `--name=2`; what is no number is the default, which vLLM will refuse."""
    words = [part for option in options for part in option.split("=", 1)]
    for name, value in pairwise(words):
        if name in names and re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
    return default
