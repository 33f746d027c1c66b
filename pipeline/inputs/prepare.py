"""Recipe -> Inputs: the base model and all data that its stages start from, read and checked once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from data.schema import KINDS, DataError, Problem, RecordKind
from pipeline.inputs.base_model import identify_model
from pipeline.inputs.demo import demo_seeds, locate, locate_splits, make_demo
from pipeline.inputs.judge_code import identify_judge
from pipeline.inputs.judge_model import JudgeModel, find_judge_model
from pipeline.inputs.mixing import MixedSources, mix_sources
from pipeline.inputs.records import Reading, Told, read_data
from pipeline.inputs.start import find_start
from pipeline.privacy.lists import find_forgotten
from pipeline.recipe.base_files import pin_revision
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import ComparisonSource
from pipeline.store.artifact import Artifact
from stages.spec import DataSplits, StageName, data_inputs


@dataclass(frozen=True)
class Inputs:
    """What a recipe's stages start from, read and checked once.

    Args:
        base_model: Its directory, or hub id.
        revision: Of a hub's model: the commit, where it can be told.
        base_identity: See `identify_model`.
        judge_code: See `identify_judge`.
        probes_code: The same of `evaluate.probes`.
        data: Sources, by kind.
        readings: What was found in them.
        weights: Of several sources of comparisons, how often each one's records are seen in an epoch.
        rankings: The published rankings among them.
        forgotten: The store's `records/`, where something was forgotten.
        judge_models: The reward models that judge, by the stage whose answers they judge.
        start: The policy at which PPO begins; None: at the SFT model.
    """

    base_model: str
    revision: str | None
    base_identity: str
    judge_code: str | None
    probes_code: str | None
    data: dict[RecordKind, DataSplits]
    readings: dict[RecordKind, Reading]
    forgotten: Path | None = None
    judge_models: dict[StageName, JudgeModel] = field(default_factory=dict["StageName", JudgeModel])
    weights: dict[str, float] = field(default_factory=dict[str, float])
    rankings: list[Artifact] = field(default_factory=list["Artifact"])
    start: Artifact | None = None

    def fingerprints(self, stage: StageName, recipe: Recipe) -> dict[str, dict[str, str]]:
        """Return the content hashes of what a stage reads: kind -> split -> hash."""
        return {kind: self.readings[kind].fingerprints for kind in data_inputs(stage, recipe.settings(stage))}

    def skipped(self, stage: StageName, recipe: Recipe) -> list[Problem]:
        """Return the bad lines that were skipped of what a stage reads."""
        return [bad for kind in data_inputs(stage, recipe.settings(stage)) for bad in self.readings[kind].skipped]

    def treated(self, stage: StageName, recipe: Recipe) -> dict[str, int]:
        """Count, over what a stage reads, the records that were left out as forgotten, and what was blotted out."""
        readings = [self.readings[kind].treated for kind in data_inputs(stage, recipe.settings(stage))]
        return {name: sum(found.get(name, 0) for found in readings) for name in dict.fromkeys(name for found in readings for name in found)}

    def sources(self, kind: RecordKind) -> list[str]:
        """Return the splits of a kind that have a source of their own."""
        return ["train", "eval"] if self.data[kind].eval else ["train"]

    def source_fingerprints(self) -> dict[str, dict[str, str]]:
        """Return the content hash of each source: kind -> split -> hash."""
        return {kind: {split: reading.fingerprints[split] for split in self.sources(kind)} for kind, reading in self.readings.items()}

    @property
    def local(self) -> bool:
        """Whether nothing has to come from a hub."""
        judges = [judge.path for judge in self.judge_models.values()]
        paths = [
            self.base_model,
            *judges,
            *(source.path for splits in self.data.values() for source in (splits.train, splits.eval) if source),
        ]
        return all(Path(path).is_absolute() for path in paths)


def prepare(
    recipe: Recipe,
    store_root: Path,
    stages: Sequence[StageName],
    *,
    trust_notes: bool = False,
    keep_notes: bool = True,
    told: Told = lambda kind, count: None,
) -> Inputs:
    """Read and check all data that the stages will read, so that a bad line is told before anything trains.

    Args:
        recipe: Resolved recipe.
        store_root: Where the demo is made, and notes are kept of what was found in files.
        stages: Stages whose data is read.
        trust_notes: Do not read files again whose size and times are as noted; for looking, not for training.
        keep_notes: Note what was found; not for looking, which leaves the store as it is.
        told: Hears now and then how many records are read.

    Raises:
        DataError: With every bad line.
    """
    for seed in demo_seeds(recipe):
        make_demo(store_root, seed, may_write=keep_notes)
    data: dict[RecordKind, DataSplits] = {}
    readings: dict[RecordKind, Reading] = {}
    problems: list[Problem] = []
    mixed: MixedSources | None = None

    def read(kind: RecordKind, splits: DataSplits) -> Reading:
        return read_data(
            kind,
            splits,
            recipe.data.eval_fraction,
            skip_bad=recipe.data.skip_bad,
            redact=recipe.data.redact,
            store_root=store_root,
            trust_notes=trust_notes,
            keep_note=keep_notes,
            told=told,
        )

    for kind in KINDS:
        if not any(kind in data_inputs(stage, recipe.settings(stage)) for stage in stages):
            continue
        splits = cast("DataSplits", getattr(recipe.data, kind))  # the checks of the recipe saw to it that it is there
        if isinstance(splits.train, ComparisonSource) and splits.train.parts:
            try:
                mixed = mix_sources(recipe, store_root, partial(read, kind), keep_notes=keep_notes, told=told)
            except DataError as error:
                problems += error.problems
                continue
            data[kind], readings[kind] = mixed.splits, mixed.reading
            problems += [Problem(kind, "", text) for text in mixed.reading.findings.errors]
            continue
        data[kind] = locate_splits(splits, store_root)
        try:
            readings[kind] = read(kind, data[kind])
            problems += [Problem(kind, "", text) for text in readings[kind].findings.errors]
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(list(dict.fromkeys(problems)))  # one source may be both sides
    base_model = locate(recipe.base_model, store_root)
    revision = pin_revision(base_model, recipe.revision)
    judge_code = identify_judge(recipe.judge, recipe.judge_directory) if recipe.judge else None
    probes = recipe.evaluate.probes if recipe.evaluate else None
    probes_code = identify_judge(probes, recipe.judge_directory) if probes else None
    identity, forgotten = identify_model(base_model, revision), find_forgotten(store_root)
    weights, rankings = (mixed.weights, mixed.rankings) if mixed else ({}, [])
    judges: dict[StageName, JudgeModel] = {}
    for stage in stages:
        if judge := find_judge_model(recipe, stage, store_root, verify=keep_notes):
            judges[stage] = judge
    return Inputs(
        base_model,
        revision,
        identity,
        judge_code,
        probes_code,
        data,
        readings,
        forgotten=forgotten,
        judge_models=judges,
        weights=weights,
        rankings=rankings,
        start=find_start(recipe, store_root, verify=keep_notes) if "ppo" in stages else None,
    )
