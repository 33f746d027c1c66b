"""Tiny random base models of the world's families, with a tokenizer, and a few records: nothing comes from anywhere."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]

_OLD = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 128}
_NEW = _OLD | {"num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

# Name -> (model type, sizes). Dropout is set where a family has some: it must be off in every stage.
FAMILIES = {
    "bert": ("bert", _OLD),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.3, "attention_dropout": 0.3}),
    "cohere": ("cohere", _NEW | {"logit_scale": 0.0625}),
    "cohere2": ("cohere2", _NEW | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "falcon": (
        "falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    ),
    "falcon_h1": (
        "falcon_h1",
        _NEW | {"head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16},
    ),
    "gemma": ("gemma", _NEW | {"head_dim": 8}),
    "gemma2": ("gemma2", _NEW | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", _NEW | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3-with images": (
        "gemma3",
        {
            "text_config": _NEW | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
            "vision_config": _OLD | {"image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        _NEW
        | {
            "head_dim": 8,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "laurel_rank": 4,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
    ),
    "glm": ("glm", _NEW | {"head_dim": 8}),
    "gpt2": ("gpt2", _GPT | {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
    "gpt_bigcode": ("gpt_bigcode", _GPT),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_neox": ("gpt_neox", _OLD),
    "gpt_oss": ("gpt_oss", _NEW | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "gptj": ("gptj", _GPT | {"rotary_dim": 8}),
    "granite": ("granite", _NEW | {"logits_scaling": 8.0}),
    "jamba": (
        "jamba",
        _NEW
        | {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("lfm2", _NEW | {"layer_types": ["conv", "full_attention"]}),
    "llama": ("llama", _NEW),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": (
        "mamba2",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    ),
    "mistral": ("mistral", _NEW | {"sliding_window": None}),
    "mistral-window": ("mistral", _NEW | {"sliding_window": 8}),
    "mixtral": ("mixtral", _NEW | {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.3}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}),
    "olmo2": ("olmo2", _NEW),
    "opt": (
        "opt",
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32, "dropout": 0.3},
    ),
    "opt-350m": (
        "opt",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
    ),
    "phi": ("phi", _OLD),
    "phi3": ("phi3", _NEW | {"original_max_position_embeddings": 128}),
    "qwen2": ("qwen2", _NEW),
    "qwen2-window": ("qwen2", _NEW | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", _NEW | {"head_dim": 8}),
    "qwen3_5": ("qwen3_5_text", _NEW | _LINEAR | {"head_dim": 8, "num_hidden_layers": 4}),
    "qwen3_moe": ("qwen3_moe", _NEW | _MOE | {"head_dim": 8}),
    "qwen3_next": ("qwen3_next", _NEW | _LINEAR | _MOE | {"head_dim": 8, "num_hidden_layers": 4, "shared_expert_intermediate_size": 32}),
    "recurrent_gemma": ("recurrent_gemma", _NEW | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8}),
    "rwkv": ("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 128}),
    "smollm3": ("smollm3", _NEW),
    "stablelm": ("stablelm", _NEW),
    "t5": ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
}


def make_family_tokenizer():
    """A byte-level BPE with a chat template, an end token and a pad token."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    core.train_from_iterator(
        ["Say " + " ".join(_WORDS)] * 4,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def make_config(family, vocab_size=288, **changes):
    model_type, sizes = FAMILIES[family]
    ids = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    if model_type == "gemma3n_text":
        ids["vocab_size_per_layer_input"] = vocab_size
    if "text_config" in sizes:
        return AutoConfig.for_model(model_type, **sizes | {"text_config": sizes["text_config"] | ids | changes})
    return AutoConfig.for_model(model_type, **sizes | ids | changes)


def save_base(family, directory, seed=0, **changes):
    """Write a base model and its tokenizer."""
    tokenizer = make_family_tokenizer()
    config = make_config(family, len(tokenizer), **changes)
    torch.manual_seed(seed)
    model = (AutoModelForSeq2SeqLM if config.model_type == "t5" else AutoModelForCausalLM).from_config(config)
    head = model.get_output_embeddings()
    if head is not None and not config.get_text_config().tie_word_embeddings:
        with torch.no_grad():
            head.weight.mul_(20)  # logits as large as a trained model's, where caps and scales act
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def save_with_tokenizer(family, directory, tokenizer, vocab_size):
    """Write a model of a family with another model's tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(make_config(family, vocab_size)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_records(directory):
    """Write eight records of each kind; returns their paths."""
    rows = {"demonstrations": [], "comparisons": [], "prompts": []}
    for word in _WORDS:
        prompt = f"Say {word}"
        rows["demonstrations"].append({"prompt": prompt, "completion": f"{word}."})
        rows["comparisons"].append({"prompt": prompt, "completions": [f"{word}.", f"{word}, no.", "No!"], "ranks": [1, 2, 3]})
        rows["prompts"].append({"prompt": prompt})
    paths = {}
    for kind, records in rows.items():
        paths[kind] = directory / f"{kind}.jsonl"
        paths[kind].write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths
