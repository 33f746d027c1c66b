"""What the libraries are spared that we build on."""

import subprocess
import sys
from importlib.metadata import PathDistribution

import pytest
from accelerate.utils import is_deepspeed_available

from stages.internals import skip_inference_kernel  # whose module spares it


def test_what_is_installed_is_read_once(monkeypatch):
    read, read_text = [], PathDistribution.read_text

    def read_and_count(distribution, name):
        read.append(name)
        return read_text(distribution, name)

    monkeypatch.setattr(PathDistribution, "read_text", read_and_count)
    assert is_deepspeed_available() and is_deepspeed_available()
    assert len(read) <= 1


@pytest.mark.slow
def test_deepspeed_neither_compiles_its_kernel_for_inference_nor_looks_which_others_it_could():
    import deepspeed
    from deepspeed.comm.torch import build_shm_op

    vars(deepspeed.ops).pop("__compatible_ops__", None)  # as when it is imported
    skip_inference_kernel()
    assert build_shm_op() is None
    assert deepspeed.ops.__compatible_ops__ == {"deepspeed_shm_comm": False}


@pytest.mark.slow
def test_the_compiler_is_read_when_bitsandbytes_first_calls_what_it_compiles():
    """In a process of its own: whoever asks for torch.compile in this one has read it."""
    pytest.importorskip("bitsandbytes")
    program = """
import sys
import torch
import stages.internals, peft, stages.trl.sft, stages.trl.rm, stages.ppo.stage, stages.evaluate.stage
from bitsandbytes.backends.default import ops

assert "torch._inductor.compile_fx" not in sys.modules
bytes, code = torch.tensor([1, 0, 2, 1], dtype=torch.uint8), torch.tensor([-1.0, 0.0, 1.0])
values = ops._dequantize_blockwise_compute(bytes, torch.tensor([2.0, 3.0]), code, 2, torch.float32)
assert values.tolist() == [0.0, -2.0, 3.0, 0.0]
assert "torch._inductor.compile_fx" in sys.modules
frames = torch._dynamo.utils.counters["frames"]
assert frames["ok"] == frames["total"] == 1, frames
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2 and frames["ok"] == 2
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
