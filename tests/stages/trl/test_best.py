"""`sft.publish: best`: which step is published, that it is that one to the last bit, killed or not, and that the last is as it was."""

import json
import math
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from data.schema import Message
from stages.blocks import LoRASettings
from stages.evaluate_settings import JudgeSettings
from stages.models.adapters import apply_lora
from stages.models.policy import load_policy
from stages.process.best import Candidate
from stages.process.context import StageContext
from stages.responses.judge_model import JudgeModel
from stages.sft import main
from stages.trl.best import BestKeeper
from tests.chat_server import ChatServer, prefers

# A step size at which the model breaks: of twelve steps the last is not the best.
BREAKS = {"rows": 16, "epochs": 6, "learning_rate": 0.3, "lr_schedule": "constant", "eval_every": 2, "save_every": 2}

pytestmark = pytest.mark.slow  # some seconds each


def losses_of(spec, directory):
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}


@pytest.fixture
def run(make_stage):
    """Run SFT in this process: run(tag, **settings) -> (spec, result)."""

    def run(tag, own_judge=None, **settings):
        spec = make_stage("sft", tag=tag, **settings).spec
        if own_judge is not None:
            directory, judge = own_judge
            settings = spec.settings.model_copy(update={"judge": JudgeSettings.model_validate(judge)})
            models = spec.models | ({"judge": str(directory)} if directory else {})
            spec = spec.model_copy(update={"settings": settings, "models": models, "replies_dir": spec.output_dir.parents[1] / "replies"})
        for directory in (spec.output_dir, spec.checkpoint_dir):
            directory.mkdir(exist_ok=True)
        return spec, main(StageContext(spec))

    return run


def weights_of(spec):
    return load_file(next((spec.output_dir / "model").glob("*model.safetensors")))


def check_best(spec, result):
    """What is published is what was held of the step with the lowest loss, which is not the last; returns that step."""
    losses = losses_of(spec, spec.checkpoint_dir)
    best = min(losses, key=losses.get)
    assert sorted(losses) == list(range(2, max(losses) + 1, 2)) and best < max(losses), "the last is best: this says nothing"
    assert result.metrics["published/step"] == best
    # TRL's loss of batches and ours of packed rows differ by rounding.
    assert result.metrics["eval/loss"] == pytest.approx(losses[best], rel=1e-4)
    held = load_file(spec.checkpoint_dir / "best" / str(best) / "trained.safetensors")
    published = weights_of(spec)
    names = {name.replace(".default", ""): name for name in held}
    assert len(held) == len(published) and all(torch.equal(published[name], held[names[name]]) for name in published)
    return best


def test_the_best_step_is_published_to_the_last_bit_killed_or_not_and_holding_it_changes_nothing(run, make_stage):
    spec, result = run("best", publish="best", **BREAKS)
    best = check_best(spec, result)
    losses, published = losses_of(spec, spec.checkpoint_dir), weights_of(spec)

    last_spec, last = run("last", **BREAKS)
    assert "published/step" not in last.metrics and not (last_spec.checkpoint_dir / "best").exists()
    assert losses_of(last_spec, last_spec.checkpoint_dir) == losses
    assert any(not torch.equal(published[name], weight) for name, weight in weights_of(last_spec).items())

    killed = make_stage("sft", tag="killed", publish="best", **BREAKS)
    process, deadline = killed.start(), time.monotonic() + 200
    while not any(event["event"] == "checkpoint" and event["step"] >= 6 for event in killed.events()) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (killed.spec.output_dir / "result.json").exists()
    killed.run()
    assert killed.result.metrics["published/step"] == best
    assert losses_of(killed.spec, killed.spec.output_dir) == losses
    assert all(torch.equal(published[name], weight) for name, weight in weights_of(killed.spec).items())


def test_of_an_adapter_what_learns_is_held_and_gone_back_to(make_stage, base_model_dir, plain_hardware):
    context = StageContext(make_stage("sft", publish="best", **BREAKS).spec)
    context.spec.checkpoint_dir.mkdir()
    model = apply_lora(load_policy(str(base_model_dir), plain_hardware), LoRASettings(rank=4), "CAUSAL_LM", plain_hardware)
    keeper = BestKeeper(context, lambda model, loss: -loss)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    then = {}
    for step, loss in ((2, 5.0), (4, 4.0), (6, 4.5), (8, math.nan)):
        with torch.no_grad():
            for parameter in learning.values():
                parameter.add_(step)
        then[step] = {name: parameter.detach().clone() for name, parameter in learning.items()}
        keeper.on_evaluate(None, SimpleNamespace(global_step=step), None, model=model, metrics={"eval_loss": loss})
    assert keeper.go_back(model, Candidate(10, -4.0), 10) == 4  # of equal ones the earlier
    assert learning and all(torch.equal(learning[name], weight) for name, weight in then[4].items())
    assert keeper.go_back(model, Candidate(10, -3.0), 10) == 10


def test_the_judge_chooses_where_it_is_asked(run):
    spec, result = run("judged", publish="best", publish_by="judge", judge="tests.stages.trl.short_judge:judge", **BREAKS)
    assert result.metrics["published/step"] < 12
    rows = [json.loads(line) for line in (spec.output_dir / "samples.jsonl").read_text().splitlines()]
    scores = [row["judge_score"] for row in rows if row["way"] == "sampled"]
    assert result.metrics["eval/sampled/judge_score"] == pytest.approx(sum(scores) / len(scores))


FEW = {"rows": 16, "epochs": 2, "learning_rate": 0.1, "eval_every": 2, "eval_samples": 3, "publish": "best", "publish_by": "judge"}


def answers_of(spec):
    rows = [json.loads(line) for line in (spec.output_dir / "samples.jsonl").read_text().splitlines()]
    return [(row["prompt"], row["response"], row["finished"]) for row in rows if row["way"] == "sampled"]


def test_a_language_model_chooses_by_how_often_it_prefers_an_answer_to_the_demonstrations_own(run):
    with ChatServer(prefers(len)).serving() as server:
        spec, result = run("llm", (None, {"llm": {"url": server.url, "model": "big"}}), **FEW)
    assert len(server.asked) >= 2 * 3  # both orders
    lines = Path(spec.data["demonstrations"].eval.path).read_text().splitlines()
    demonstrations = {row["prompt"]: row["completion"] for row in map(json.loads, lines)}
    longer = [len(response) - len(demonstrations[prompt]) for prompt, response, _ in answers_of(spec)]
    assert result.metrics["published/judge_score"] == sum(0.5 if more == 0 else more > 0 for more in longer) / len(longer)


def test_a_reward_model_chooses_the_step_whose_answers_it_scores_highest(run, fresh_reward_model):
    spec, result = run("rm", (fresh_reward_model, {"reward_model": "rm@v1"}), **FEW)
    model = JudgeModel(str(fresh_reward_model), None, spec.hardware, torch.device("cpu"))
    asked = answers_of(spec)
    scores = model.score(
        [[Message("user", prompt)] for prompt, _, _ in asked], [text for _, text, _ in asked], [done for *_, done in asked]
    )
    assert result.metrics["published/judge_score"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_a_step_of_which_the_judge_says_nothing_cannot_be_chosen(run):
    with ChatServer(lambda _: (401, {}, b'{"error": {"message": "who are you?"}}')).serving() as server:
        spec, result = run("refused", (None, {"llm": {"url": server.url, "model": "big"}}), **FEW)
    told = spec.events_path.read_text()
    assert "published/judge_score" not in result.metrics and "who are you?" in told and "; this step cannot be chosen" in told, told
