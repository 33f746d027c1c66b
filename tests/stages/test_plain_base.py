"""A base model without chat template and pad token through all three stages, and what it leaves without our code."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from stages.blocks import HardwareSettings
from tests.stages.models.lookalikes import LAYOUTS, write_base

pytestmark = pytest.mark.slow  # real stage processes

HARDWARE = HardwareSettings(device="cpu", precision="float32", threads=1)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_records(stage):
    """Few words that a tiny model learns at once: it says `one.` and ends."""
    prompts = [f"Say one, the {i}th time" for i in range(24)]
    kinds = {
        "demonstrations": [{"prompt": prompt, "completion": "one."} for prompt in prompts],
        "comparisons": [{"prompt": prompt, "chosen": "one.", "rejected": "No!"} for prompt in prompts],
        "prompts": [{"prompt": prompt} for prompt in prompts],
    }
    for kind, splits in stage.spec.data.items():
        write_lines(type(stage.spec_path)(splits.train.path), kinds[kind][4:])
        write_lines(type(stage.spec_path)(splits.eval.path), kinds[kind][:4])
    return prompts


def test_a_base_without_template_and_pad_goes_through_all_stages_and_plain_transformers_reproduces_them(make_stage, tmp_path):
    rows = write_base(tmp_path / "base", LAYOUTS["gpt2"], weights=True, hidden=64)
    common = {"hardware": HARDWARE, "judge": None, "save_every": 1000}
    sft = make_stage("sft", models={"base": tmp_path / "base"}, epochs=8, learning_rate=1e-2, **common)
    prompts = write_records(sft)
    sft.run()
    notes = [event["message"] for event in sft.events() if event["event"] == "note"]
    assert notes[0].startswith("chat template: plain text") and "pad token: <|pad|> (new, in one more embedding row" in notes[0]
    rm = make_stage("rm", models={"sft": sft.model_dir}, **common)
    write_records(rm)
    rm.run()
    ppo = make_stage("ppo", models={"sft": sft.model_dir, "rm": rm.model_dir}, iterations=2, learning_rate=1e-6, **common)
    write_records(ppo)
    ppo.run()
    assert ppo.result.metrics["eval/start/kl"] == 0.0

    facts = [stage.result.facts for stage in (sft, rm, ppo)]
    assert {(fact.chat_template_hash, fact.tokenizer_hash, fact.pad_token_id, fact.vocab_size) for fact in facts} == {
        (facts[0].chat_template_hash, facts[0].tokenizer_hash, rows, rows + 1)
    }
    for stage in (sft, ppo):
        tokenizer = AutoTokenizer.from_pretrained(stage.model_dir, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(stage.model_dir, dtype=torch.float32)
        end = tokenizer.eos_token_id
        assert end == model.config.eos_token_id == model.generation_config.eos_token_id == stage.result.facts.eos_token_id
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[:4]]
        assert tokenizer.apply_chat_template(chats[0], add_generation_prompt=True, tokenize=False) == f"User:\n{prompts[0]}\n\nAssistant:\n"
        batch = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
        said = model.generate(**batch, do_sample=False, max_new_tokens=8)[:, batch["input_ids"].shape[1] :]
        samples = [json.loads(line) for line in (stage.spec.output_dir / "samples.jsonl").read_text().splitlines()]
        greedy = [row for row in samples if row["way"] == "greedy"]
        for ids, row in zip(said.tolist(), greedy, strict=True):
            assert end in ids and set(ids[ids.index(end) + 1 :]) <= {tokenizer.pad_token_id}  # it stopped, and was padded from there on
            assert row["finished"] and tokenizer.decode(ids, skip_special_tokens=True) == row["response"] == "one."

    tokenizer = AutoTokenizer.from_pretrained(rm.model_dir)
    reward_model = AutoModelForSequenceClassification.from_pretrained(rm.model_dir, dtype=torch.float32)
    calibration = json.loads((rm.model_dir / "score.json").read_text())
    row = json.loads((rm.spec.output_dir / "samples.jsonl").read_text().splitlines()[0])
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompts[0]}], add_generation_prompt=True, return_dict=False)
    ids += [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logit = reward_model(torch.tensor([ids])).logits.item()
    assert (logit - calibration["score_bias"]) / calibration["score_scale"] == pytest.approx(row["score"], abs=1e-3)
