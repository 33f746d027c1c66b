"""Texts + seed -> an untrained base model that `from_pretrained` opens: tokenizer, chat template, Llama of 0.57 M parameters.

Written without torch, so that the pipeline can make it; the same texts and seed give the same bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, USER, ASSISTANT, END)  # their ids are 0 to 3
PAD_ID, END_ID = SPECIAL_TOKENS.index(PAD), SPECIAL_TOKENS.index(END)
MAX_VOCAB_SIZE = 1024  # the demo's texts run out of merges at about 822

HIDDEN, LAYERS, HEADS, INTERMEDIATE, MAX_POSITIONS = 128, 4, 4, 128, 256
# A wider feed-forward (320) gave the reward model no better accuracy, and a fifth more time.
# With Llama's usual 0.02 a model this small gets the facts right in 10 % of its answers after SFT, with 0.08 in 74 %.
INITIALIZER_RANGE = 0.08
# Keys begin correlated with queries, so a token looks for others like it, and a reward model sees early that an answer's item is not the
# order's: on data 7 its pair accuracy after 12,000 lists of an earlier demo was 0.85, and 0.80 with 0 (one run each; seeds differ by as
# much).
QUERY_KEY_CORRELATION = 0.4

# A system message reads like a user's. Nothing follows the end token, so a prompt with earlier turns is exactly the
# ids that the model saw and wrote.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{%- elif message['role'] in ('user', 'system') -%}{{ '<|user|>' + message['content'] }}"
    "{%- else -%}{{ raise_exception('role ' + message['role'] + ': needed system, user or assistant') }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def write_base_model(directory: Path, texts: Iterable[str], seed: int) -> None:
    """Train a byte-level BPE tokenizer on texts, draw a Llama's weights, and write both as a model directory.

    Args:
        directory: Where to write; made if missing.
        texts: What the tokenizer is trained on.
        seed: Of the weights.
    """
    from safetensors.numpy import save

    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = _write_tokenizer(directory, texts)
    _write_json(directory / "config.json", _model_config(vocab_size))
    _write_json(directory / "generation_config.json", {"do_sample": True, "eos_token_id": END_ID, "pad_token_id": PAD_ID})
    weights = save(_draw_weights(vocab_size, seed), metadata={"format": "pt"})
    (directory / "model.safetensors").write_bytes(weights)


def _write_tokenizer(directory: Path, texts: Iterable[str]) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any byte can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "extra_special_tokens": [USER, ASSISTANT],
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    return tokenizer.get_vocab_size()


def _model_config(vocab_size: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "intermediate_size": INTERMEDIATE,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "use_cache": True,
    }


def _draw_weights(vocab_size: int, seed: int) -> "dict[str, npt.NDArray[np.float32]]":
    """Draw every matrix from N(0, 0.08); norms are 1 and the padding row 0, as transformers initialises them.

    Differs: keys are correlated with queries, W_k = ρ W_q + √(1 − ρ²) N(0, 0.08), so that W_q W_kᵀ leans to the identity as it does in
    pretrained models (mimetic initialisation, Trockman & Kolter 2023, arXiv 2305.09828).
    """
    import numpy as np  # here, not at the top: `rlhf plan` imports this package for the demo's version

    rng = np.random.default_rng(seed)

    def draw(rows: int, columns: int) -> "npt.NDArray[np.float32]":
        return rng.normal(0.0, INITIALIZER_RANGE, (rows, columns)).astype(np.float32)

    ones = np.ones(HIDDEN, dtype=np.float32)
    weights = {"model.embed_tokens.weight": draw(vocab_size, HIDDEN), "model.norm.weight": ones}
    weights["model.embed_tokens.weight"][PAD_ID] = 0.0
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        query, key, value, output = (draw(HIDDEN, HIDDEN) for _ in "qkvo")
        key = np.float32(QUERY_KEY_CORRELATION) * query + np.float32((1 - QUERY_KEY_CORRELATION**2) ** 0.5) * key
        weights |= {
            f"{layer}.self_attn.{name}_proj.weight": matrix for name, matrix in zip("qkvo", (query, key, value, output), strict=True)
        }
        weights |= {f"{layer}.mlp.{name}_proj.weight": draw(INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        weights[f"{layer}.mlp.down_proj.weight"] = draw(HIDDEN, INTERMEDIATE)
        weights |= {f"{layer}.{name}_layernorm.weight": ones for name in ("input", "post_attention")}
    return weights


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
