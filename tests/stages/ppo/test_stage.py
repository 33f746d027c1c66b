"""The stage as a whole, in this process: what it leaves behind, LoRA, and what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.blocks import LoRASettings
from stages.ppo.stage import main
from stages.process.context import StageContext
from stages.process.errors import StageError


def metric_rows(spec):
    return [json.loads(line) for line in (spec.checkpoint_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_artifact_opens_without_our_code_and_gives_the_same_logits(run):
    spec, result, trainer = run()
    model = AutoModelForCausalLM.from_pretrained(spec.output_dir / "model", dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(spec.output_dir / "model")
    ids = torch.tensor([tokenizer("Order: grey chair.").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, trainer.policy(input_ids=ids).logits)
    assert result.facts.form == "full" and result.facts.architecture == "LlamaForCausalLM"
    assert result.counts["prompts"] == 48


@pytest.mark.slow
def test_score_and_kl_are_told_together_from_the_sft_policy_to_the_end(run):
    spec, result, _ = run()
    rows = metric_rows(spec)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert {"eval/sampled/score", "eval/sampled/kl", "eval/sampled/finished", "eval/sampled/judge_score"} <= row.keys()
    assert rows[0]["eval/sampled/kl"] == 0.0
    assert {"eval/greedy/score", "eval/greedy/kl", "eval/greedy/judge_score"} <= result.metrics.keys()
    assert result.metrics["eval/start/score"] == rows[0]["eval/sampled/score"]
    samples = [json.loads(line) for line in (spec.output_dir / "samples.jsonl").read_text().splitlines()]
    assert {row["way"] for row in samples} == {"sampled", "greedy"}
    assert {"prompt", "response", "score", "kl", "finished", "judge_score"} <= samples[0].keys()
    for name in ("eval/sampled/score", "eval/sampled/kl", "eval/greedy/score"):
        interval = result.intervals[name]
        assert interval.low < result.metrics[name] < interval.high
        assert interval.n == len({row["prompt"] for row in samples})


@pytest.mark.slow
def test_evaluating_does_not_change_the_training(run):
    specs = [run(tag=f"every{every}", eval_every=every)[0] for every in (1, 5)]
    weights = [load_file(spec.output_dir / "model" / "model.safetensors") for spec in specs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_with_ema_decay_the_published_model_is_the_average_and_the_metrics_say_so(run):
    spec, result, trainer = run(ema_decay=0.8, learning_rate=1e-2)
    published = AutoModelForCausalLM.from_pretrained(spec.output_dir / "model", dtype=torch.float32).state_dict()
    live = trainer.policy.state_dict()
    assert trainer.average.averages.keys() <= published.keys()
    for name, average in trainer.average.averages.items():
        assert torch.equal(published[name], average), name
    assert any(not torch.equal(published[name], live[name]) for name in published)
    assert result.metrics["published/ema_decay"] == 0.8
    figures = {"score", "kl", "finished", "judge_score"}
    for way in ("sampled", "ema_sampled", "greedy", "ema_greedy"):
        assert {f"eval/{way}/{figure}" for figure in figures} <= result.metrics.keys()
    assert result.metrics["eval/ema_sampled/kl"] != result.metrics["eval/sampled/kl"]
    rows = metric_rows(spec)
    assert "eval/ema_sampled/score" not in rows[0] and "eval/ema_sampled/score" in rows[1]
    assert not any(key.startswith("eval/ema_greedy/") for key in rows[1])
    samples = [json.loads(line) for line in (spec.output_dir / "samples.jsonl").read_text().splitlines()]
    assert {row["way"] for row in samples} == {"sampled", "ema_sampled", "greedy", "ema_greedy"}


@pytest.mark.slow
def test_averaging_and_evaluating_the_average_leave_the_training_as_it_was(run):
    live = [run(tag=f"ema{decay}", ema_decay=decay)[2].actor.module.state_dict() for decay in (None, 0.8)]
    assert all(torch.equal(live[0][name], live[1][name]) for name in live[0])


@pytest.mark.slow
def test_with_lora_the_average_is_one_of_the_adapter_and_merged_too(run, base_model_dir):
    spec, _, trainer = run(ema_decay=0.5, lora=LoRASettings(rank=4, merge=True), learning_rate=1e-2)
    adapter = load_file(spec.output_dir / "model" / "adapter_model.safetensors")
    averages = {name.replace(".default", ""): average for name, average in trainer.average.averages.items()}
    assert adapter.keys() == averages.keys()
    assert all(torch.equal(adapter[name], averages[name]) for name in adapter)
    name = "model.layers.0.self_attn.q_proj"
    base = load_file(base_model_dir / "model.safetensors")
    merged = load_file(spec.output_dir / "merged" / "model.safetensors")
    update = adapter[f"base_model.model.{name}.lora_B.weight"] @ adapter[f"base_model.model.{name}.lora_A.weight"]
    scale = trainer.settings.lora.alpha / trainer.settings.lora.rank
    torch.testing.assert_close(merged[f"{name}.weight"], base[f"{name}.weight"] + scale * update)


@pytest.mark.slow
def test_with_lora_adapters_and_the_critics_head_learn_and_nothing_else(run, base_model_dir):
    spec, result, trainer = run(lora=LoRASettings(rank=4, dropout=0.3, merge=True), learning_rate=1e-2)
    assert result.metrics["val/ratio_start_deviation"] < 1e-5  # dropout asked for, and not used
    assert result.metrics["eval/start/kl"] == 0.0
    adapters = 4 * 7 * 2  # layers x linear modules x (A, B)
    assert [len(learner.optimizer.param_groups[0]["params"]) for learner in (trainer.actor, trainer.critic)] == [adapters, adapters + 2]
    trained = {name for name, parameter in trainer.critic.module.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("head.") for name in trained)
    assert result.facts.form == "adapter"
    assert (spec.output_dir / "model" / "adapter_config.json").exists()
    assert "ppo.lora.dropout = 0.3 is not used" in spec.events_path.read_text()
    base = load_file(base_model_dir / "model.safetensors")
    merged = load_file(spec.output_dir / "merged" / "model.safetensors")
    moved = {name for name, weight in base.items() if name in merged and not torch.equal(weight, merged[name])}
    assert moved and all("proj" in name for name in moved)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_but_memory(run):
    weights = []
    for flag in (False, True):
        spec, _, trainer = run(tag=f"checkpointing{flag}", gradient_checkpointing=flag, iterations=1)
        weights.append(load_file(spec.output_dir / "model" / "model.safetensors"))
        assert trainer.policy.is_activation_checkpointing == flag
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_an_unfinished_answer_is_scored_by_the_configured_stop_token(run):
    """An untrained policy does not say the stop token within 8 tokens here: each answer gets the fixed score."""
    _, result, _ = run(stop_token="<|user|>", missing_eos_score=-7.0, iterations=1)
    assert result.metrics["eos_rate"] == 0.0
    assert result.metrics["objective/scores"] == -7.0
    assert result.metrics["objective/reward_model_scores"] > -3.5


def test_a_stop_token_that_cannot_stop_is_refused(run):
    with pytest.raises(StageError, match=r"ppo.stop_token = .* is the pad token") as caught:
        run(stop_token="<|pad|>")
    assert caught.value.exit_code == 2


def test_a_stop_text_of_several_tokens_is_told_and_ends_responses(run):
    spec, result, _ = run(stop_token="\n\nUser:", missing_eos_score=-7.0, iterations=1)
    assert "is no token of the vocabulary: a response ends where its text holds it" in spec.events_path.read_text()
    assert result.metrics["eos_rate"] == 0.0 and result.metrics["objective/scores"] == -7.0


def test_a_reward_model_with_another_tokenizer_is_refused(run, reward_model_dir, tmp_path):
    other = tmp_path / "other_rm"
    shutil.copytree(reward_model_dir, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StageError, match="another tokenizer") as caught:
        run(models={"rm": other})
    assert caught.value.exit_code == 3


def test_a_reward_model_without_a_head_is_refused_and_not_drawn_anew(run, base_model_dir):
    with pytest.raises(StageError, match="score") as caught:
        run(models={"rm": base_model_dir})
    assert caught.value.exit_code == 3


def test_a_run_that_diverges_leaves_no_model(run, tmp_path):
    with pytest.raises(StageError, match="needed: "):
        run(learning_rate=1e30, max_grad_norm=1e30)
    assert not list(tmp_path.glob("ppo-run/output/*"))


def test_more_tokens_than_the_model_has_positions_for_are_refused(run):
    with pytest.raises(StageError, match=r"the longest prompt and ppo.max_response_tokens = 250 make \d+ tokens, .* takes 256") as caught:
        run(max_response_tokens=250)
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_a_run_killed_before_its_result_writes_each_metric_row_once(run, make_stage):
    spec, result, _ = run()
    again = main(StageContext(spec))  # the checkpoint of the last iteration is there: only the evaluation is done again
    assert [row["step"] for row in metric_rows(spec)] == [0, 1, 2]
    assert again.metrics == result.metrics


@pytest.mark.slow
def test_with_ptx_coef_the_training_demonstrations_are_mixed_in_and_counted(run):
    spec, result, trainer = run(ptx_coef=0.5, iterations=1)
    assert "demonstrations" in spec.data
    assert result.counts["ptx_demonstrations"] == 48
    assert len(trainer.demonstrations.pairs) == result.counts["ptx_demonstrations_used"]
    assert result.metrics["loss/ptx"] > 0


@pytest.mark.slow
def test_a_size_of_demonstrations_that_nothing_uses_is_told(run):
    spec, _, _ = run(ptx_batch_size=4, iterations=1)
    assert "ppo.ptx_batch_size = 4 is not used: ppo.ptx_coef is 0" in spec.events_path.read_text()


@pytest.mark.slow
def test_with_ptx_data_the_likelihood_of_texts_is_mixed_in(run):
    spec, result, trainer = run(ptx_coef=1.0, ptx_data="texts")
    assert result.counts["ptx_texts"] == result.counts["ptx_texts_used"] == 48
    # Pieces of at most 96 + 64 tokens, and no end token, which here means the end of an answer.
    lengths = [len(pair.prompt_ids + pair.response_ids) for pair in trainer.demonstrations.pairs]
    assert len(lengths) == 48 and max(lengths) <= 160 and {len(pair.prompt_ids) for pair in trainer.demonstrations.pairs} == {1}
    assert not any(trainer.sampling.eos_token_id in pair.response_ids for pair in trainer.demonstrations.pairs)
    assert all(row["loss/ptx"] > 0 for row in metric_rows(spec)[1:])


@pytest.mark.slow
def test_a_judge_that_fails_late_costs_its_figures_and_not_the_model(run, tmp_path, monkeypatch):
    (tmp_path / "tiring.py").write_text(
        "calls = 0\ndef judge(prompt, response, finished):\n    global calls\n    calls += 1\n    return 1.0 if calls < 7 else calls.gold\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec, result, _ = run(judge="tiring:judge", iterations=2)
    assert (spec.output_dir / "model" / "model.safetensors").exists()
    assert result.metrics["eval/start/judge_score"] == 1.0  # of the first four calls
    assert not any(key.startswith(("eval/sampled/judge", "eval/greedy/judge")) for key in result.metrics)
    notes = [event["message"] for event in map(json.loads, spec.events_path.read_text().splitlines()) if event["event"] == "note"]
    (told,) = [note for note in notes if "judge" in note]
    assert told.startswith("judge: tiring:judge raised AttributeError") and told.endswith("published without its figures")


@pytest.mark.slow
def test_checkpoints_come_by_time_too(run):
    spec, _, _ = run(iterations=3, eval_every=5, eval_samples=0, save_every=100, save_minutes=1e-9)
    events = [json.loads(line) for line in spec.events_path.read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [1, 2, 3]
