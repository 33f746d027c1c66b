"""A language model and a second reward model as judges of a whole evaluation on tiny models."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.evaluate.measure import Measured
from stages.evaluate.proxy import find_same_order
from stages.evaluate.results import read_evaluation
from stages.evaluate.stage import main
from stages.evaluate_settings import EvaluateSettings
from stages.process.context import StageContext
from tests.chat_server import ChatServer, prefers

pytestmark = pytest.mark.slow  # 2 s each


def move(source, path, noise):
    """Copy a model, and add noise to its weights."""
    shutil.copytree(source, path)
    generator = torch.Generator().manual_seed(1)
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").chmod(0o644)
    moved = {name: weight + noise * torch.randn(weight.shape, generator=generator) for name, weight in sorted(weights.items())}
    save_file(moved, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def models(base_model_dir, fresh_reward_model, tmp_path_factory):
    artifact = tmp_path_factory.mktemp("ppo")
    ppo = move(base_model_dir, artifact / "model", 0.05)
    move(base_model_dir, artifact / "kept" / "2", 0.02)
    (artifact / "result.json").write_text(json.dumps({"metrics": {"published/iteration": 4}}))
    return {"base": base_model_dir, "sft": base_model_dir, "rm": fresh_reward_model, "ppo": ppo}


@pytest.fixture
def evaluate(make_stage, models, tmp_path):
    """A function: settings -> (the evaluation, its rows, its notes), in this process; replies are kept beside it."""

    def evaluate(tag, more_models=None, **judge):
        stage = make_stage("evaluate", tag=tag, models=models | (more_models or {}))
        settings = EvaluateSettings.model_validate(stage.spec.settings.model_dump() | {"judge": judge})
        spec = stage.spec.model_copy(update={"settings": settings, "replies_dir": tmp_path / "replies"})
        for directory in (spec.output_dir, spec.checkpoint_dir):
            directory.mkdir()
        main(StageContext(spec))
        rows = [json.loads(line) for line in (spec.output_dir / "samples.jsonl").read_text().splitlines()]
        notes = [event["message"] for event in stage.events() if event["event"] == "note"]
        evaluate.events = stage.events
        return read_evaluation(spec.output_dir), rows, notes

    return evaluate


def test_a_language_model_compares_all_answers_with_sfts_and_nothing_is_asked_twice(evaluate):
    with ChatServer(prefers(len)).serving() as server:
        llm = {"url": server.url, "model": "big", "price_per_1m_input": 1.0, "price_per_1m_output": 2.0, "samples": 2}
        found, rows, notes = evaluate("first", llm=llm)
        num_asked = len(server.asked)
        again, _, _ = evaluate("again", llm=llm)
    assert found.judge == "big at 127.0.0.1" and found.judge_kind == "llm"
    texts = {(row["model"], row["way"], row["prompt_id"], row["sample_id"]): row["response"] for row in rows}
    outcomes = {}
    for row in rows:
        if row["model"] == "sft":
            assert "judge_score" not in row
            continue
        mine, other = len(row["response"]), len(texts["sft", row["way"], row["prompt_id"], row["sample_id"]])
        expected = 0.5 if mine == other else float(mine > other)
        assert row["judge_score"] == expected
        outcomes.setdefault((row["model"], row["way"]), []).append(expected)
    first = found.comparisons[0]
    assert (first.a, first.b, first.way, first.by, first.difference) == ("sft", "ppo", "sampled", "judge", None)
    assert first.win_rate.estimate.value == pytest.approx(sum(outcomes["ppo", "sampled"]) / 12)
    assert found.over_optimisation.curve[0].judge.value == 0.5
    assert found.over_optimisation.curve[1].judge.value == pytest.approx(sum(outcomes["ppo-2", "sampled"]) / 12)
    assert all(best.judge is None for best in found.over_optimisation.best_of_n)
    asked = found.llm
    # PPO and base sampled twice and greedy once, PPO at iteration 2 sampled twice: of 6 prompts each.
    assert asked.pairs == 6 * (2 + 1 + 2 + 1 + 2)
    assert asked.agreed + asked.tie + asked.same == asked.pairs and asked.disagreed == 0
    assert asked.replies == num_asked
    assert asked.cost == pytest.approx(num_asked * (100 * 1.0 + 10 * 2.0) / 1e6)
    assert any("is asked of 48 pairs in both orders, which cost" in note for note in notes)
    assert len(server.asked) == num_asked
    assert again == found


def test_a_limit_of_cost_leaves_what_matters_least_unasked_and_malformed_replies_are_told(evaluate):
    def answer(body):
        return prefers(len)(body) if "VERDICT" in body["messages"][0]["content"] and len(server.asked) % 7 else "I cannot say."

    with ChatServer(answer).serving() as server:
        price = {"price_per_1m_input": 0.0, "price_per_1m_output": 1e6, "max_reply_tokens": 10, "concurrency": 1}
        found, rows, _ = evaluate("limited", llm={"url": server.url, "model": "big", "max_cost": 200.0, **price})
    asked = found.llm
    assert asked.cost <= 200.0 and asked.malformed > 0 and asked.unasked > 0
    # The base model is SFT here: what both say alike is a tie that costs nothing.
    assert {row["model"] for row in rows if row.get("judge_score", 0.5) != 0.5} == {"ppo"}
    assert any("replies of the judge were no verdict" in line for line in found.missing)
    assert any("max_cost = 200 was near" in line for line in found.missing)
    assert found.comparisons[0].by == "judge" and found.over_optimisation.stop_iteration is None


def test_a_judge_that_cannot_be_asked_costs_its_figures_alone(evaluate):
    with ChatServer(lambda _: (401, {}, b'{"error": {"message": "who are you?"}}')).serving() as server:
        found, rows, _ = evaluate("refused", llm={"url": server.url, "model": "big"})
    assert found.llm is None and found.comparisons[0].by == "score"
    assert any("401 who are you?" in line for line in found.missing)
    assert all("judge_score" not in row for row in rows)


def test_a_judge_that_is_the_reward_model_ppo_learnt_from_is_doubted_before_anything_is_answered(evaluate, models, tmp_path):
    judge = shutil.copytree(models["rm"], tmp_path / "copy")
    found, _, _ = evaluate("proxy", {"judge": judge}, reward_model=str(judge))
    assert found.judge_doubt.startswith("the judge is the reward model that PPO learnt from (the same weights): ")
    assert found.comparisons[0].by == "judge" and found.over_optimisation.stop_iteration is None
    assert any(line.startswith("where PPO should have stopped: without a judge that PPO did not learn from") for line in found.missing)
    told = [event for event in evaluate.events() if event["event"] in ("warning", "progress")]
    assert told[0] == told[0] | {"event": "warning", "message": found.judge_doubt}
    assert sum(event["event"] == "warning" for event in told) == 1


def test_a_judge_that_says_what_the_reward_model_says_is_doubted_and_one_that_says_half_of_it_is_not():
    def measure(scores, judge, pairwise=False):
        return Measured(None, None, [], np.array(scores), {"score": np.array(judge)}, pairwise=pairwise)

    rng = np.random.default_rng(0)
    scores = rng.normal(size=60)
    copied = 3.0 + 1.7 * torch.tensor(scores).bfloat16().double().numpy()  # in another precision, unit and zero
    why = find_same_order([measure(scores[:20], copied[:20]), measure(scores[20:], copied[20:])])
    assert why.startswith("the judge says what the reward model says that PPO learnt from (correlation 1.0000 over 60 answers)")
    assert find_same_order([measure(scores, scores + rng.normal(size=60))]) is None
    assert find_same_order([measure(scores, -scores)]) is None
    assert find_same_order([measure(scores[:5], copied[:5])]) is None  # of five answers, much may look alike
    assert find_same_order([measure(scores, np.ones(60))]) is None and find_same_order([]) is None
    assert find_same_order([measure(scores, copied, pairwise=True)]) is None


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_second_reward_model_scores_every_answer_with_its_own_tokenizer(evaluate, models, tmp_path, is_ours, plain_hardware):
    from data.schema import Message
    from stages.responses.judge_model import JudgeModel

    other = move(models["rm"], tmp_path / "other", 0.05)
    if not is_ours:
        (other / "score.json").unlink()
    found, rows, _ = evaluate("second", {"judge": other}, reward_model=str(other))
    assert (found.judge, found.judge_kind) == (str(other), "reward_model")
    first = found.comparisons[0]
    assert first.by == "judge" and first.difference is not None
    judge = JudgeModel(str(other), None, plain_hardware, torch.device("cpu"))
    for row in rows[::7]:
        expected = judge.score([[Message("user", row["prompt"])]], [row["response"]], [row["finished"]])[0]
        assert row["judge_score"] == pytest.approx(expected, abs=1e-4)
    assert found.judge_doubt is None and "judge_doubt" not in found.model_dump()
    assert {round(row["judge_score"], 3) for row in rows} != {round(row["score"], 3) for row in rows}
