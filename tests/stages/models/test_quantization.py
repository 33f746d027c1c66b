"""QLoRA with real 4-bit weights: what is held in them, what learns on top, and that the artifact needs none."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from data.load import load_records
from data.tokens import EncodedPair, encode_records
from stages import rm, sft
from stages.blocks import HardwareSettings, LoRASettings
from stages.language import heldout_losses
from stages.models import precision
from stages.models.adapters import apply_lora, share_weights
from stages.models.policy import load_policy
from stages.models.quantization import quantize_layers
from stages.models.save import save_model
from stages.models.tokenizer import load_tokenizer
from stages.ppo import stage as ppo_stage
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.spec import STAGES

HARDWARE = HardwareSettings(device="cpu", precision="float32", threads=1)
BFLOAT16 = HardwareSettings(device="cpu", precision="bfloat16", threads=1)
QLORA = {"rank": 8, "quantize": "nf4"}
# Dettmers et al. 2023, appendix E.
NF4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
IDS = torch.tensor([[1, 5, 9, 30, 44, 200]])


def quantized_layers(model):
    return {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}


def tensors_of(layer):
    state = layer.weight.quant_state
    return [layer.weight.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


def dequantize(layer):
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.fixture
def base(base_model_dir):
    return load_policy(str(base_model_dir), HARDWARE)


@pytest.fixture
def quantized(base_model_dir):
    return quantize_layers(load_policy(str(base_model_dir), HARDWARE), HARDWARE)


@pytest.fixture
def make_spec(make_stage, base_model_dir, reward_adapter_dir):
    def make(name, tag="run", **settings):
        inputs = {"base": base_model_dir, "sft": base_model_dir, "rm": reward_adapter_dir}
        spec = make_stage(name, tag=tag, models={role: inputs[role] for role in STAGES[name].models}, **settings).spec
        for directory in (spec.output_dir, spec.checkpoint_dir):
            directory.mkdir()
        return spec

    return make


@pytest.fixture
def run(monkeypatch):
    """Run a stage in this process: run(spec, tell=what hears its events) -> (result, trained model)."""

    def run_here(spec, tell=None):
        trained = []
        program = {"sft": sft, "rm": rm, "ppo": ppo_stage}[spec.stage]
        plain_save = save_model
        monkeypatch.setattr(program, "save_model", lambda model, *rest, **more: (trained.append(model), plain_save(model, *rest, **more)))
        context = StageContext(spec)
        if tell:
            context.event = tell
        torch.manual_seed(spec.seed)
        result = program.main(context)
        return result, trained[0]

    return run_here


def test_linear_layers_are_in_4_bits_and_head_embeddings_and_norms_are_not(base, quantized):
    layers = quantized_layers(quantized)
    assert len(layers) == 4 * 7 and all(name.startswith("model.layers.") for name in layers)
    assert {name: value.dtype for name, value in quantized.named_parameters() if "_proj" not in name} == {
        name: torch.float32 for name, _ in base.named_parameters() if "_proj" not in name
    }
    weights = sum(base.get_submodule(name).weight.numel() for name in layers)
    tables = len(layers) * (16 + 256 + 1) * 4  # both codes and the offset: much, for layers as small as these
    found = sum(tensor.numel() * tensor.element_size() for layer in layers.values() for tensor in tensors_of(layer))
    assert found - tables == pytest.approx(weights * (0.5 + 1 / 64 + 4 / (64 * 256)), rel=1e-3)


def test_a_weight_is_the_nearest_of_16_values_times_the_largest_of_its_block(base, quantized):
    name = "model.layers.2.mlp.down_proj"
    weights = base.get_submodule(name).weight.detach().view(-1, 64)
    largest = weights.abs().amax(dim=1, keepdim=True)
    weights = weights / largest
    found = dequantize(quantized.get_submodule(name)).view(-1, 64) / largest
    distances = (found[..., None] - torch.tensor(NF4)).abs().amin(dim=-1)
    assert distances.max() < 0.02  # the 8 bits of the scales
    nearest = (weights[..., None] - torch.tensor(NF4)).abs().amin(dim=-1)
    assert ((found - weights).abs() - nearest).max() < 0.02  # either one, where a weight lies in the middle of two


@pytest.mark.parametrize("hardware", [HARDWARE, BFLOAT16], ids=["float32", "bfloat16"])
def test_outputs_and_gradients_are_those_of_the_weights_that_the_4_bits_stand_for(base_model_dir, hardware):
    found = quantize_layers(load_policy(str(base_model_dir), HARDWARE), hardware)
    expected = load_policy(str(base_model_dir), HARDWARE)
    for name, layer in quantized_layers(found).items():
        expected.get_submodule(name).weight.data = dequantize(layer).float()
        assert layer.compute_dtype == dequantize(layer).dtype == getattr(torch, hardware.precision)
    gradients = []
    for model in (found, expected):
        embeddings = model.get_input_embeddings().weight
        precision.set_precision(model, hardware)
        with precision.autocast(model.base_model, torch.device("cpu")):
            model(IDS).logits.float().square().sum().backward()
        gradients.append(embeddings.grad[IDS[0]])
    exact = hardware is HARDWARE
    torch.testing.assert_close(*gradients, rtol=1e-4 if exact else 0.1, atol=1e-3 * gradients[1].abs().max().item() * (1 if exact else 30))


def test_evaluation_computes_what_training_computes_and_leaves_the_weights_as_they_are(quantized):
    before = [tensor.clone() for layer in quantized_layers(quantized).values() for tensor in tensors_of(layer)]
    trained = quantized.train()(IDS).logits
    with torch.no_grad():
        evaluated = quantized.eval()(IDS).logits
    assert torch.equal(trained, evaluated)
    after = [tensor for layer in quantized_layers(quantized).values() for tensor in tensors_of(layer)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_models_that_share_weights_share_the_4_bits_and_their_scales(quantized):
    other = share_weights(quantized)
    adapted = apply_lora(quantized, LoRASettings(**QLORA), "CAUSAL_LM", HARDWARE)
    layers, others = quantized_layers(adapted), quantized_layers(other)
    assert len(layers) == len(others) == 4 * 7 and not any("lora" in name for name, _ in other.named_parameters())
    for layer, its_twin in zip(layers.values(), others.values(), strict=True):
        assert layer.weight is its_twin.weight and layer.weight.quant_state is its_twin.weight.quant_state


@pytest.mark.slow
def test_sft_learns_on_4_bits_and_its_adapter_opens_without_them(run, make_spec, base_model_dir):
    settings = {"learning_rate": 5e-3, "warmup_steps": 0, "epochs": 3, "log_every": 1, "eval_samples": 0, "save_every": 100}
    spec = make_spec("sft", lora=QLORA | {"merge": True}, **settings)
    result, trained = run(spec)
    rows = [json.loads(line) for line in (spec.checkpoint_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0] - 1.0

    assert {name for name, value in trained.named_parameters() if value.requires_grad} == {
        name for name, _ in trained.named_parameters() if "lora_" in name
    }
    fresh = quantize_layers(load_policy(str(base_model_dir), HARDWARE), HARDWARE)
    found = quantized_layers(trained.get_base_model())
    for name, layer in quantized_layers(fresh).items():
        pairs = zip(tensors_of(layer), tensors_of(found[name.replace("_proj", "_proj.base_layer")]), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), name
    assert torch.equal(trained.get_base_model().lm_head.weight, fresh.lm_head.weight)

    config = (spec.output_dir / "model" / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == str(base_model_dir) and "nf4" not in config
    plain = AutoModelForCausalLM.from_pretrained(spec.output_dir / "model", dtype=torch.float32).eval()
    merged = AutoModelForCausalLM.from_pretrained(spec.output_dir / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, merged(IDS).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain(IDS).logits, trained(IDS).logits, atol=1e-2)
    base, saved = (load_file(path / "model.safetensors") for path in (base_model_dir, spec.output_dir / "merged"))
    assert all(torch.equal(base[name], saved[name]) for name in base if "_proj" not in name)
    tokenizer = load_tokenizer(str(base_model_dir))
    held_out = load_records(spec.data["demonstrations"].eval, "demonstrations")
    encoded = encode_records(tokenizer, held_out, (96, 64))
    sums, counts = heldout_losses(plain, [EncodedPair(item.prompt_ids, *item.responses) for item in encoded if item.used])
    loss = sum(sums) / sum(counts)
    assert loss == pytest.approx(result.metrics["eval/loss"], abs=0.3) and loss < losses[0] - 1.0


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sft", {"rows": 24, "epochs": 1, "eval_samples": 0}),
        ("rm", {"rows": 24, "epochs": 1}),
        ("ppo", {"iterations": 2, "eval_samples": 2}),
    ],
)
@pytest.mark.slow
def test_a_resumed_run_leaves_the_weights_of_a_straight_one(run, make_spec, name, settings):
    straight, killed = (make_spec(name, tag=tag, lora=QLORA, **settings | {"save_every": 1}) for tag in ("straight", "killed"))
    result, trained = run(straight)

    def die_at_a_checkpoint(event, **_):
        if event == "checkpoint":
            raise Killed

    with pytest.raises(Killed):
        run(killed, tell=die_at_a_checkpoint)
    again, _ = run(killed)
    one, two = (load_file(spec.output_dir / "model" / "adapter_model.safetensors") for spec in (straight, killed))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    figures = [{key: value for key, value in each.metrics.items() if not key.startswith("time/")} for each in (result, again)]
    assert figures[0] == figures[1]
    learns = {key for key, value in trained.named_parameters() if value.requires_grad}
    assert all("lora_" in key or (name == "rm" and "score" in key) for key in learns)
    if name == "rm":  # its adapter and head open without our code, on weights that are not in 4 bits
        plain = AutoModelForSequenceClassification.from_pretrained(straight.output_dir / "model", num_labels=1, dtype=torch.float32)
        assert torch.equal(plain.score.weight, one["base_model.model.score.weight"]) and not quantized_layers(plain)


def test_a_model_without_linear_layers_of_torch_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(StageError, match="GPT2LMHeadModel has no linear layer"):
        quantize_layers(model, HARDWARE)
