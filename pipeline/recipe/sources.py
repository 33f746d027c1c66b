"""What a recipe can say of where its records lie: one source, or of comparisons a list of them, with published rankings among them.

comparisons:
  train:
    - ranked.jsonl                        # as a plain source; `demo` too
    - {ref: rankings@v2, weight: 2}       # `rlhf rankings --publish`; brings its own held-out list
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import Field, field_validator, model_validator

from stages.spec import RANKINGS_KIND, DataSource, DataSplits

DEMO_PATTERN = re.compile(r"demo(?:@(?P<seed>[0-9]{1,9}))?(?::(?P<kind>demonstrations|comparisons|prompts)\.(?P<split>train|eval))?")
_REF = re.compile(rf"{RANKINGS_KIND}(@[A-Za-z][A-Za-z0-9_.-]{{0,63}})?")


class PartSource(DataSource):
    """One of several sources of comparisons: a path, or rankings by ref."""

    path: str = Field("", description="File, directory or dataset id.")
    ref: str | None = Field(None, description="Published rankings, such as rankings@v2, in place of a path.")
    weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="How often each of its records is seen in an epoch: 2 is twice, 0.5 every other one, drawn by the seed.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]{0,63}$",
        description="What its records and its held-out accuracy go by; default: the ref, or the file's name without suffix.",
    )

    @field_validator("ref")
    @classmethod
    def _is_of_rankings(cls, ref: str | None) -> str | None:
        if ref is not None and not _REF.fullmatch(ref):
            raise ValueError(f"found {ref!r:.60}, needed published rankings, such as {RANKINGS_KIND}@v1; see `rlhf ls {RANKINGS_KIND}`")
        return ref

    @model_validator(mode="after")
    def _has_one_place(self) -> "PartSource":
        if bool(self.path) == (self.ref is not None):
            found = "both a path and a ref" if self.path else "neither a path nor a ref"
            raise ValueError(f"found {found}; needed one of them; write a path, or ref: {RANKINGS_KIND}@v1")
        return self

    @property
    def label(self) -> str:
        """What it goes by; of rankings without a version, the version that is found is put there."""
        if self.name or self.ref:
            return cast("str", self.name or self.ref)
        demo = DEMO_PATTERN.fullmatch(self.path)
        return (
            self.path.partition(":")[0]
            if demo
            else re.sub(r"[^A-Za-z0-9@._-]+", "-", Path(self.path).name.partition(".")[0])[:64] or "data"
        )


class ComparisonSource(DataSource):
    """A source of comparisons, or several."""

    path: str = Field("", description="File, directory or dataset id.")
    parts: list[PartSource] = Field(default_factory=list[PartSource], description="Several sources, in place of a path: a plain list.")

    @model_validator(mode="after")
    def _has_one_or_several(self) -> "ComparisonSource":
        if self.parts and (given := [name for name in DataSource.model_fields if getattr(self, name)]):
            raise ValueError(f"found {given[0]} beside a list of sources; needed it at those that it is for; write it there")
        return self


class ComparisonSplits(DataSplits):
    """Training and held-out comparisons."""

    train: ComparisonSource = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  (blocks are frozen)
        description="A source, or a list of them with `ref`s of published rankings among them."
    )


def list_sources(splits: DataSplits) -> Iterator[tuple[str, DataSource]]:
    """Yield the sources of a kind with their keys: `train`, `eval`, of several `train.parts.0`."""
    if isinstance(splits.train, ComparisonSource) and splits.train.parts:
        yield from ((f"train.parts.{number}", part) for number, part in enumerate(splits.train.parts))
    else:
        yield "train", splits.train
    if splits.eval is not None:
        yield "eval", splits.eval


def expand_list(value: Any, kind: str) -> Any:
    """Turn a list of sources into the block it stands for; a list of one path is that path."""
    if not isinstance(value, list):
        return value
    entries = [_expand_part(entry, kind) for entry in cast("list[Any]", value)]
    if len(entries) == 1 and isinstance(entries[0], dict) and not {"ref", "weight", "name"} & entries[0].keys():
        return cast("dict[str, Any]", entries[0])
    return {"parts": entries}


def _expand_part(entry: Any, kind: str) -> Any:
    block = {"path": entry} if isinstance(entry, str) else entry
    if isinstance(block, dict):
        path = cast("dict[str, Any]", block).get("path")
        if isinstance(path, str) and DEMO_PATTERN.fullmatch(path) and ":" not in path:
            return {**cast("dict[str, Any]", block), "path": f"{path}:{kind}.train"}
    return cast("Any", block)
