"""What a family can do is tried on a miniature; logits come of the model's own code; what is random or off the task is switched off."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from stages.blocks import HardwareSettings, LoRASettings
from stages.family import check_lora, find_family
from stages.models.adapters import apply_lora
from stages.models.logprobs import compute_token_logprobs
from stages.models.miniature import ConfigKey, make_miniature, make_skeleton
from stages.models.packing import pack
from stages.models.policy import load_policy
from stages.models.probe import find_ways, refuse_encoders
from stages.models.quiet import as_published
from stages.process.errors import StageError
from stages.responses.generation import generate_responses
from stages.spec import EXIT_USAGE
from tests.stages.family_models import make_config, save_base

HARDWARE = HardwareSettings(device="cpu", precision="float32")
TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15], [16, 17, 18, 19, 20]]


def capped(directory, family, **changes):
    """A base whose head is as large as a trained one's: logits of about 20, where a cap or a scale acts."""
    save_base(family, directory, tie_word_embeddings=False, **changes)
    return directory


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("granite", {"logits_scaling": 8.0}),
        ("falcon_h1", {"lm_head_multiplier": 0.25}),
        ("llama", {}),
    ],
)
@pytest.mark.parametrize("limit", [2**24, 1])
def test_the_actors_logprobs_and_their_gradients_are_those_of_the_models_own_logits(tmp_path, monkeypatch, family, changes, limit):
    monkeypatch.setattr("stages.models.logprobs._MAX_LOGITS", limit)  # 1: one token's logits at a time
    policy = load_policy(str(capped(tmp_path, family, **changes)), HARDWARE)
    assert policy.ways.own_head == (family != "llama")
    row = pack(TEXTS)
    predictors = torch.tensor([0, 1, 5, 8, 9, 11, 14])  # none is a text's last token
    found, _ = compute_token_logprobs(policy, row, predictors, 0.7)
    found.sum().backward()
    gradient = policy.get_output_embeddings().weight.grad

    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    expected = []
    for text in TEXTS:
        logprobs = (plain(torch.tensor([text])).logits[0, :-1] / 0.7).log_softmax(-1)
        expected += [logprobs[place, token] for place, token in enumerate(text[1:])]
    places = {row_index: index for index, row_index in enumerate([0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 14])}
    chosen = torch.stack([expected[places[int(index)]] for index in predictors])
    chosen.sum().backward()
    torch.testing.assert_close(found, chosen, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, plain.get_output_embeddings().weight.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["bloom", "falcon", "gpt2", "opt", "mixtral"])
def test_nothing_random_is_left_in_training_mode_and_the_published_settings_are_the_bases(tmp_path, family):
    """Dropout as modules, as arguments of functions, and a router's jitter."""
    save_base(family, tmp_path / "base", output_router_logits=True) if family == "mixtral" else save_base(family, tmp_path / "base")
    tokens = torch.arange(3, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).train()
    policy = load_policy(str(tmp_path / "base"), HARDWARE).train()
    with torch.no_grad():
        assert not torch.equal(plain(tokens, output_router_logits=False).logits, plain(tokens, output_router_logits=False).logits)
        assert torch.equal(policy(tokens).logits, policy(tokens).logits)
    assert not getattr(policy.config, "output_router_logits", False)
    with as_published(policy):
        policy.save_pretrained(tmp_path / "saved")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "saved"))
    assert {key: after[key] for key in before} == before
    with torch.no_grad():
        assert torch.equal(policy(tokens).logits, policy(tokens).logits)  # publishing left the one in memory as it was


def test_a_miniature_of_a_large_model_is_small_and_leaves_torchs_generator_and_the_configuration_alone():
    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, vocab_size=128256
    )
    before, state = copy.deepcopy(config.to_dict()), torch.get_rng_state()
    model = make_miniature(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["llama", "gemma3-with images", "gemma3n"])
def test_what_a_family_can_do_is_tried_once_whatever_a_stage_says_of_words_and_special_tokens(family):
    asked = ConfigKey(make_config(family))
    assert ConfigKey(make_config(family, vocab_size=300, eos_token_id=[3, 4], use_cache=False, dtype="bfloat16")) == asked
    for changes in ({"pad_token_id": None}, {"rms_norm_eps": 1e-2}):
        assert ConfigKey(make_config(family, **changes)) != asked


@pytest.mark.parametrize("family", ["bloom", "falcon_h1", "gemma3n", "gemma3-with images", "gpt2", "mamba", "mixtral", "opt-350m"])
def test_a_skeleton_has_a_miniatures_modules_and_shapes_and_draws_nothing(family):
    config = make_config(family)
    state = torch.get_rng_state()
    skeleton, miniature = make_skeleton(config), make_miniature(config)
    assert [(name, type(module)) for name, module in skeleton.named_modules()] == [
        (name, type(module)) for name, module in miniature.named_modules()
    ]
    # One that two modules share has one name here, too.
    assert [(name, weight.shape) for name, weight in skeleton.named_parameters()] == [
        (name, weight.shape) for name, weight in miniature.named_parameters()
    ]
    assert all(weight.is_meta for weight in skeleton.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_a_family_halves_in_evaluation_are_left_as_they_are(tmp_path):
    """RWKV divides the weights of every sixth layer by two, in place, when it is evaluated: saved then, they would be divided once more."""
    save_base("rwkv", tmp_path / "base", num_hidden_layers=8)
    policy = load_policy(str(tmp_path / "base"), HARDWARE)
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        found = policy(tokens).logits
    with as_published(policy):
        policy.save_pretrained(tmp_path / "saved")
    assert policy.config.rescale_every == 0
    evaluated = []
    for name in ("base", "saved"):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        assert plain.config.rescale_every == 6
        with torch.no_grad():
            torch.testing.assert_close(plain.train()(tokens).logits, found, atol=1e-6, rtol=1e-5)  # nothing is halved in training
            evaluated.append(plain.eval()(tokens).logits)
    assert torch.equal(*evaluated)


def test_a_miniature_narrows_a_model_without_heads_too():
    model = make_miniature(AutoConfig.for_model("rwkv"))  # 4,096 wide, 32 layers
    assert sum(parameter.numel() for parameter in model.parameters()) < 10_000_000


@pytest.mark.parametrize(
    ("model_type", "name"), [("mpt", "n_layers"), ("xglm", "num_layers"), ("gpt2", "n_layer"), ("llama", "num_hidden_layers")]
)
def test_a_miniature_has_layers_whatever_a_family_calls_their_number(model_type, name):
    model = make_miniature(AutoConfig.for_model(model_type, **{name: 24}))
    layers = [child for child in model.base_model.children() if isinstance(child, torch.nn.ModuleList)]
    assert [len(each) for each in layers] == [2]


def test_a_miniature_has_a_layer_of_each_kind():
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=26)  # five layers with a window, then one without
    kinds = make_miniature(config).config.layer_types
    assert set(kinds) == set(config.layer_types)
    assert len(kinds) < 26


def test_attention_that_does_not_compute_what_the_families_own_code_does_is_not_taken(tmp_path):
    """gpt_neo has eager attention only; asked for by name, the other is refused in one line."""
    save_base("gpt_neo", tmp_path)
    assert load_policy(str(tmp_path), HARDWARE).config._attn_implementation == "eager"
    with pytest.raises(
        StageError, match=r"^hardware.attention: found sdpa, which gpt_neo does not compute by; needed: eager or auto"
    ) as caught:
        load_policy(str(tmp_path), HARDWARE.model_copy(update={"attention": "sdpa"}))
    assert caught.value.exit_code == EXIT_USAGE


def test_a_configuration_that_its_own_code_cannot_build_is_refused_in_one_line():
    config = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4, hidden_act="no such")
    with pytest.raises(StageError, match="whose code cannot be tried here") as caught:
        find_ways(config)
    assert "\n" not in str(caught.value)


def test_a_family_whose_code_is_built_otherwise_is_refused_in_one_line():
    """Llama 4's language model is no layer above a backbone of its own, as the others' are."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model("llama4_text", **sizes, head_dim=8, intermediate_size_mlp=64, num_local_experts=2)
    with pytest.raises(StageError, match=r"^base_model: found llama4_text \(Llama4TextConfig\), ") as caught:
        find_ways(config)
    assert "\n" not in str(caught.value)


def test_a_family_without_a_causal_language_model_is_refused():
    with pytest.raises(StageError, match="no causal language model of"):
        refuse_encoders(AutoConfig.for_model("vit"))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_weight_that_two_modules_share_is_refused(tmp_path, target):
    save_base("llama", tmp_path, tie_word_embeddings=True)
    lora = LoRASettings(rank=2, target_modules=["q_proj", target])
    with pytest.raises(StageError, match=rf"^lora.target_modules: found {target}, whose weight is also that of") as caught:
        apply_lora(load_policy(str(tmp_path), HARDWARE), lora, "CAUSAL_LM", HARDWARE)
    assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(StageError, match=r"^ppo.lora.target_modules: found"):  # before any stage, from the configuration alone
        check_lora(str(tmp_path), {"sft": None, "rm": LoRASettings(rank=2), "ppo": lora})


def test_an_adapter_on_a_layer_that_is_never_called_is_left_out_or_refused(tmp_path):
    """Mamba reads the weight of dt_proj: what is put around the layer would compute nothing."""
    save_base("mamba", tmp_path)
    adapted = apply_lora(load_policy(str(tmp_path), HARDWARE), LoRASettings(rank=2), "CAUSAL_LM", HARDWARE)
    assert {name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_B" in name} == {"in_proj", "x_proj"}
    for names in (["dt_proj"], ["in_proj", "mixer.dt_proj"], ".*(in|dt)_proj"):
        with pytest.raises(StageError, match=r"^ppo.lora.target_modules: found dt_proj, whose weights .*; leave it out$") as caught:
            check_lora(str(tmp_path), {"ppo": LoRASettings(rank=2, target_modules=names)})
        assert caught.value.exit_code == EXIT_USAGE


def test_an_adapter_on_a_head_of_its_own_is_taken_and_one_that_peft_refuses_is_told_in_one_line(tmp_path):
    save_base("llama", tmp_path, tie_word_embeddings=False)
    check_lora(str(tmp_path), {"ppo": LoRASettings(rank=2, target_modules=["q_proj", "lm_head"])})
    for stage in ("pretrain", "sft"):  # TRL's loss reads the head's weight, and refuses one there when the stage is about to train
        with pytest.raises(
            StageError, match=rf"^{stage}.lora.target_modules: found lm_head, by whose weight the loss multiplies"
        ) as caught:
            check_lora(str(tmp_path), {stage: LoRASettings(rank=2, target_modules=["q_proj", "lm_head"])})
        assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(StageError, match=r"^ppo.lora.target_modules: found lm_head alone, which the critic has not") as caught:
        check_lora(str(tmp_path), {"ppo": LoRASettings(rank=2, target_modules=["lm_head"])})
    with pytest.raises(StageError, match=r"^sft.lora.target_modules: found .*no_such") as caught:
        check_lora(str(tmp_path), {"sft": LoRASettings(rank=2, target_modules=["no_such"])})
    assert "\n" not in str(caught.value)


def test_responses_by_generate_do_not_depend_on_the_batch_and_their_logprobs_are_those_of_plain_forwards(tmp_path):
    save_base("mamba", tmp_path)
    assert find_family(str(tmp_path)).decoding == "generate"
    policy = load_policy(str(tmp_path), HARDWARE)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12], [13, 14, 15], [16]]
    arguments = {"max_new_tokens": 7, "stop_token_ids": {*range(60)}, "temperature": 0.8, "seed": 3}
    together, apart = (generate_responses(policy, prompts, max_rows=rows, **arguments) for rows in (5, 1))
    assert [each.ids for each in together] == [each.ids for each in apart]
    assert len({len(each.ids) for each in together}) > 1  # some stop early, beside others that do not
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for prompt, response in zip(prompts, together, strict=True):
        with torch.no_grad():
            logprobs = (plain(torch.tensor([prompt + response.ids])).logits[0, len(prompt) - 1 : -1] / 0.8).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(response.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, atol=1e-5, rtol=1e-5)
        assert all(token not in range(60) for token in response.ids[:-1])


def change_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"])
def test_quantized_weights_are_refused_in_one_line(tmp_path, method):
    save_base("llama", tmp_path)
    change_config(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(
        StageError, match=rf"^base_model: found weights that are quantized \({method}\) in .*; take the model that"
    ) as caught:
        find_family(str(tmp_path))
    assert caught.value.exit_code == EXIT_USAGE and "\n" not in str(caught.value)


def test_code_that_lies_beside_a_model_is_never_run_and_never_asked_about(tmp_path, capfd):
    save_base("llama", tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    change_config(tmp_path, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Config"})
    find_family(str(tmp_path))  # of a family that transformers knows
    load_policy(str(tmp_path), HARDWARE)
    change_config(tmp_path, model_type="chatglm")
    with pytest.raises(
        StageError, match=r"^base_model: found Python code in .* that opening it would run \(`auto_map`\); needed"
    ) as caught:
        find_family(str(tmp_path))
    assert caught.value.exit_code == EXIT_USAGE and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists() and "[y/N]" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_by_code_of_the_hub_is_refused_before_anything_is_fetched(tmp_path, key):
    save_base("llama", tmp_path)
    change_config(tmp_path, **{key: "kernels-community/flash-attn"})
    for load in (lambda: find_family(str(tmp_path)), lambda: load_policy(str(tmp_path), HARDWARE)):
        with pytest.raises(
            StageError, match=r"^base_model: found attn_implementation 'kernels-community/flash-attn' in .*, code of a hub"
        ) as caught:
            load()
        assert caught.value.exit_code == EXIT_USAGE and "\n" not in str(caught.value)


def test_a_configuration_that_cannot_be_read_is_told_in_one_line(tmp_path):
    save_base("llama", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(StageError, match=rf"^{tmp_path} cannot be opened by AutoConfig.from_pretrained: ") as caught:
        find_family(str(tmp_path))
    assert "\n" not in str(caught.value)
