"""samples.jsonl as a recipe wants it: as the stage left it, without personal details, or not at all."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from data.redact import RedactKind, redact_text
from pipeline.store.disk import writing
from stages.lines import read_line, to_line
from stages.spec import SAMPLES_FILE


def tame_samples(staging: Path, samples: str, redact: Sequence[RedactKind]) -> None:
    """Remove the samples that a stage left (`off`), or blot personal details out of them (`redacted`), before they are published.

    Args:
        staging: Where they lie, if there are any.
        samples: `data.samples`.
        redact: What to blot out; nothing means all kinds.
    """
    path = staging / SAMPLES_FILE
    if samples == "on" or not path.exists():
        return
    with writing(path):
        if samples == "off":
            path.unlink()
            return
        kinds: Sequence[RedactKind] = redact or get_args(RedactKind)
        lines = [to_line(_redact(read_line(line), kinds)) for line in path.read_bytes().splitlines(keepends=True)]
        path.write_text("".join(lines), encoding="utf-8")


def _redact(value: Any, kinds: Sequence[RedactKind]) -> Any:
    if isinstance(value, str):
        return redact_text(value, kinds, Counter())
    if isinstance(value, dict):
        return {name: _redact(item, kinds) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_redact(item, kinds) for item in cast("list[Any]", value)]
    return value
