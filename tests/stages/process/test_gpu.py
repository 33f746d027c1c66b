"""What a process settles before it computes on a GPU, and that on a CPU nothing of it happens."""

import pytest
import torch
from torch import distributed

from stages.blocks import HardwareSettings
from stages.process.context import StageContext
from stages.process.distributed import join
from stages.process.gpu import find_device, prepare_gpu
from tests.pretend_gpu import pretend_gpu


@pytest.fixture(autouse=True)
def as_found():
    """Leave torch's switches as they are."""
    cudnn, precision, tf32 = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


def settings():
    return (
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize(("tf32", "precision"), [(False, "highest"), (True, "high")])
def test_on_a_gpu_attention_makes_no_plans_and_float32_is_whole_unless_asked(tf32, precision):
    torch.backends.cuda.enable_cudnn_sdp(True)
    with pretend_gpu():
        prepare_gpu(HardwareSettings(precision="float32", tf32=tf32))
        assert find_device(HardwareSettings()).type == "cuda" and find_device(HardwareSettings(device="cpu")).type == "cpu"
    assert settings() == (False, precision, tf32)


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_stage_on_a_cpu_settles_nothing(gpus):
    before = settings()
    if gpus:
        with pretend_gpu():
            prepare_gpu(HardwareSettings(device="cpu", tf32=True))
    else:
        prepare_gpu(HardwareSettings(tf32=True))
    assert settings() == before


def test_nccl_is_told_its_gpu(monkeypatch, make_stage):
    """Else a barrier before the first collective guesses one by the rank."""
    told = {}

    def begin(backend, **more):
        told.update(more, backend=backend)
        raise RuntimeError("enough")

    spec = make_stage("sft", hardware=HardwareSettings(engine="ddp", processes=2)).spec
    for name, value in {"WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "init_process_group", begin)
    with pretend_gpu(2), pytest.raises(RuntimeError, match="enough"):
        join(StageContext(spec))
    assert (told["backend"], told["device_id"]) == ("nccl", torch.device("cuda", 1))
