"""A list of sources of comparisons, published rankings among them -> two files in the store, which all else reads as any other source.

    mixes/<key>/train.jsonl, eval.jsonl     named by all that they follow from; `rlhf forget` removes them, they are made anew
    mixes/<key>/made.json                   how many records each source lost to held-out lists

Each source is read and told of by itself, as if it were alone. The cache key of what learns from them holds the content of each.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from data.load import load_records
from data.mix import Mixed, MixedPart, mix_parts
from data.schema import Comparison, DataError, Problem
from data.system.drafts import make_draft
from data.treatment import Treat, make_treatment
from pipeline.errors import ConfigError, ResourceError
from pipeline.inputs.demo import locate_source
from pipeline.inputs.records import Reading, Told, read_data
from pipeline.inputs.start import find_named
from pipeline.privacy.lists import find_forgotten, name_forgotten
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import PartSource
from pipeline.store.artifact import Artifact
from pipeline.store.disk import make_directories, writing
from pipeline.store.parts import MIXES_DIR
from pipeline.store.store import Store
from stages.lines import to_line
from stages.spec import DataSource, DataSplits

_VERSION = 1  # raised by hand when the code makes other files of the same records
MADE_FILE = "made.json"
_STALE_DRAFT_S = 3600
FROM = "from "  # before a source's name, among the fingerprints of a mixed set
LEFT_OUT = "comparisons_left_out_as_held_out"
Read = Callable[[DataSplits], Reading]


@dataclass(frozen=True)
class _Part:
    """A source as it was found and read."""

    name: str
    weight: float
    train: DataSource
    held_out: DataSource | None
    reading: Reading
    artifact: Artifact | None

    @property
    def content(self) -> str:
        """What it stands for in a cache key."""
        hashes = [self.reading.fingerprints["train"], *([self.reading.fingerprints["eval"]] if self.held_out else [])]
        return f"{' and '.join(hashes)}, weight {self.weight:g}"


@dataclass(frozen=True)
class MixedSources:
    """What a list of sources became.

    Args:
        splits: The two files.
        reading: Of them, with what was told of each source.
        weights: Source -> how often each of its records is seen in an epoch.
        rankings: The published rankings among them.
    """

    splits: DataSplits
    reading: Reading
    weights: dict[str, float]
    rankings: list[Artifact]


def mix_sources(recipe: Recipe, store_root: Path, read: Read, *, keep_notes: bool, told: Told) -> MixedSources:
    """Read the sources of comparisons, and mix them unless that is done already.

    Args:
        recipe: Resolved recipe, with a list of sources.
        store_root: Where the demo, rankings and mixed files lie.
        read: Reads a source and what it holds out, as the recipe says.
        keep_notes: Keep the mixed files; not for looking, which leaves the store as it is.
        told: Hears now and then how many records of them are read.

    Raises:
        DataError: With every bad line of all sources.
        ConfigError: Two sources go by one name.
        StoreError: Rankings are not there (exit 4), damaged or withdrawn (exit 3).
    """
    while True:
        forgotten = name_forgotten(store_root)
        try:
            found, directory = _mix_sources(recipe, store_root, read, keep_notes=keep_notes, told=told)
        except (FileNotFoundError, ResourceError, DataError):
            if name_forgotten(store_root) == forgotten:
                raise
            continue  # `rlhf forget` has removed what was mixed: anew, without what was forgotten
        if name_forgotten(store_root) == forgotten:
            return found
        if keep_notes:  # its list was written after ours was read, and its removal may have been before our files were there
            shutil.rmtree(directory, ignore_errors=True)


def _mix_sources(recipe: Recipe, store_root: Path, read: Read, *, keep_notes: bool, told: Told) -> tuple[MixedSources, Path]:
    """Read and mix the sources once; returns them, and the directory of the mixed files."""
    splits = recipe.data.comparisons
    assert splits is not None
    parts = _read_parts(recipe, splits.train.parts, Store(store_root), read, verify=keep_notes)
    given = locate_source(splits.eval, store_root) if splits.eval else None
    held_out = read(DataSplits(train=given, eval=None)) if given else None
    directory = store_root / MIXES_DIR / _name_mix(recipe, parts, held_out)
    treat = make_treatment(recipe.data.redact, find_forgotten(store_root))
    with ExitStack() as stack:
        if not (directory / MADE_FILE).is_file():
            mixed = _mix(parts, given, recipe, treat)
            if keep_notes:
                _keep(directory, mixed)
            else:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                _write(directory, mixed)
        made = json.loads((directory / MADE_FILE).read_text(encoding="utf-8"))
        sides = {side: DataSource.model_validate({"path": str(directory / f"{side}.jsonl")}) for side in ("train", "eval")}
        both = DataSplits(train=sides["train"], eval=sides["eval"])
        reading = read_data("comparisons", both, recipe.data.eval_fraction, store_root=store_root, keep_note=keep_notes, told=told)
    weights = {part.name: part.weight for part in parts}
    readings = [*(part.reading for part in parts), *([held_out] if held_out else [])]
    rankings = [part.artifact for part in parts if part.artifact]
    return MixedSources(both, _tell(reading, parts, readings, made["left_out"]), weights, rankings), directory


def _name_mix(recipe: Recipe, parts: Sequence[_Part], held_out: Reading | None) -> str:
    """Name a mixture by all that it follows from."""
    described = [_VERSION, [(part.name, part.content.rpartition(",")[0]) for part in parts], held_out and held_out.fingerprints["train"]]
    described += [recipe.data.eval_fraction, recipe.seed]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def _read_parts(recipe: Recipe, sources: Sequence[PartSource], store: Store, read: Read, *, verify: bool) -> list[_Part]:
    parts: list[_Part] = []
    problems: list[Problem] = []
    for number, source in enumerate(sources):
        artifact, train, held_out = None, locate_source(source, store.root), None
        if source.ref is not None:
            place = f"{recipe.place(f'data.comparisons.train.parts.{number}')}: ref"
            artifact = find_named(
                store, source.ref, place, verify=verify, todo="publish what remains (`rlhf rankings ANSWERS --publish`), and give that"
            )
            train, held_out = (DataSource.model_validate({"path": str(artifact.path / f"{side}.jsonl")}) for side in ("train", "eval"))
        name = source.name or (artifact.ref if artifact else source.label)
        try:
            parts.append(_Part(name, source.weight, train, held_out, read(DataSplits(train=train, eval=held_out)), artifact))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    names = [part.name for part in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        found = f"found two sources that go by {twice}"
        place = recipe.place("data.comparisons.train")
        raise ConfigError([f"{place}: data.comparisons.train: {found}; needed different names; give one of them name: ..."])
    return parts


def _mix(parts: Sequence[_Part], given: DataSource | None, recipe: Recipe, treat: Treat | None) -> Mixed:
    def load(source: DataSource | None) -> list[Comparison] | None:
        return None if source is None else cast("list[Comparison]", load_records(source, "comparisons", recipe.data.skip_bad, treat=treat))

    loaded = [MixedPart(part.name, load(part.train) or [], load(part.held_out)) for part in parts]
    return mix_parts(loaded, load(given), recipe.data.eval_fraction, recipe.seed)


def _keep(directory: Path, mixed: Mixed) -> None:
    """Write them into the store, whole or not at all; another process that does the same does no harm."""
    with writing(directory):
        make_directories(directory.parent)
        with make_draft(directory, stale_s=_STALE_DRAFT_S) as draft:
            _write(draft, mixed)
            if not directory.exists():
                draft.rename(directory)


def _write(directory: Path, mixed: Mixed) -> None:
    for side, records in (("train", mixed.train), ("eval", mixed.held_out)):
        with (directory / f"{side}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(to_line(_lay_out(record), ascii_only=False) for record in records)
    (directory / MADE_FILE).write_text(json.dumps({"left_out": dict(mixed.left_out)}), encoding="utf-8")


def _lay_out(record: Comparison) -> dict[str, object]:
    prompt = [{"role": message.role, "content": message.content} for message in record.prompt]
    row: dict[str, object] = {"prompt": prompt, "completions": record.completions, "ranks": record.ranks, "source": record.source}
    return row | ({"grades": record.grades} if record.grades else {})


def _tell(mixed: Reading, parts: Sequence[_Part], readings: Sequence[Reading], left_out: dict[str, int]) -> Reading:
    """Say of a mixed set what is told of its sources, and of what each of them holds."""
    lines = [f"{part.name}: seen {part.weight:g} times in an epoch" for part in parts if part.weight != 1] + [
        f"{name}: {count:,} comparisons are left out of training, as their conversations are held out" for name, count in left_out.items()
    ]
    treated = {name: sum(each.treated.get(name, 0) for each in readings) for each in readings for name in each.treated}
    return replace(
        mixed,
        fingerprints={**mixed.fingerprints, **{f"{FROM}{part.name}": part.content for part in parts}},
        told=(*(line for each in readings for line in each.told), *lines),
        notable=(*(line for each in readings for line in each.notable), *lines),
        skipped=tuple(bad for each in readings for bad in each.skipped),
        treated=treated | ({LEFT_OUT: sum(left_out.values())} if left_out else {}),
    )
