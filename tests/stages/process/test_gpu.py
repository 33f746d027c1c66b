"""What a process settles before it computes on a GPU, and that on a CPU nothing of it happens."""

import json

import pytest
import torch
from torch import distributed

from stages.blocks import HardwareSettings
from stages.process import places
from stages.process.context import StageContext
from stages.process.distributed import join
from stages.process.errors import StageError
from stages.process.gpu import find_device, find_unused_gpu, prepare_gpu, require_working_gpu
from stages.process.runtime import start_process
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


@pytest.mark.parametrize(
    ("said", "code", "advice"),
    [
        ("no kernel image is available for execution on the device", 2, "is built for sm_75, sm_80, sm_90; install a build for this one"),
        ("out of memory", 5, "another process holds it"),
        ("all CUDA-capable devices are busy or unavailable", 5, "another process holds it"),
        ("uncorrectable ECC error encountered", 1, "see what `nvidia-smi` says of it"),
    ],
)
def test_a_gpu_that_cannot_compute_is_told_before_anything_is_loaded(monkeypatch, said, code, advice):
    def fail(*_, **__):
        raise torch.AcceleratorError(f"CUDA error: {said}\nCUDA kernel errors might be asynchronously reported")

    with pretend_gpu(capability=(7, 0)):
        require_working_gpu(HardwareSettings())
        monkeypatch.setattr(torch, "ones", fail)
        require_working_gpu(HardwareSettings(device="cpu"))
        with pytest.raises(StageError) as caught:
            require_working_gpu(HardwareSettings())
    assert str(caught.value).startswith(f"a pretend GPU (compute capability 7.0): CUDA error: {said}; ") and advice in str(caught.value)
    assert caught.value.exit_code == code and "\n" not in str(caught.value)


def test_a_driver_whose_gpu_torch_cannot_use_is_told_unless_the_user_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "_GPUS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver.")

    monkeypatch.setattr(torch.cuda, "init", fail)
    told = find_unused_gpu(HardwareSettings())
    assert told is not None and "says: The NVIDIA driver on your system is too old (found version 12040); install a build" in told
    assert find_unused_gpu(HardwareSettings(device="cpu")) is None
    with pretend_gpu():
        assert find_unused_gpu(HardwareSettings()) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_unused_gpu(HardwareSettings()) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(places, "_GPUS", ())
    assert find_unused_gpu(HardwareSettings()) is None


@pytest.fixture
def start(make_stage):
    """start(**hardware) -> what a stage that starts notes."""

    made = make_stage("sft").spec
    for directory in (made.output_dir, made.checkpoint_dir):
        directory.mkdir()

    def start(**hardware):
        spec = made.model_copy(update={"hardware": HardwareSettings(**hardware)})
        spec.events_path.unlink(missing_ok=True)
        start_process(StageContext(spec))
        events = [json.loads(line) for line in spec.events_path.read_text().splitlines()]
        return [event["message"] for event in events if event["event"] == "note"]

    return start


def test_a_stage_that_starts_tells_what_its_gpu_is_without(monkeypatch, start):
    with pretend_gpu():
        assert start(tf32=True) == []
    with pretend_gpu(has_bfloat16=False, capability=(7, 5)):
        (note,) = start(tf32=True)
    assert note == "hardware.tf32 = true is not used: it is a GPU's, of compute capability 8.0 or newer"
    with pretend_gpu():
        monkeypatch.setattr(torch.version, "hip", "7.2")
        monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
        assert start() == ["this GPU is AMD's, on which nothing of this was tried"]
    monkeypatch.undo()
    with pytest.raises(StageError, match=r"hardware\.device: found cuda.*Torch not compiled with CUDA enabled\)$"):
        start(device="cuda")
