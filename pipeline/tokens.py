"""Record sets -> their token ids, made before the first stage runs, in a process that has the tokenizer; and how many of them are used.

`tokens/` in the store: a directory for each record set, tokenizer and limits (`data.token_maker`), which the stages map; removing any of
it does no harm.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.schema import DataError, Problem, RecordKind
from pipeline.errors import ConfigError, StoppedAfterStage
from pipeline.inputs.prepare import Inputs
from pipeline.inputs.slices import identify_tokens
from pipeline.launch.commands import Command
from pipeline.launch.events import Event
from pipeline.launch.failure import StageFailed
from pipeline.launch.launch import launch
from pipeline.recipe.explain import declared_keys
from pipeline.recipe.schema import Recipe
from pipeline.store.disk import locked, make_directories, writing
from pipeline.store.parts import TOKENS_DIR
from stages.settings import TrainingSettings
from stages.spec import EXIT_USAGE, TOKENS_VERSION, StageName, TokensSpec, data_inputs

_WORK = re.compile(r"\.work-[a-z0-9_]{8}")

_KEPT = (
    "no stage had begun; the same command goes on with the token ids: those of record sets that are whole are kept, all others made anew"
)

Counts = dict[RecordKind, dict[str, dict[str, int]]]  # kind -> split -> name -> count


def make_tokens(recipe: Recipe, inputs: Inputs, store_root: Path, on_event: Callable[[Event], None]) -> Counts:
    """Make the token ids of all record sets that were read, unless they are there.

    Args:
        recipe: Resolved recipe.
        inputs: As `prepare` returns them.
        store_root: Where they are kept.
        on_event: Is told how far that is.

    Returns:
        How many records are used, cut and dropped, by kind and split.

    Raises:
        DataError, StageFailed: A record cannot be encoded, or a set has none that can be used.
    """
    if not inputs.readings:
        return {}
    directory = store_root / TOKENS_DIR
    report_path = directory / f"report-{_identify(recipe, inputs)[:32]}.json"
    with writing(directory):
        make_directories(directory)
    with locked(directory / ".lock"):
        if (counts := _recall(report_path)) is not None:
            return counts
        with writing(directory):
            work = _make_work_directory(directory)
            spec = _make_spec(recipe, inputs, directory, work, report_path)
            (work / "spec.json").write_text(spec.model_dump_json(indent=2), encoding="utf-8")
        command = Command([sys.executable, "-P", "-m", "stages.tokens", str(work / "spec.json")])
        try:
            received = launch("data", lambda _: [command], work, on_event, offline=inputs.local)
        except StageFailed as error:
            if error.interrupted:
                shutil.rmtree(work, ignore_errors=True)  # with its log, which says no more
                raise StageFailed(str(error), error.exit_code, [], None, _KEPT) from None
            if problems := _read_problems(report_path):
                shutil.rmtree(work, ignore_errors=True)
                raise DataError(problems) from None
            raise _place(error, recipe) from error
        shutil.rmtree(work, ignore_errors=True)
    if received is not None:
        raise StoppedAfterStage(received)
    return _recall(report_path) or {}


def _place(error: StageFailed, recipe: Recipe) -> Exception:
    """Give what is wrong with a key of the recipe the line on which it stands."""
    message = str(error).removeprefix("data: ")
    key = re.match(r"[a-z_]+(\.[a-z_]+)*(?=: | = )", message)
    if error.exit_code == EXIT_USAGE and key and tuple(key[0].split(".")) in declared_keys():
        return ConfigError([f"{recipe.place(key[0])}: {message}"])
    return error


def _make_work_directory(directory: Path) -> Path:
    """Make a directory for spec, log and events; those that failed processes left go. The lock is held."""
    for left in directory.iterdir():
        if _WORK.fullmatch(left.name) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=".work-", dir=directory))


def add_splits(splits: dict[str, dict[str, int]]) -> dict[str, int]:
    """Add the counts of the splits of one kind."""
    total: Counter[str] = Counter()
    for counts in splits.values():
        total.update(counts)
    return dict(total)


def _identify(recipe: Recipe, inputs: Inputs) -> str:
    """Name the report after all that the counts depend on."""
    described: dict[str, Any] = {
        "version": TOKENS_VERSION,
        "base_model": inputs.base_identity,
        "tokens": identify_tokens(recipe),
        "data": {kind: reading.fingerprints for kind, reading in inputs.readings.items()},
        "seed": recipe.seed,
        "model": _describe_model(recipe),
    }
    if readers := _text_readers(recipe, inputs):
        described["text_readers"] = readers
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=lambda block: block.model_dump(mode="json")).encode()).hexdigest()


def _text_readers(recipe: Recipe, inputs: Inputs) -> list[StageName]:
    """List the stages that learn from texts, where those were read."""
    return [stage for stage in recipe.stages if "texts" in inputs.data and "texts" in data_inputs(stage, recipe.settings(stage))]


def _describe_model(recipe: Recipe) -> dict[str, Any]:
    """Say what of the recipe the base model is checked against."""
    sampling = {"ppo": recipe.ppo} | ({"evaluate": recipe.evaluate} if recipe.evaluate else {})
    return {
        "adapters": {stage: settings.lora for stage in recipe.stages if isinstance(settings := recipe.settings(stage), TrainingSettings)},
        "stop_tokens": {stage: settings.stop_token for stage, settings in sampling.items()},
        "max_rollout_tokens": max(settings.max_response_tokens or recipe.tokens.max_response_tokens for settings in sampling.values()),
    }


def _recall(report_path: Path) -> Counts | None:
    """Return the counts of a report whose token ids are all there."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        report: dict[str, Any] = json.loads(report_path.read_text(encoding="utf-8"))
        if all(Path(directory).is_dir() for directory in report["directories"]):
            return TypeAdapter(Counts).validate_python(report["counts"], strict=True)
    return None


def _read_problems(report_path: Path) -> list[Problem]:
    """Return what a failed process found wrong with the data, and forget it: the data may be mended."""
    try:
        problems: list[dict[str, Any]] = json.loads(report_path.read_text(encoding="utf-8"))["problems"]
        report_path.unlink()
        return [Problem(**problem) for problem in problems]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _make_spec(recipe: Recipe, inputs: Inputs, directory: Path, work: Path, report_path: Path) -> TokensSpec:
    sizes: dict[str, int] = {}
    for kind, reading in inputs.readings.items():
        sizes |= {f"{kind}.{split}": reading.findings.counts[split] for split in inputs.sources(kind)}
    return TokensSpec(
        base_model=inputs.base_model,
        revision=inputs.revision,
        tokens=recipe.tokens,
        data=inputs.data,
        fingerprints=inputs.source_fingerprints(),
        skip_bad=recipe.data.skip_bad,
        redact=tuple(recipe.data.redact),
        forgotten=inputs.forgotten,
        records=sizes,
        eval_fraction=recipe.data.eval_fraction,
        seed=recipe.seed,
        text_readers=tuple(_text_readers(recipe, inputs)),
        **_describe_model(recipe),
        tokens_dir=directory.resolve(),
        events_path=(work / "events.jsonl").resolve(),
        report_path=report_path.resolve(),
    )
