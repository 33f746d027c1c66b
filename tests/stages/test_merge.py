"""Exported models are plain: transformers alone opens them, and what their card says of a score is so."""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data.schema import Message
from data.tokens import encode_prompt, encode_response
from pipeline.export import export
from pipeline.store.manifest import ManifestFields
from pipeline.store.store import Store
from stages.blocks import HardwareSettings
from stages.merge import cast_weights
from stages.models.reward_model import load_reward_model
from stages.models.tokenizer import load_tokenizer
from stages.process.errors import StageError
from stages.responses.scores import score_rankings

PROMPT, ANSWER = "Order: red lamp. Status: packed. Day: Monday. Ann asks: where is it?", "It leaves on Tuesday."
BIAS, SCALE = 0.25, 2.0


def publish(root, directory, kind, **fields):
    """Publish a model's directory, without what lies beside it."""
    store = Store(root)
    with store.staging(kind) as staging:
        shutil.copytree(directory, staging.path / "model")
        return store, store.publish(staging, ManifestFields(**fields))


def score_as_the_card_says(directory):
    """Run the card's own code."""
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)[1]
    names = {"messages": [{"role": "user", "content": PROMPT}], "answer": ANSWER}
    exec(code.replace("NAME", str(directory)), names)
    return names["score"]


def score_as_we_do(directory):
    """Ask our reward model, on the token stream that it was trained on."""
    tokenizer = load_tokenizer(str(directory))
    prompt = encode_prompt(tokenizer, [Message("user", PROMPT)], 96)
    model = load_reward_model(str(directory), HardwareSettings(device="cpu", precision="float32"))
    return score_rankings(model, [(prompt.ids, [encode_response(tokenizer, ANSWER)])])[0].item()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_merged_reward_model_scores_as_its_card_says_in_float32_and_about_so_in_bfloat16(reward_adapter_dir, tmp_path):
    facts = {"score_bias": BIAS, "score_scale": SCALE, "form": "adapter", "architecture": "LlamaForSequenceClassification"}
    store, _ = publish(tmp_path / "store", reward_adapter_dir, "rm", facts=facts)
    exported, told = tmp_path / "exported", []
    export(store, "rm", exported, merge=True, told=told.append)
    assert told == ["rm: copying it, every byte verified", "rm@v1: merging the adapter into its base"]
    made, expected = (load_file(path / "model.safetensors") for path in (exported, reward_adapter_dir.parent / "merged"))
    assert made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in made)
    assert not list(exported.glob("adapter*")) and not (exported / ".merged").exists()
    ours = score_as_we_do(exported)
    assert abs(ours) > 0.05 and score_as_the_card_says(exported) == pytest.approx(ours, abs=1e-4)
    cast_weights(exported, "bfloat16")
    assert score_as_the_card_says(exported) == pytest.approx(ours, abs=0.05)


def test_cast_weights_are_rounded_once_and_the_config_says_so(base_model_dir, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(base_model_dir, directory)
    before = load_file(directory / "model.safetensors")
    size = (directory / "model.safetensors").stat().st_size
    cast_weights(directory, "bfloat16")
    after = load_file(directory / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name].to(torch.bfloat16), after[name]) for name in before)
    assert (directory / "model.safetensors").stat().st_size < 0.51 * size
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # transformers asks for it
    assert AutoModelForCausalLM.from_pretrained(directory).dtype == torch.bfloat16


def test_shards_integers_and_nested_configs_are_cast_as_they_should(tmp_path):
    save_file({"a": torch.ones(4), "ids": torch.arange(3)}, tmp_path / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.ones(2, dtype=torch.float64)}, tmp_path / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": 56}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "float32", "text_config": {"dtype": "float32"}, "vision": {}}))
    cast_weights(tmp_path, "bfloat16")
    assert load_file(tmp_path / "model-00001-of-00002.safetensors")["ids"].dtype == torch.int64
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == 4 * 2 + 3 * 8 + 2 * 2
    assert json.loads((tmp_path / "config.json").read_text()) == {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "vision": {}}


def test_what_float16_does_not_hold_is_refused(tmp_path):
    save_file({"a": torch.tensor([1e6])}, tmp_path / "model.safetensors")
    with pytest.raises(StageError, match=r"a: found a weight of 1e\+06, which torch.float16 does not hold; choose bfloat16"):
        cast_weights(tmp_path, "float16")
    with pytest.raises(StageError, match="found no"):
        cast_weights(tmp_path / "nothing", "bfloat16")
