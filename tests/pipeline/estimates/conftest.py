"""What tests of estimates share: a recipe that nothing but a plan can be made of."""

import json

from pytest import fixture

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


@fixture
def recipe(tmp_path):
    """A recipe whose base model is a configuration alone, and whose data are not there."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "recipe.yaml"
    data = "".join(f"  {kind}: someone/{kind}\n" for kind in ("demonstrations", "comparisons", "prompts"))
    path.write_text(f"base_model: {tmp_path / 'model'}\ndata:\n{data}tokens: {{max_prompt_tokens: 32, max_response_tokens: 16}}\n")
    return path
