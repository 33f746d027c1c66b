"""The recipe's judge is asked once before anything trains: after hours of training would be late to learn that it raises."""

import json
import subprocess
import sys
from collections.abc import Sequence

from data.load import stream_records
from data.reading import report_on
from data.schema import Demonstration, RecordKind, Text
from data.treatment import Treat, make_treatment
from pipeline.errors import ConfigError
from pipeline.inputs.prepare import Inputs
from pipeline.launch.environment import stage_environment
from pipeline.recipe.schema import Recipe
from pipeline.text import clean
from stages.spec import EXIT_OK, StageName, asks_judge

_LIMIT_S = 300.0  # a judge may load a model of its own
# To whose prompts each stage's answers are judged.
_JUDGED: dict[StageName, RecordKind] = {"sft": "demonstrations", "ppo": "prompts", "evaluate": "prompts"}
_ANSWER = "I do not know."


def try_judge(recipe: Recipe, inputs: Inputs, stages: Sequence[StageName]) -> None:
    """Ask the judge about one record of each kind that stages will have it judge, in a process like theirs.

    Raises:
        ConfigError: It cannot be imported, raises, or answers something else than figures.
    """
    asking = [stage for stage in stages if asks_judge(recipe.settings(stage))]
    if recipe.judge is None or not asking:
        return
    treat = make_treatment(recipe.data.redact, inputs.forgotten)
    kinds: dict[RecordKind, None] = dict.fromkeys(kind for stage, kind in _JUDGED.items() if stage in asking)
    samples = [_take_sample(inputs, kind, recipe.data.skip_bad, treat) for kind in kinds]
    command = [sys.executable, "-P", "-m", "stages.responses.judge", recipe.judge, recipe.judge_directory or ""]
    environment, _ = stage_environment("", offline=inputs.local)
    try:
        done = subprocess.run(
            command, input=json.dumps(samples), env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise _refusal(recipe, f"judge: {recipe.judge} gave no answer within {_LIMIT_S:.0f} s to one sample; make it faster") from None
    if done.returncode != EXIT_OK:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise _refusal(recipe, clean(said[-1]) if said else f"judge: {recipe.judge} ended its process with exit code {done.returncode}")


def _refusal(recipe: Recipe, message: str) -> ConfigError:
    """Make the error, with the line of the recipe that names the judge."""
    return ConfigError([f"{recipe.place('judge')}: {message}"])


def _take_sample(inputs: Inputs, kind: RecordKind, skip_bad: int, treat: Treat | None) -> tuple[str, str]:
    """Take the first record that may be held out: its prompt, and its answer where it has one."""
    source = inputs.data[kind].eval or inputs.data[kind].train
    _, record = next(stream_records(source, kind, report_on(source), skip_bad, treat))
    assert not isinstance(record, Text), "neither of the kinds that are judged"
    return record.prompt[-1].content, record.completion if isinstance(record, Demonstration) else _ANSWER
