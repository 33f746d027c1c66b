"""How `hardware.precision: auto` is settled."""

import json

import pytest
import torch

from stages.blocks import HardwareSettings
from stages.process.context import StageContext
from stages.process.machine import choose_precision, settle_precision

CAPABILITIES = {
    "Zen 3": {"avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False},
    "Skylake": {"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False},
    "Zen 4": {"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False},
    "AMX alone": {"amx_bf16": True},
    "Graviton 3": {"neon": True, "bf16": True},
    "Graviton 2": {"neon": True, "bf16": False},
}


@pytest.fixture
def on_cpu(monkeypatch):
    """on_cpu("Zen 3", ONEDNN_MAX_CPU_ISA=...): as if this machine stated that processor's instructions, in that environment."""

    def pretend(name, **environment):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: CAPABILITIES[name])
        for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)

    return pretend


@pytest.mark.parametrize(
    ("name", "environment", "expected"),
    [
        ("Zen 3", {}, "float32"),
        ("Skylake", {}, "float32"),
        ("Graviton 2", {}, "float32"),
        ("Zen 4", {}, "bfloat16"),
        ("AMX alone", {}, "bfloat16"),
        ("Graviton 3", {}, "bfloat16"),
        ("Zen 4", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "float32"),
        ("Zen 4", {"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "float32"),
        ("Zen 4", {"ATEN_CPU_CAPABILITY": "avx2"}, "float32"),
        ("Zen 4", {"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16", "ATEN_CPU_CAPABILITY": "avx512"}, "bfloat16"),
        ("AMX alone", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "bfloat16"),
        ("Zen 4", {"ONEDNN_MAX_CPU_ISA": "ALL"}, "bfloat16"),
    ],
)
def test_auto_goes_by_the_instructions_that_the_processor_states_and_the_libraries_may_use(make_stage, on_cpu, name, environment, expected):
    on_cpu(name, **environment)
    context = StageContext(make_stage("sft", hardware=HardwareSettings(device="cpu")).spec)
    settle_precision(context)
    assert context.spec.hardware.precision == expected
    assert [(event["event"], event["precision"]) for event in events_of(context)] == [("machine", expected)]


@pytest.mark.parametrize(("name", "warned"), [("Zen 3", True), ("Zen 4", False)])
def test_an_explicit_bfloat16_stays_and_the_user_is_told_where_it_is_emulated(make_stage, on_cpu, name, warned):
    on_cpu(name)
    context = StageContext(make_stage("sft", hardware=HardwareSettings(device="cpu", precision="bfloat16")).spec)
    settle_precision(context)
    assert context.spec.hardware.precision == "bfloat16"
    assert any("set hardware.precision: auto" in event.get("message", "") for event in events_of(context)) == warned


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in place of the CPU")
def test_a_model_made_in_bfloat16_is_asked_in_float32_where_that_would_be_emulated(on_cpu):
    on_cpu("Zen 4")
    assert choose_precision("bfloat16") == ("bfloat16", "")
    on_cpu("Zen 3")
    said = "computes in float32, not in bfloat16 as it was made: this CPU has no instructions for that"
    assert (choose_precision("bfloat16"), choose_precision("float32")) == (("float32", said), ("float32", ""))


def test_a_run_that_goes_on_on_another_kind_of_machine_says_so(make_stage, on_cpu):
    context = StageContext(make_stage("sft", hardware=HardwareSettings(device="cpu")).spec)
    for name in ("Zen 4", "Zen 3"):
        on_cpu(name)
        context = StageContext(context.spec.model_copy(update={"hardware": HardwareSettings(device="cpu")}))
        settle_precision(context)
        (context.spec.checkpoint_dir / "checkpoint-2").mkdir(parents=True, exist_ok=True)
    (note,) = [event["message"] for event in events_of(context) if event["event"] == "note"]
    assert "begun in bfloat16 and goes on in float32" in note


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_on_a_gpu_goes_by_its_compute_capability(make_stage, on_cpu, monkeypatch, capability, expected):
    on_cpu("Zen 3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    context = StageContext(make_stage("sft", hardware=HardwareSettings()).spec)
    settle_precision(context)
    assert context.spec.hardware.precision == expected


def events_of(context):
    return [json.loads(line) for line in context.spec.events_path.read_text().splitlines()]
