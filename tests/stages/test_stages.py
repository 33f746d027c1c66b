"""Each stage as a process on real records: what it learns, what it leaves, and that it opens without our code."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

pytestmark = pytest.mark.slow  # real stage processes


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def render(tokenizer, prompt):
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)


@pytest.fixture(scope="module")
def unmerged_sft(make_stage_in, tmp_path_factory):
    """SFT's adapter, without a merged model beside it; to be left as it is."""
    stage = make_stage_in(tmp_path_factory.mktemp("unmerged"), "sft", lora={"rank": 4})
    stage.run()
    return stage.model_dir


def phases_of(stage):
    """What a stage said that it was doing, in the order in which it first did; each phase that has a length was told to its end."""
    told = [row for row in rows_of(stage.spec.events_path) if row["event"] == "progress"]
    last = {row["phase"]: row for row in told}
    assert all(row["step"] == row["total"] for row in last.values())
    return list(last)


def test_sft_lowers_the_held_out_loss_and_its_model_opens_without_our_code(make_stage, base_model_dir):
    stage = make_stage("sft", rows=400, epochs=3, batch_size=16, micro_batch_size=16, learning_rate=3e-3, save_every=1000)
    stage.run()
    losses = [row["eval/loss"] for row in rows_of(stage.spec.output_dir / "metrics.jsonl") if "eval/loss" in row]
    assert losses[-1] < losses[0] - 0.2 and stage.result.metrics["eval/loss"] < math.log(822) / 3
    assert phases_of(stage) == ["train", "evaluation", "held-out loss", "held-out answers, sampled", "held-out answers, greedy", "saving"]

    model = AutoModelForCausalLM.from_pretrained(stage.model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stage.model_dir)
    total, tokens = 0.0, 0
    for row in rows_of(stage.spec.output_dir.parent / "demonstrations.eval.jsonl"):
        prompt_ids = render(tokenizer, row["prompt"])
        ids = prompt_ids + tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
        for position in range(len(prompt_ids), len(ids)):
            total -= logprobs[position - 1, ids[position]].item()
            tokens += 1
    assert stage.result.metrics["eval/loss"] == pytest.approx(total / tokens, abs=1e-4)
    assert_intervals_hold(stage.result, {"eval/loss", "eval/sampled/response_tokens"})


def test_sft_with_packing_learns_too(make_stage, plain_hardware):
    hardware = plain_hardware.model_copy(update={"attention": "auto"})  # as it is for users
    settings = {"rows": 160, "epochs": 3, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-3, "save_every": 1000}
    stage = make_stage("sft", hardware=hardware, packing=True, **settings)
    stage.run()
    losses = [row["eval/loss"] for row in rows_of(stage.spec.output_dir / "metrics.jsonl") if "eval/loss" in row]
    assert losses[-1] < losses[0]


def test_a_stage_that_may_skip_bad_lines_leaves_the_weights_of_a_run_without_them(make_stage):
    clean, bad = (make_stage("sft", tag=tag, rows=16, epochs=1, eval_samples=0) for tag in ("clean", "bad"))
    path = Path(bad.spec.data["demonstrations"].train.path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], '{"prompt": "x"}', *lines[5:9], "not JSON", *lines[9:]]) + "\n")
    bad.spec_path.write_text(bad.spec.model_copy(update={"skip_bad": 2}).model_dump_json())
    clean.run()
    bad.run()
    one, two = (load_file(stage.model_dir / "model.safetensors") for stage in (clean, bad))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert bad.result.counts == clean.result.counts


def test_rm_centres_demonstrations_and_its_scores_come_out_the_same_without_our_code(make_stage, base_model_dir):
    stage = make_stage("rm", models={"sft": base_model_dir}, rows=64, scale_scores=True)
    stage.run()
    model = AutoModelForSequenceClassification.from_pretrained(stage.model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stage.model_dir)
    assert phases_of(stage)[-3:] == ["held-out comparisons", "scores of demonstrations", "saving"]
    facts = stage.result.facts

    def score(prompt, response):
        ids = render(tokenizer, prompt) + tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            return (model(torch.tensor([ids])).logits.item() - facts.score_bias) / facts.score_scale

    comparisons = rows_of(stage.spec.output_dir.parent / "comparisons.eval.jsonl")
    expected = [score(row["prompt"], answer) for row in comparisons for answer in row["completions"]]
    assert [row["score"] for row in rows_of(stage.spec.output_dir / "samples.jsonl")] == pytest.approx(expected, abs=1e-3)
    demonstrations = [
        score(row["prompt"], row["completion"]) for row in rows_of(stage.spec.output_dir.parent / "demonstrations.train.jsonl")
    ]
    spread = torch.tensor(demonstrations)
    assert spread.mean().item() == pytest.approx(0.0, abs=1e-3) and spread.std().item() == pytest.approx(1.0, abs=1e-3)
    assert {"eval/accuracy", "eval/calibration_error", "eval/length_correlation"} <= set(stage.result.metrics)
    assert_intervals_hold(stage.result, {"eval/accuracy", "eval/accuracy_rank_distance_1"})
    assert stage.result.counts["comparisons"] == 64


def test_every_weight_of_the_reward_model_moves(make_stage, base_model_dir):
    stage = make_stage("rm", models={"sft": base_model_dir}, rows=32)
    stage.run()
    before = AutoModelForCausalLM.from_pretrained(base_model_dir, dtype=torch.float32).model.state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(stage.model_dir, dtype=torch.float32)
    still = [name for name, weight in after.model.state_dict().items() if torch.equal(weight, before[name])]
    assert not still


def test_adapters_chain_through_all_three_stages(make_stage, base_model_dir):
    sft = make_stage("sft", lora={"rank": 4, "merge": True})
    sft.run()
    frozen = AutoModelForCausalLM.from_pretrained(base_model_dir, dtype=torch.float32).state_dict()
    assert sft.result.facts.form == "adapter" and (sft.model_dir / "adapter_model.safetensors").exists()
    rm = make_stage("rm", models={"sft": sft.model_dir}, lora={"rank": 4})
    rm.run()
    ppo = make_stage("ppo", models={"sft": sft.model_dir, "rm": rm.model_dir}, iterations=2, lora={"rank": 4})
    ppo.run()

    policy = AutoModelForCausalLM.from_pretrained(ppo.model_dir, dtype=torch.float32)
    base_of_policy = json.loads((ppo.model_dir / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base_of_policy == str(sft.spec.output_dir / "merged")
    merged = AutoModelForCausalLM.from_pretrained(base_of_policy, dtype=torch.float32).state_dict()
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], frozen["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(merged["model.embed_tokens.weight"], frozen["model.embed_tokens.weight"])
    ids = torch.tensor([[1, 40, 50, 60, 2]])
    with torch.no_grad():
        assert torch.isfinite(policy(ids).logits).all()
    reward_model = AutoModelForSequenceClassification.from_pretrained(rm.model_dir, num_labels=1, dtype=torch.float32)
    expected = rows_of(rm.spec.output_dir / "samples.jsonl")[0]
    comparison = rows_of(rm.spec.output_dir.parent / "comparisons.eval.jsonl")[0]
    tokenizer = AutoTokenizer.from_pretrained(rm.model_dir)
    ids = render(tokenizer, comparison["prompt"]) + tokenizer(comparison["completions"][0], add_special_tokens=False)["input_ids"]
    calibration = json.loads((rm.model_dir / "score.json").read_text())
    with torch.no_grad():
        logit = reward_model(torch.tensor([[*ids, tokenizer.eos_token_id]])).logits.item()
    assert (logit - calibration["score_bias"]) / calibration["score_scale"] == pytest.approx(expected["score"], abs=1e-3)


def test_a_full_reward_model_starts_from_an_unmerged_adapter(make_stage, unmerged_sft):
    rm = make_stage("rm", models={"sft": unmerged_sft}, learning_rate=1e-9, epochs=1)
    rm.run()
    policy = AutoModelForCausalLM.from_pretrained(unmerged_sft, dtype=torch.float32)
    policy.eval()
    reward_model = AutoModelForSequenceClassification.from_pretrained(rm.model_dir, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 40, 50, 60, 2]])
    with torch.no_grad():
        found = reward_model.model(ids).last_hidden_state
        expected = policy(ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(found, expected, atol=1e-3)


def test_an_adapter_on_an_unmerged_adapter_is_refused_with_exit_3(make_stage, unmerged_sft):
    rm = make_stage("rm", models={"sft": unmerged_sft}, lora={"rank": 4})
    process = rm.start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3 and "sft.lora.merge: true" in output and "Traceback" not in output


def test_a_reward_model_of_another_tokenizer_is_refused_by_ppo_with_exit_3(make_stage, base_model_dir, reward_model_dir):
    (reward_model_dir / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    process = (stage := make_stage("ppo", models={"sft": base_model_dir, "rm": reward_model_dir})).start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3 and "chat template" in output and "Traceback" not in output
    assert not stage.model_dir.exists()


def test_a_judge_that_cannot_be_imported_is_refused_before_training(make_stage):
    process = make_stage("sft", judge="nowhere:judge").start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "found no module nowhere installed" in output and "Traceback" not in output


def change_norm(base_model_dir, directory, value):
    """A copy of the base model with another number in one of its weights."""
    state = load_file(shutil.copytree(base_model_dir, directory) / "model.safetensors")
    state["model.norm.weight"][0] = value
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}])
def test_a_model_with_weights_that_are_no_numbers_is_told_as_that_before_anything_trains(make_stage, base_model_dir, tmp_path, settings):
    broken = change_norm(base_model_dir, tmp_path / "broken", float("nan"))
    stage = make_stage("sft", models={"base": broken}, **settings)
    output, _ = (process := stage.start()).communicate(timeout=120)
    assert process.returncode == 3 and "Traceback" not in output
    assert f"{broken}: found 1 weights that hold numbers which are not finite (model.norm.weight), needed finite ones" in output
    assert "learning_rate" not in output.splitlines()[-1] and not (stage.spec.output_dir / "result.json").exists()


def test_a_loss_that_is_not_a_number_is_named_and_nothing_is_left(make_stage, base_model_dir, tmp_path):
    broken = change_norm(base_model_dir, tmp_path / "broken", 3e38)
    stage = make_stage("sft", models={"base": broken}, log_every=1)
    process = stage.start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "the loss is nan at step 1" in output and "lower sft.learning_rate" in output
    assert not (stage.spec.output_dir / "result.json").exists()


def assert_intervals_hold(result, names):
    """Each of these figures lies in an interval of some width, which says on how many prompts it stands."""
    for name in names:
        interval = result.intervals[name]
        assert interval.low < result.metrics[name] < interval.high, name
        assert interval.n > 1, name
