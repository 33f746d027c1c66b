"""The precision policy: what stays float32, what may be bfloat16 without changing a bit, and how `auto` is settled."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.models import precision
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.process.context import StageContext
from stages.settings import HardwareSettings

HARDWARE = HardwareSettings(device="cpu", precision="float32")
BFLOAT16 = HardwareSettings(device="cpu", precision="bfloat16")


def test_frozen_linear_weights_in_bfloat16_change_no_bit_under_autocast(base_model_dir):
    ids = torch.tensor([[1, 5, 9, 30]])
    outputs = {}
    for hardware in (HARDWARE, BFLOAT16):
        for load in (lambda path: load_policy(path, HARDWARE), lambda path: init_reward_model(path, HARDWARE, seed=1)):
            model = precision.freeze(load(str(base_model_dir)), hardware)
            with torch.no_grad(), precision.autocast(BFLOAT16, torch.device("cpu")):
                outputs[hardware.precision, type(model).__name__] = model(ids).logits
            dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
            assert dtypes["model.layers.0.mlp.up_proj.weight"] == getattr(torch, hardware.precision)
            assert dtypes["model.embed_tokens.weight"] == dtypes["model.norm.weight"] == torch.float32
            assert dtypes.get("score.weight", torch.float32) == torch.float32
            assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in ("LlamaForCausalLM", "LlamaForSequenceClassification"):
        assert torch.equal(outputs["float32", name], outputs["bfloat16", name])


def test_tied_embeddings_stay_float32():
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config.tie_word_embeddings = True
    model = precision.freeze(LlamaForCausalLM(config), BFLOAT16)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.dtype == torch.float32


def test_float32_head_gives_float32_scores_under_bfloat16_autocast(base_model_dir):
    model = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
    with torch.no_grad(), precision.autocast(BFLOAT16, torch.device("cpu")):
        assert model(torch.tensor([[1, 5, 9]])).logits.dtype == torch.float32


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
    precision.settle_precision(context)
    assert context.spec.hardware.precision == expected
    assert [(event["event"], event["precision"]) for event in events_of(context)] == [("machine", expected)]


@pytest.mark.parametrize(("name", "warned"), [("Zen 3", True), ("Zen 4", False)])
def test_an_explicit_bfloat16_stays_and_the_user_is_told_where_it_is_emulated(make_stage, on_cpu, name, warned):
    on_cpu(name)
    context = StageContext(make_stage("sft", hardware=BFLOAT16).spec)
    precision.settle_precision(context)
    assert context.spec.hardware.precision == "bfloat16"
    assert any("set hardware.precision: auto" in event.get("message", "") for event in events_of(context)) == warned


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_on_a_gpu_goes_by_its_compute_capability(make_stage, on_cpu, monkeypatch, capability, expected):
    on_cpu("Zen 3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    context = StageContext(make_stage("sft", hardware=HardwareSettings()).spec)
    precision.settle_precision(context)
    assert context.spec.hardware.precision == expected


def test_a_precision_that_is_not_settled_is_never_taken_for_float32():
    with pytest.raises(ValueError, match="not settled"):
        precision.autocast(HardwareSettings(), torch.device("cpu"))


def events_of(context):
    return [json.loads(line) for line in context.spec.events_path.read_text().splitlines()]
