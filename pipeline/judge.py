"""The recipe's judge is asked once before anything trains: after hours of training would be late to learn that it raises.

a function, a second reward model    tried on a record of each kind, in a process like the stages'
the function of evaluate.probes      tried on one prompt
a language model                     one tiny request
"""

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from data.load import stream_records
from data.reading import report_on
from data.schema import Demonstration, RecordKind, Text
from data.treatment import make_treatment
from pipeline.errors import ConfigError
from pipeline.inputs.judge_code import OUR_PACKAGES
from pipeline.inputs.judge_model import named_judge
from pipeline.inputs.prepare import Inputs
from pipeline.launch.dialogue import last_said, run_program
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.text import clean
from stages.evaluate_settings import LLMJudgeSettings
from stages.spec import ANSWERED, EXIT_OK, StageName, asks_judge

_LIMIT_S = 300.0  # a judge may load a model of its own
# To whose prompts each stage's answers are judged.
_JUDGED: dict[StageName, RecordKind] = {"sft": "demonstrations", "ppo": "prompts", "evaluate": "prompts"}
_ANSWER = "I do not know."
_MODEL_KEY = "evaluate.judge.reward_model"


def try_judge(recipe: Recipe, inputs: Inputs, stages: Sequence[StageName]) -> None:
    """Ask whoever judges once.

    Raises:
        ConfigError: It cannot be imported, opened or reached, raises, or answers something else than figures.
    """
    evaluate = recipe.evaluate if "evaluate" in stages else None
    other = evaluate is not None and evaluate.judge is not None  # who judges there in its place
    asking: list[StageName] = [stage for stage in stages if asks_judge(recipe.settings(stage)) and not (other and stage == "evaluate")]
    if recipe.judge is not None and asking:
        command = ["stages.responses.judge", recipe.judge, recipe.judge_directory or ""]
        _try_program(recipe, inputs, "judge", recipe.judge, command, asking)
    probes = evaluate.probes if evaluate is not None else None
    if probes is not None and probes.partition(".")[0] not in OUR_PACKAGES:  # whose own are tested
        _try_probes(recipe, inputs, probes)
    for stage in stages:
        judge, model = named_judge(recipe.settings(stage)), inputs.judge_models.get(stage)
        if judge is not None and judge.llm is not None:
            _try_llm(recipe, f"{stage}.judge.llm", judge.llm)
        elif model is not None:
            key = f"{stage}.judge.reward_model"
            command = ["stages.responses.judge_model", model.path, model.revision or "", key]
            _try_program(recipe, inputs, key, str(judge and judge.reward_model), command, [stage])


def doubt_judge(recipe: Recipe, inputs: Inputs, reward_model: Artifact | None) -> str | None:
    """Say that the second reward model that judges is none: the one that PPO learns from, or one that learnt from the same comparisons.

    Args:
        recipe: Resolved recipe.
        inputs: As `prepare` returns them.
        reward_model: What PPO learns from, where that is there already.
    """
    judge, settings = inputs.judge_models.get("evaluate"), recipe.evaluate and recipe.evaluate.judge
    if judge is None or settings is None or "comparisons" not in inputs.readings:
        return None
    named = f"{recipe.place(_MODEL_KEY)}: {_MODEL_KEY}: found {settings.reward_model}"
    if reward_model is not None and judge.identity == f"artifact:{reward_model.content_id}":
        needed = "needed one that PPO does not learn from: it cannot tell whether PPO fools it; name another"
        return f"{named}, the very reward model that PPO learns from; {needed}"
    if judge.comparisons == inputs.readings["comparisons"].fingerprints["train"]:
        needed = "needed one with others: what they leave unsaid neither sees; name another, or take its word with care"
        return f"{named}, which learnt from the comparisons of this recipe's reward model; {needed}"
    return None


def _try_llm(recipe: Recipe, key: str, settings: LLMJudgeSettings) -> None:
    from stages.responses.chat_api import ChatClient  # few recipes ask one
    from stages.responses.chat_http import ChatError

    try:
        ChatClient(settings, None).check()
    except ChatError as error:
        raise _refusal(recipe, key, clean(str(error))) from error


def _try_probes(recipe: Recipe, inputs: Inputs, probes: str) -> None:
    """Have the user's function edit one answer."""
    prompt, answer = _take_sample(recipe, inputs, "prompts")
    lines = [{"probes": probes, "directory": recipe.judge_directory}, {"prompt": prompt, "answer": answer}]
    done = _run(recipe, inputs, "evaluate.probes", probes, ["stages.evaluate.edits"], "".join(f"{json.dumps(line)}\n" for line in lines))
    if done.returncode != EXIT_OK or not done.stdout.strip():  # the user's code may have ended it
        with suppress(ValueError, LookupError, TypeError):
            raise _refusal(recipe, "evaluate.probes", clean(json.loads(done.stdout.splitlines()[-1])["error"]))
        raise _refusal(recipe, "evaluate.probes", f"{probes} ended its process with exit code {done.returncode}")


def _try_program(recipe: Recipe, inputs: Inputs, key: str, name: str, command: Sequence[str], asking: Sequence[StageName]) -> None:
    """Have a program ask a judge of one record of each kind that these stages will have it judge."""
    kinds: dict[RecordKind, None] = dict.fromkeys(kind for stage, kind in _JUDGED.items() if stage in asking)
    done = _run(recipe, inputs, key, name, command, json.dumps([_take_sample(recipe, inputs, kind) for kind in kinds]))
    ended = f"{key}: {name} ended its process with exit code {done.returncode}, needed an answer; mend it, or leave it out"
    if done.returncode != EXIT_OK:
        raise _refusal(recipe, key, last_said(done) or ended)
    if not done.stdout.endswith(f"\n{ANSWERED}\n"):
        raise _refusal(recipe, key, ended)


def _run(recipe: Recipe, inputs: Inputs, key: str, name: str, command: Sequence[str], asked: str) -> subprocess.CompletedProcess[str]:
    """Run a program of ours that asks the user's code."""
    try:
        return run_program(*command, offline=inputs.local, asked=asked, limit_s=_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise _refusal(recipe, key, f"{key}: {name} gave no answer within {_LIMIT_S:.0f} s to one sample; make it faster") from None


def _refusal(recipe: Recipe, key: str, message: str) -> ConfigError:
    """Make the error, with the line of the recipe that names the judge."""
    return ConfigError([f"{recipe.place(key)}: {message if message.startswith(key) else f'{key}: {message}'}"])


def _take_sample(recipe: Recipe, inputs: Inputs, kind: RecordKind) -> tuple[str, str]:
    """Take the first record that may be held out: its prompt, and its answer where it has one."""
    treat = make_treatment(recipe.data.redact, inputs.forgotten)
    source = inputs.data[kind].eval or inputs.data[kind].train
    _, record = next(stream_records(source, kind, report_on(source), recipe.data.skip_bad, treat))
    assert not isinstance(record, Text), "neither of the kinds that are judged"
    return record.prompt[-1].content, record.completion if isinstance(record, Demonstration) else _ANSWER
