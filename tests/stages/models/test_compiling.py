"""hardware.compile: layers are really compiled, numbers stay, decoding is left alone, and a missing compiler is said."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.blocks import HardwareSettings
from stages.internals import keep_kernels_apart
from stages.models.compiling import compile_layers
from stages.models.policy import load_policy
from stages.process.context import StageContext
from stages.process.errors import StageError

DRIVER = Path(__file__).with_name("compile_driver.py")
HARDWARE = HardwareSettings(device="cpu", precision="float32", compile=True)


@pytest.fixture
def stage(make_stage):
    return make_stage("sft", hardware=HARDWARE)


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_states_and_gradients_for_rows_of_any_length(stage, base_model_dir):
    command = [sys.executable, str(DRIVER), str(stage.spec_path), str(base_model_dir)]
    found = subprocess.run(command, env=stage.environment(), capture_output=True, text=True, timeout=500)
    assert found.returncode == 0, (found.stdout + found.stderr)[-4000:]


def test_kernels_are_kept_apart_by_the_instructions_that_they_are_made_for(monkeypatch):
    """Made for AVX-512 and found again under ATEN_CPU_CAPABILITY=avx2, they gave NaN."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    for _ in range(2):
        keep_kernels_apart()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("-" + torch.backends.cpu.get_cpu_capability().lower())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    keep_kernels_apart()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"


@pytest.mark.slow
def test_without_a_compiler_the_switch_is_refused(stage, base_model_dir, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(StageError, match=r"no-such-compiler.*hardware\.compile: false") as caught:
        compile_layers(StageContext(stage.spec), load_policy(str(base_model_dir), HARDWARE))
    assert caught.value.exit_code == 2


def test_on_a_gpu_a_c_compiler_and_pythons_headers_are_asked_for(stage, gpu, monkeypatch, tmp_path):
    """Triton compiles a module for the driver with them when the first kernel runs: `Failed to find C compiler`, or an error of gcc's."""
    context = StageContext(stage.spec.model_copy(update={"hardware": HARDWARE.model_copy(update={"device": "auto"})}))
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(StageError, match=r"Python\.h \(python3-dev\), which torch\.compile needs on a GPU; install it, or set") as caught:
        compile_layers(context)
    assert caught.value.exit_code == 2
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StageError, match=r"no C compiler \(gcc or clang\), which torch\.compile needs on a GPU"):
        compile_layers(context)
