"""What single fields of a recipe cannot check: files on disk, and relations between fields."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from data.schema import KINDS
from pipeline.errors import ConfigError, StoreError
from pipeline.ranking.settings import names_file
from pipeline.recipe.base_files import find_damage, list_weights
from pipeline.recipe.explain import show
from pipeline.recipe.paths import find_absence, hint_path, show_path
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import DEMO_PATTERN, PartSource, list_sources
from pipeline.recipe.trainer_fields import config_class, trainer_fields
from stages.deepspeed_config import read_deepspeed_json
from stages.rules import Refusal, find_refusals
from stages.settings import TrainingSettings
from stages.spec import ADAPTER_CONFIG, StageName, data_inputs
from stages.trainer_args import find_refused_arguments

ProblemAt = Callable[[str, str], str]


def check_keys(
    recipe: Recipe, problem: ProblemAt, stages: tuple[StageName, ...], *, to_run: bool = False, has_files: bool = True
) -> Iterator[str]:
    """Check what keys name, each by itself: files, ids of a hub, functions, arguments of trainers.

    Args:
        recipe: That is checked.
        problem: Puts the place before a key and what is wrong with it.
        stages: Stages that will be planned: the data that they read must be given.
        to_run: Whether what it names on a hub must be there.
        has_files: Whether data, tokenizer and weights must; else the base model's configuration is enough.
    """
    yield from _check_base_model(recipe, problem, has_files=has_files)
    yield from _check_judge_models(recipe, problem)
    template = recipe.tokens.chat_template
    if Path(template).is_absolute() and not Path(template).is_file():
        needed = "a Jinja file, auto, chatml, plain or the name of one of the tokenizer's templates"
        todo = hint_path(Path(template), "check the path")
        yield problem("tokens.chat_template", f"found no file {show_path(Path(template))}, needed {needed}; {todo}")
    guidelines = recipe.ranking.guidelines
    if names_file(guidelines) and not Path(guidelines).is_file():
        todo = hint_path(Path(guidelines), "check the path")
        yield problem("ranking.guidelines", f"found no file {show_path(Path(guidelines))}, needed Markdown, or a .md or .txt file; {todo}")
    if has_files:
        yield from _check_data(recipe, stages, problem)
    if to_run:
        yield from _check_hub(recipe, stages, problem)
    yield from _check_trainer_args(recipe, problem)
    probes = recipe.evaluate.probes if recipe.evaluate else None
    for key, name, example in (("judge", recipe.judge, "data.demo.rule:judge"), ("evaluate.probes", probes, "data.demo.probes:edit")):
        if name is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
            yield problem(key, f"found {show(name)}, needed module:function, such as {example}")


def check_relations(recipe: Recipe, problem: ProblemAt, stages: tuple[StageName, ...]) -> Iterator[str]:
    """Check what keys mean for each other; as `check_keys`."""
    yield from _check_hardware(recipe, stages, problem)
    yield from _check_adapters(recipe, stages, problem)


def _check_adapters(recipe: Recipe, stages: tuple[StageName, ...], problem: ProblemAt) -> Iterator[str]:
    """Refuse an adapter on an adapter that is not merged. PPO takes the reward model's beside its own, not on top."""
    on_top: tuple[tuple[StageName, StageName], ...] = (("pretrain", "sft"), ("sft", "rm"), ("sft", "ppo"))
    for below, stage in on_top:
        if below not in recipe.stages or stage not in stages:
            continue
        base, lora = (cast("TrainingSettings", recipe.settings(name)).lora for name in (below, stage))
        if base and lora and not base.merge:
            yield problem(
                f"{stage}.lora",
                f"found {stage}.lora (rank {lora.rank}) on top of {below}.lora.merge = false, needed a merged base for the second adapter; "
                f"set {below}.lora.merge: true, or {stage}.lora: null",
            )


def _check_base_model(recipe: Recipe, problem: ProblemAt, *, has_files: bool) -> Iterator[str]:
    path = Path(recipe.base_model)
    if DEMO_PATTERN.fullmatch(recipe.base_model):
        if ":" in recipe.base_model:
            yield problem("base_model", f"found {show(recipe.base_model)}, which names data; write demo or demo@SEED")
        return
    if not path.is_absolute():
        return  # a hub id: the stage asks the hub
    if not path.is_dir():
        yield problem("base_model", f"found no directory {show_path(path)}; {hint_path(path, 'give a model directory, a hub id or demo')}")
        return
    if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        todo = "merge it into its base (merge_and_unload of peft, then save_pretrained, with the tokenizer)"
        yield problem("base_model", f"found an adapter alone in {show_path(path)}, needed a whole model; {todo}")
        return
    if not (path / "config.json").is_file():
        yield problem("base_model", f"found no config.json in {show_path(path)}, needed one; give a directory that from_pretrained opens")
    if not has_files:
        return
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        yield problem("base_model", f"found no tokenizer.json in {show_path(path)}, needed the tokenizer beside the model; copy it there")
    elif (
        not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")) and importlib.util.find_spec("sentencepiece") is None
    ):
        found = f"tokenizer.model without a tokenizer.json in {show_path(path)}"
        needed = "needed the package sentencepiece to read it, which is not installed"
        todo = "install it (pip install sentencepiece), or copy the tokenizer.json of the same model there"
        yield problem("base_model", f"found {found}, {needed}; {todo}")
    try:
        weights = list_weights(str(path))
    except ConfigError as error:
        yield from (problem("base_model", line) for line in error.problems)
        return
    except StoreError as error:
        yield problem("base_model", error.message)
        return
    if not weights:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in path.glob(pattern))
        found = f"only pickled weights ({', '.join(pickles[:3])}), which can run code" if pickles else "no weights"
        yield problem("base_model", f"found {found} in {show_path(path)}, needed *.safetensors; convert with save_pretrained")
    for file in weights:
        if damage := find_damage(file):
            yield problem("base_model", f"{show_path(file)}: {damage}; it was cut or changed: get it once more")


def _check_judge_models(recipe: Recipe, problem: ProblemAt) -> Iterator[str]:
    judges = {"sft": recipe.sft.chooser, "evaluate": recipe.evaluate and recipe.evaluate.judge}
    for stage, judge in judges.items():
        path = Path(judge.reward_model) if judge and judge.reward_model else None
        if path and path.is_absolute() and not path.is_dir():
            todo = hint_path(path, "give a directory, a hub id or an artifact such as rm@v1")
            yield problem(f"{stage}.judge.reward_model", f"found no directory {show_path(path)}; {todo}")


def _check_data(recipe: Recipe, stages: tuple[StageName, ...], problem: ProblemAt) -> Iterator[str]:
    for kind in KINDS:
        readers = [stage for stage in stages if kind in data_inputs(stage, recipe.settings(stage))]
        splits = getattr(recipe.data, kind)
        if splits is None:
            if readers:
                yield problem(f"data.{kind}", f"missing; {' and '.join(readers)} read it; give a file, a dataset id or demo")
            continue
        for split, source in list_sources(splits):
            if isinstance(source, PartSource) and source.ref is not None:
                continue  # in the store, which is asked when the data is read
            if kind == "texts" and DEMO_PATTERN.fullmatch(source.path):
                yield problem(
                    "data.texts", f"found {show(source.path)}, but the demo has no texts; give a file, a directory or a dataset id"
                )
            elif not source.path:
                yield problem(f"data.{kind}.{split}", "found an empty path; give a file, a dataset id or demo")
            elif Path(source.path).is_absolute() and not Path(source.path).exists():
                todo = hint_path(Path(source.path), "give a path relative to the recipe, or absolute")
                yield problem(f"data.{kind}.{split}", f"found no file {show_path(Path(source.path))}; {todo}")


def _check_hub(recipe: Recipe, stages: tuple[StageName, ...], problem: ProblemAt) -> Iterator[str]:
    named: dict[str, tuple[str, str | None]] = {"base_model": (recipe.base_model, recipe.revision)}
    for kind in KINDS:
        splits = getattr(recipe.data, kind)
        if splits is not None and any(kind in data_inputs(stage, recipe.settings(stage)) for stage in stages):
            named |= {f"data.{kind}.{split}": (source.path, source.revision) for split, source in list_sources(splits)}
    for keys, (value, revision) in named.items():
        if value and (absence := find_absence(value, keys, revision)):
            yield problem(keys, absence)


def _check_hardware(recipe: Recipe, stages: tuple[StageName, ...], problem: ProblemAt) -> Iterator[str]:
    hardware = recipe.hardware
    # Of the hardware block alone each stage says the same.
    refused: dict[Refusal, None] = {}
    for stage in stages:
        num_processes = hardware.processes * hardware.nodes
        settings = recipe.settings(stage)
        found = find_refusals(stage, settings, hardware, engine=hardware.engine, num_processes=num_processes, judge=recipe.judge)
        refused |= dict.fromkeys(found)
    yield from (problem(key, message) for key, message in refused)
    if hardware.deepspeed_config is not None:
        try:
            read_deepspeed_json(Path(hardware.deepspeed_config))
        except (OSError, ValueError) as error:
            yield problem("hardware.deepspeed_config", f"found {show(hardware.deepspeed_config)}: {error}; give a DeepSpeed JSON file")


def _check_trainer_args(recipe: Recipe, problem: ProblemAt) -> Iterator[str]:
    given: list[tuple[StageName, dict[str, Any]]] = [("sft", recipe.sft.trainer_args), ("rm", recipe.rm.trainer_args)]
    if recipe.pretrain is not None:
        given.append(("pretrain", recipe.pretrain.trainer_args))
    for stage, arguments in given:
        known = trainer_fields(stage) if arguments else None
        if known is None:
            continue  # the stage itself checks too
        for key, message in find_refused_arguments(stage, arguments, known, config_class(stage)):
            yield problem(key, message)
