"""The environment of a stage process, and what the allocator makes of it."""

import json
import os

import pytest

from pipeline.launch.environment import allocator_settings, stage_environment
from stages.process import places


def test_the_environment_tells_the_stage_what_it_may(run_script, tmp_path):
    run_script("""
        names = ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "PYTHONHASHSEED", "PYTHONSAFEPATH")
        open(os.path.dirname(EVENTS) + "/env", "w").write(json.dumps([os.environ.get(name) for name in names]))
    """)
    assert json.loads((tmp_path / "env").read_text()) == ["1", "false", "0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, "0"])
def test_torch_computes_by_its_own_kernels_unless_the_user_says_otherwise(run_script, tmp_path, monkeypatch, given):
    """Triton's are compiled when they are first called, with a C compiler that a machine with a GPU may not have."""
    monkeypatch.delenv("TORCH_DISABLE_NATIVE_JIT", raising=False)
    if given:
        monkeypatch.setenv("TORCH_DISABLE_NATIVE_JIT", given)
    run_script("""
        from torch._native.common_utils import check_native_jit_disabled
        open(os.path.dirname(EVENTS) + "/env", "w").write(json.dumps(check_native_jit_disabled()))
    """)
    assert json.loads((tmp_path / "env").read_text()) == (given is None)


def count_faults(run_script, tmp_path):
    """Page faults of a stage that makes a 40 MB tensor and drops it, 50 times over."""
    run_script("""
        import resource, torch
        torch.ones(10_000_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(50):
            torch.ones(10_000_000)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        with open(EVENTS, "a") as stream:
            stream.write(json.dumps({"event": "progress", "faults": faults}) + chr(10))
    """)
    return json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["faults"]


@pytest.fixture
def plain_allocator(monkeypatch):
    for name in [name for name in os.environ if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(places, "_GPUS", ())


@pytest.mark.usefixtures("plain_allocator")
@pytest.mark.slow
def test_a_stage_keeps_the_memory_of_its_tensors_unless_the_user_sets_the_allocator(run_script, tmp_path, monkeypatch):
    if not allocator_settings():
        pytest.skip("the settings are those of glibc from 2.35 on")
    assert count_faults(run_script, tmp_path) < 1_000
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert count_faults(run_script, tmp_path) > 50 * 40_000_000 // 4096 // 2  # each page of each tensor anew


@pytest.mark.usefixtures("plain_allocator")
@pytest.mark.parametrize(("version", "is_set"), [("glibc 2.36", True), ("glibc 2.35", True), ("glibc 2.34", False), ("", False)])
def test_the_allocator_is_left_alone_where_it_would_refuse_half_of_the_settings(monkeypatch, version, is_set):
    monkeypatch.setattr(os, "confstr", lambda _name: version)
    assert bool(allocator_settings()) == is_set


@pytest.mark.usefixtures("plain_allocator")
@pytest.mark.parametrize("name", [None, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_beside_a_gpu_its_segments_grow_unless_the_user_sets_its_allocator(monkeypatch, tmp_path, name):
    monkeypatch.setattr(places, "_GPUS", (str(tmp_path),))
    for each in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(each, raising=False)
    if name:
        monkeypatch.setenv(name, "backend:cudaMallocAsync")
    assert allocator_settings() == ({} if name else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})


def test_a_stage_gets_nothing_of_what_another_launcher_left_and_the_user_is_told(run_script, tmp_path, monkeypatch):
    left = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "fp16"}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    _, events = run_script("""
        open(os.path.dirname(EVENTS) + "/env", "w").write(json.dumps(dict(os.environ)))
    """)
    environment = json.loads((tmp_path / "env").read_text())
    assert not left.keys() & environment.keys() and environment["NCCL_DEBUG"] == "INFO"
    assert [event["message"] for event in events] == [
        f"ignored in the environment, which another launcher left there: {', '.join(sorted(left))}"
    ]


def test_a_stage_writes_utf8_whatever_the_terminal_is(run_script, tmp_path, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}.items():
        monkeypatch.setenv(name, value)
    run_script("""
        print("grün \\udcff")
        open(os.path.dirname(EVENTS) + "/grün", "w").write("grün")
    """)
    assert (tmp_path / "grün").read_text(encoding="utf-8") == "grün"
    assert "grün \\udcff" in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("given", "passed"), [("4", "4"), ("4,2", "4"), ("", None), ("many", None)])
def test_openmp_threads_are_one_number_or_none(monkeypatch, given, passed):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert stage_environment("marker", offline=True)[0].get("OMP_NUM_THREADS") == passed


def test_a_stage_ends_as_it_says_with_pythoninspect_in_the_environment(run_script, monkeypatch):
    monkeypatch.setenv("PYTHONINSPECT", "1")
    run_script("sys.exit(0)")  # which that would make a traceback and exit code 1
