"""How fast this machine writes weights into a file and reads them into memory of its own, as stages publish models and open them."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

_SAMPLE = 2**26  # bytes: a tenth of a second
_TIMES = 3  # of which the median counts: the first finds nothing in memory, others may disturb one


def measure_files() -> tuple[float, float]:
    """Measure by a file of weights that was just written, as an artifact is that the stage before has left: a cold disk takes longer.

    Returns:
        Seconds that a byte takes to be read and to be written; of computing, the system's part for us within. 0 where the temporary
        directory has no room for the file, as in a container whose own is small.
    """
    write_s, read_s = list[float](), list[float]()
    try:
        with tempfile.TemporaryDirectory(prefix="rlhf-weights-") as directory:
            path = Path(directory) / "sample.safetensors"
            weights = {"weight": torch.ones(_SAMPLE // torch.float32.itemsize)}
            for _ in range(_TIMES):
                write_s.append(_time(lambda: save_file(weights, path)))
                read_s.append(
                    _time(lambda: load_file(path)["weight"].clone())
                )  # what is opened is mapped: read when it is used, or trained
                path.unlink()
    except (OSError, SafetensorError):
        return 0.0, 0.0
    return median(read_s) / _SAMPLE, median(write_s) / _SAMPLE


def _time(work: Callable[[], Any]) -> float:
    begun_s = time.process_time()
    work()
    return time.process_time() - begun_s
