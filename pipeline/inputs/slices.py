"""A recipe -> what a stage reads of it, so far as that changes what the stage makes: a part of its cache key."""

from pathlib import Path
from typing import Any

from pipeline.inputs.judge_model import named_judge
from pipeline.inputs.prepare import Inputs
from pipeline.recipe.schema import Recipe
from pipeline.store.disk import hash_file
from stages.sample_settings import CHOOSING, SampleSettings
from stages.settings import PPOSettings, RMSettings, SFTSettings, StageSettings
from stages.spec import STAGES, StageName, asks_judge

# Settings that change how a stage runs but not what it makes, and those of `ppo.rollout`. In between, PPO evaluates without touching
# what it trains with (`ppo.publish: best` chooses by that, see `slice_config`); TRL's evaluations draw from torch's generator, so that
# with dropout sft.eval_every and rm.eval_every change weights.
_WITHOUT_EFFECT: dict[StageName, tuple[str, ...]] = {
    "pretrain": ("save_every", "save_minutes", "log_every"),
    "sft": ("save_every", "save_minutes", "log_every"),
    "rm": ("save_every", "save_minutes", "log_every"),
    "ppo": ("save_every", "save_minutes", "log_every", "eval_every"),
    "evaluate": ("batch_size",),
    "sample": ("batch_size",),
}
# Of a language model that judges: how it is asked, not what.
_WITHOUT_EFFECT_IN_LLM = ("api_key_env", "concurrency", "timeout_s", "retries")
_WITHOUT_EFFECT_IN_ROLLOUT = ("command", "options", "server", "sleep")
# Stage -> block in its settings, by its dotted name -> what of it only says how the stage runs.
HOW_IT_RUNS: dict[StageName, dict[str, tuple[str, ...]]] = {
    stage: {"": names, "rollout": _WITHOUT_EFFECT_IN_ROLLOUT, "judge.llm": _WITHOUT_EFFECT_IN_LLM}
    for stage, names in _WITHOUT_EFFECT.items()
}


def find_idle(stage: StageName, settings: StageSettings) -> dict[str, str]:
    """Find the settings that act on nothing as the others are: name -> with which one they would.

    They are outside of the key, so that keys from before there was a choice stay valid, and nobody trains for nothing.
    """
    if isinstance(settings, RMSettings) and settings.margin == "none":
        return {"margin_scale": "rm.margin: grade"}
    if isinstance(settings, SFTSettings | PPOSettings) and settings.publish == "last":
        names = ("publish_by", "judge") if stage == "sft" else ("publish_by", "publish_max_kl")
        return dict.fromkeys(names, f"{stage}.publish: best")
    if isinstance(settings, SFTSettings) and settings.chooser is None:
        return {"judge": "sft.publish_by: judge"}
    if isinstance(settings, SampleSettings) and settings.choose == "random":
        return dict.fromkeys(CHOOSING, "sample.choose: deltaucb")
    return {}


def slice_config(stage: StageName, recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """Collect what a stage reads of the recipe, so far as it changes what the stage makes."""
    given = recipe.settings(stage)
    without = {*_WITHOUT_EFFECT[stage], *find_idle(stage, given)}
    settings = {name: value for name, value in given.model_dump(mode="json").items() if name not in without}
    if stage == "rm" and settings["margin"] == "none":
        del settings["margin"]  # the default: keys from before there was a choice stay valid
    if stage == "ppo":
        del settings["start"]  # stands among the parents, by its content
        settings["rollout"] = {name: value for name, value in settings["rollout"].items() if name not in _WITHOUT_EFFECT_IN_ROLLOUT}
        if settings["ptx_data"] == "demonstrations":
            del settings["ptx_data"]  # the default: keys from before there was a choice stay valid
        if settings["keep_every"] is None:
            del settings["keep_every"]
        if settings["publish"] == "best":
            settings["eval_every"] = recipe.ppo.eval_every  # says which iterations there are to choose from
        else:
            del settings["publish"]
    if stage == "sample":
        engine = settings.pop("rollout")["engine"]
        settings |= {"rollout": engine} if engine != "torch" else {}  # whose numbers are our own
        settings.pop("reward_model", None)  # stands among the parents, by its content
        if settings["choose"] == "random":
            del settings["choose"]  # keys stay valid
    if stage == "sft" and settings["publish"] == "last":
        del settings["publish"]
    if stage == "sft":  # beside the recipe's judge, who is asked for figures
        settings.pop("judge", None)
        if other := _identify_other_judge(stage, recipe, inputs):
            settings["chooser"] = other["judge"]
    if stage == "evaluate":
        del settings["judge"]
        settings |= _identify_other_judge(stage, recipe, inputs)
    return {
        "stage_version": STAGES[stage].version,
        "base_model": inputs.base_identity,
        "seed": recipe.seed,
        **(_identify_judge(recipe, inputs) if asks_judge(recipe.settings(stage)) and "judge" not in settings else {}),
        **({"probes_code": inputs.probes_code} if stage == "evaluate" and inputs.probes_code else {}),
        # Of texts every token is learnt, in rows of a length of their own.
        **({"tokens": identify_tokens(recipe)} if stage != "pretrain" else {}),
        "hardware": {
            "precision": recipe.hardware.precision,
            "attention": recipe.hardware.attention,
            **({"tf32": True} if recipe.hardware.tf32 else {}),
        },
        stage: settings,
    }


def _identify_other_judge(stage: StageName, recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """Say who judges in place of the recipe's judge; nothing where nobody does."""
    judge = named_judge(recipe.settings(stage))
    if judge is None:
        return {}
    if judge.llm is None:
        found = inputs.judge_models.get(stage)
        return {"judge": {"reward_model": found.identity if found else judge.reward_model}}
    llm = judge.llm.model_dump(mode="json")
    return {"judge": {"llm": {name: value for name, value in llm.items() if name not in _WITHOUT_EFFECT_IN_LLM}}}


def _identify_judge(recipe: Recipe, inputs: Inputs) -> dict[str, str | None]:
    return {"judge": recipe.judge, **({"judge_code": inputs.judge_code} if inputs.judge_code else {})}


def identify_tokens(recipe: Recipe) -> dict[str, Any]:
    """Say how texts become token ids."""
    return recipe.tokens.model_dump(mode="json") | {"chat_template": _identify_template(recipe.tokens.chat_template)}


def _identify_template(template: str) -> str:
    """Name a chat template in a file by its content; other ones name themselves, and the base model's are in its identity."""
    return f"sha256:{hash_file(Path(template))[1]}" if Path(template).is_absolute() else template
