"""Loading refuses what would be wrong; saving opens without our code; hand-offs are checked."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from stages.blocks import HardwareSettings, LoRASettings
from stages.family import find_family
from stages.models.adapters import apply_lora, require_adapter_base, share_weights
from stages.models.calibration import Calibration
from stages.models.handoff import check_handoff
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model, load_reward_model
from stages.models.save import save_model
from stages.models.tokenizer import load_tokenizer
from stages.models.weights import count_broken_weights, name_broken_weights
from stages.process.errors import StageError

HARDWARE = HardwareSettings(device="cpu", precision="float32")
BFLOAT16 = HardwareSettings(device="cpu", precision="bfloat16")


@pytest.fixture
def base(base_model_dir, tmp_path):
    """A private copy of the tiny base model, to be damaged."""
    return shutil.copytree(base_model_dir, tmp_path / "base")


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def test_a_policy_loads_in_float32_without_dropout_and_with_a_neutral_generation_config(base):
    edit_json(base / "config.json", attention_dropout=0.1, dtype="bfloat16")
    GenerationConfig(repetition_penalty=1.3, top_k=5, do_sample=True).save_pretrained(base)
    model = load_policy(str(base), HARDWARE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(layer.self_attn.attention_dropout == 0.0 for layer in model.model.layers)
    assert model.generation_config.repetition_penalty in (None, 1.0) and model.generation_config.top_k != 5


@pytest.mark.parametrize(
    "left", [{"return_dict": False}, {"output_attentions": True, "output_hidden_states": True}, {"use_cache": False, "num_labels": 5}]
)
def test_what_config_json_says_of_outputs_changes_nothing_and_is_not_published(base, tmp_path, left):
    ids = torch.arange(4, 14)[None]
    expected = load_policy(str(base), HARDWARE)(ids).logits
    edit_json(base / "config.json", **left)
    assert find_family(str(base)).decoding == "additive"
    model = load_policy(str(base), HARDWARE)
    found = model(ids)
    assert torch.equal(found.logits, expected) and found.attentions is None and found.hidden_states is None
    save_model(model, load_tokenizer(str(base)), tmp_path / "output")
    published = json.loads((tmp_path / "output/model/config.json").read_text())
    assert not {name for name in ("output_attentions", "output_hidden_states") if published.get(name)} and published.get(
        "return_dict", True
    )


@pytest.mark.parametrize("content", ['{"cache_implementation": "of_a_later_version"}', '{"max_new_tokens": 0}', "{"])
def test_a_base_models_generation_config_need_not_be_valid(base, content):
    (base / "generation_config.json").write_text(content)
    model = load_policy(str(base), HARDWARE)
    assert model.generation_config.max_new_tokens is None and model.generation_config.eos_token_id == model.config.eos_token_id


def test_a_model_that_does_not_exist_is_refused_with_exit_4(tmp_path):
    with pytest.raises(StageError, match=f"^{tmp_path}/nothing: found nothing there; needed a model.*; bring it there") as caught:
        load_policy(str(tmp_path / "nothing"), HARDWARE)
    assert caught.value.exit_code == 4


def test_an_adapter_whose_base_is_gone_names_the_path_and_no_hub(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": f"{tmp_path}/gone"}))
    with pytest.raises(StageError, match=f"^{tmp_path}/gone: found nothing there") as caught:
        load_policy(str(tmp_path), HARDWARE)
    assert caught.value.exit_code == 4 and "repo" not in str(caught.value).lower()


def test_weights_in_a_pickle_are_refused(base):
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(state, base / "pytorch_model.bin")
    with pytest.raises(StageError):
        load_policy(str(base), HARDWARE)


def test_a_missing_weight_is_refused_and_not_drawn_at_random(base):
    state = load_file(base / "model.safetensors")
    removed = next(name for name in state if "q_proj" in name)
    del state[removed]
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="q_proj") as caught:
        load_policy(str(base), HARDWARE)
    assert caught.value.exit_code == 3


def test_weights_of_another_shape_are_refused(base):
    edit_json(base / "config.json", vocab_size=512)
    with pytest.raises(
        StageError, match=r"weights missing or of another shape: .*embed_tokens\.weight.*512.*would have been drawn"
    ) as caught:
        load_policy(str(base), HARDWARE)
    assert caught.value.exit_code == 3


def test_an_adapter_that_changes_no_weights_is_refused(base, tmp_path):
    from peft import PrefixTuningConfig, get_peft_model

    prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), prefix).save_pretrained(tmp_path / "prefix")
    with pytest.raises(StageError, match=r"prefix: found an adapter that cannot be merged \(PREFIX_TUNING\)") as caught:
        load_policy(str(tmp_path / "prefix"), HARDWARE)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_with_numbers_that_are_not_finite_are_counted_and_named(base, number):
    model = load_policy(str(base), HARDWARE)
    assert count_broken_weights(model, 0, frozen=True) == 0 and not name_broken_weights(model, 0)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.get_parameter(name).requires_grad_(False)
    weight[0, 0] = number
    assert count_broken_weights(model, 0) == 0 and count_broken_weights(model, 0, frozen=True) == 1
    assert name_broken_weights(model, 0) == name


def test_the_reward_models_new_head_has_the_papers_spread_and_depends_on_the_seed_only(base_model_dir):
    first, again, other = (init_reward_model(str(base_model_dir), HARDWARE, seed=seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std().item() == pytest.approx(1 / 129**0.5, rel=0.25)  # d = 128


def test_the_reward_models_body_is_the_sft_models(base_model_dir):
    policy = load_policy(str(base_model_dir), HARDWARE)
    reward_model = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
    for name, parameter in policy.model.state_dict().items():
        assert torch.equal(parameter, reward_model.model.state_dict()[name]), name


def test_a_saved_reward_model_opens_without_our_code_and_gives_the_same_logits(reward_model_dir):
    ours = load_reward_model(str(reward_model_dir), HARDWARE)
    plain = AutoModelForSequenceClassification.from_pretrained(reward_model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(reward_model_dir)
    batch = tokenizer(["a grey chair", "it is delayed until Friday, sorry"], return_tensors="pt", padding=True, padding_side="right")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        assert torch.allclose(ours(ids, attention_mask=mask).logits, plain(ids, attention_mask=mask).logits, atol=1e-6)
    assert json.loads((reward_model_dir / "score.json").read_text()) == {"score_bias": 0.25, "score_scale": 2.0}


def test_the_score_is_the_logit_less_the_bias_over_the_scale(reward_model_dir):
    calibration = load_reward_model(str(reward_model_dir), HARDWARE).calibration
    assert calibration.apply(torch.tensor([2.25, 0.25])).tolist() == [1.0, 0.0]


def test_a_reward_model_without_its_head_is_refused(reward_model_dir):
    state = load_file(reward_model_dir / "model.safetensors")
    del state["score.weight"]
    save_file(state, reward_model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="score") as caught:
        load_reward_model(str(reward_model_dir), HARDWARE)
    assert caught.value.exit_code == 3


def test_a_policy_is_refused_where_a_reward_model_is_needed(base_model_dir):
    with pytest.raises(StageError) as caught:
        load_reward_model(str(base_model_dir), HARDWARE)
    assert caught.value.exit_code == 3


def test_a_matching_pair_passes_the_hand_off(base_model_dir, reward_model_dir):
    check_handoff(str(base_model_dir), str(reward_model_dir))


def swap_template(directory):
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def swap_end_token(directory):
    edit_json(directory / "tokenizer_config.json", eos_token="<|assistant|>")


def swap_vocabulary(directory):
    content = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary)[200:202]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (directory / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"), [(swap_template, "chat template"), (swap_end_token, "end token"), (swap_vocabulary, "another tokenizer")]
)
def test_a_reward_model_that_reads_other_token_ids_is_refused(base_model_dir, reward_model_dir, change, said):
    change(reward_model_dir)
    with pytest.raises(StageError) as caught:
        check_handoff(str(base_model_dir), str(reward_model_dir))
    message = str(caught.value)
    assert caught.value.exit_code == 3 and "train the rm stage" in message
    assert said in message or "another" in message


@pytest.fixture
def adapter_output(base_model_dir, tmp_path):
    """An SFT-like adapter with random, non-zero weights, and its merged model."""
    tokenizer = load_tokenizer(str(base_model_dir))
    model = apply_lora(load_policy(str(base_model_dir), HARDWARE), LoRASettings(rank=4), "CAUSAL_LM", HARDWARE)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    output = tmp_path / "adapter_artifact"
    ids = torch.tensor([[1, 30, 40, 50]])
    with torch.no_grad():
        expected = model(ids).logits
    save_model(model, tokenizer, output, merge=True)
    return output, ids, expected


def test_an_adapter_names_its_base_and_opens_without_our_code(adapter_output, base_model_dir):
    output, ids, expected = adapter_output
    named = json.loads((output / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(base_model_dir)
    plain = AutoModelForCausalLM.from_pretrained(output / "model", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, expected, atol=1e-4)


def test_the_merged_model_and_our_loader_agree_with_the_adapter(adapter_output):
    output, ids, expected = adapter_output
    merged = AutoModelForCausalLM.from_pretrained(output / "merged", dtype=torch.float32)
    from_merged = load_policy(str(output / "model"), HARDWARE)
    shutil.rmtree(output / "merged")
    from_adapter = load_policy(str(output / "model"), HARDWARE)
    with torch.no_grad():
        for model in (merged, from_merged, from_adapter):
            assert torch.allclose(model(ids).logits, expected, atol=1e-4)


def test_training_an_adapter_on_an_adapter_without_a_merged_model_is_refused(adapter_output):
    output, _, _ = adapter_output
    require_adapter_base(str(output / "model"), "rm.lora")
    shutil.rmtree(output / "merged")
    with pytest.raises(StageError, match=r"sft\.lora\.merge"):
        require_adapter_base(str(output / "model"), "rm.lora")


def test_an_adapter_trained_on_bfloat16_weights_is_merged_into_the_float32_ones_on_disk(base_model_dir, tmp_path):
    tokenizer = load_tokenizer(str(base_model_dir))
    model = apply_lora(load_policy(str(base_model_dir), HARDWARE), LoRASettings(rank=4), "CAUSAL_LM", BFLOAT16)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in learns} == {torch.float32}
    save_model(model, tokenizer, tmp_path / "output", merge=True)  # an untrained adapter adds nothing
    base, merged = (load_file(directory / "model.safetensors") for directory in (base_model_dir, tmp_path / "output" / "merged"))
    assert all(torch.equal(base[name], weight) for name, weight in merged.items())


def test_models_that_share_weights_do_not_share_adapters(base_model_dir):
    policy = load_policy(str(base_model_dir), HARDWARE)
    other = share_weights(policy)
    adapted = apply_lora(policy, LoRASettings(rank=4), "CAUSAL_LM", HARDWARE)
    assert not any("lora" in name for name, _ in other.named_parameters())
    weight = adapted.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert weight is other.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight += 1.0
    assert torch.equal(weight, other.model.layers[0].mlp.up_proj.weight)


def test_an_adapter_names_the_revision_of_its_base(base_model_dir, tmp_path):
    model = apply_lora(load_policy(str(base_model_dir), HARDWARE), LoRASettings(), "CAUSAL_LM", HARDWARE, "abc")
    save_model(model, load_tokenizer(str(base_model_dir)), tmp_path)
    assert json.loads((tmp_path / "model" / "adapter_config.json").read_text())["revision"] == "abc"


def test_a_torn_merged_model_is_merged_anew(adapter_output, base_model_dir):
    output, ids, expected = adapter_output
    adapted = apply_lora(load_policy(str(base_model_dir), HARDWARE), LoRASettings(rank=4), "CAUSAL_LM", HARDWARE)
    (output / "merged" / "model.safetensors").write_bytes(b"torn")
    save_model(adapted, load_tokenizer(str(base_model_dir)), output, merge=True)
    with torch.no_grad():
        found = load_policy(str(output / "model"), HARDWARE)(ids).logits
        assert torch.equal(found, load_policy(str(base_model_dir), HARDWARE)(ids).logits)
        assert not torch.allclose(found, expected, atol=1e-4)


def test_a_merged_reward_model_opens_with_its_bias_and_scale(reward_adapter_dir):
    adapter, merged = (load_reward_model(str(reward_adapter_dir.parent / name), HARDWARE) for name in ("model", "merged"))
    assert merged.calibration == Calibration(0.25, 2.0)
    assert all(torch.equal(one, other) for one, other in zip(adapter.parameters(), merged.parameters(), strict=True))


def test_every_weight_learns_on_top_of_an_unmerged_adapter(adapter_output):
    output, _, _ = adapter_output
    shutil.rmtree(output / "merged")
    path = str(output / "model")
    for model in (load_policy(path, HARDWARE), init_reward_model(path, HARDWARE, seed=1)):
        assert all(parameter.requires_grad for parameter in model.parameters())
