"""Steps of SFT and PPO, and what is left of their tensors: run by a test in a process of its own, into which DeepSpeed may settle.

python steps_driver.py STAGE_OF_ZERO        0: without DeepSpeed
"""

import gc
import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.gpu import steps
from tests.gpu.place import Place, begin_anew, free_memory, make_hardware, no_gpu


def train(stage: int) -> None:
    with no_gpu() as gpu:
        engine = {"engine": "deepspeed", "zero_stage": stage} if stage else {}
        if stage:
            steps.stand_alone()
        else:
            begin_anew()
        hardware = make_hardware("float32", device="cpu", **engine)
        for name in ("sft", "ppo"):
            with tempfile.TemporaryDirectory() as directory:
                steps._RUNS[name](Place(gpu), "tiny", steps.find_models("tiny"), hardware, {}, Path(directory))
        free_memory()


train(int(sys.argv[1]))
storages = {id(storage): storage for storage in (each.untyped_storage() for each in gc.get_objects() if isinstance(each, torch.Tensor))}
print(f"left: {sum(storage.nbytes() for storage in storages.values())}", flush=True)
os._exit(0)
