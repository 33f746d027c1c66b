"""What the one who asks for rankings sets: the block `ranking` of a recipe. Torch-free."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.errors import StoreError
from pipeline.store.disk import expand_home
from stages.blocks import Closed, EndpointSettings, Fraction
from stages.spec import EXIT_USAGE

GUIDELINE_FILES = (".md", ".markdown", ".txt")


class Settings(Closed):
    """How people, or a model, rank answers (`rlhf rank`)."""

    flags: list[Annotated[str, Field(min_length=1, max_length=40)]] = Field(
        ["harmful", "wrong", "off-topic"],
        max_length=12,
        description="What an answer can be marked as; [] for nothing. A flag changes no rank.",
    )
    grade: bool = Field(
        True, description="Whether a grade of the best answer is asked for, 1 (bad) to 7 (as good as can be); it may be left out."
    )
    grade_each: bool = Field(
        False, description="Whether a grade of each answer is asked for, instead of the best one's: `rm.margin: grade` learns from them."
    )
    guidelines: str = Field(
        "",
        description="What annotators or a judging model are told: Markdown, or a .md or .txt file (its path is relative to the recipe).",
    )
    partial: bool = Field(True, description="Whether answers may be left unnamed: they share the last rank. false: each must be placed.")
    overlap: Fraction = Field(0.1, description="Share of the sets that everybody ranks, for the agreement between people.")
    repeats: float = Field(
        0.1, ge=0, le=0.5, description="Share of judgements that repeat a set of the annotator's own, for the agreement with oneself."
    )
    judge: EndpointSettings | None = Field(
        None, description="A language model that ranks in place of people, or beside them (`rlhf rank --by-model`); null: none."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of the orders in which sets and answers are shown.")

    @field_validator("flags")
    @classmethod
    def _flags_are_names(cls, value: list[str]) -> list[str]:
        for flag in value:
            if flag != flag.strip() or not flag.isprintable() or "," in flag or value.count(flag) > 1:
                raise ValueError(f"found the flag {flag!r:.60}, needed each once, on one line, without commas; rename it")
        return value


def names_file(guidelines: str) -> bool:
    """Whether guidelines are the path of a file, not the text itself."""
    return "\n" not in guidelines and guidelines.lower().endswith(GUIDELINE_FILES)


def read_guidelines(guidelines: str) -> str:
    """Return the text of guidelines, which may lie in a file.

    Raises:
        StoreError: The file cannot be read.
    """
    return read_text(Path(guidelines)) if names_file(guidelines) else guidelines


def read_text(path: Path) -> str:
    """Read a file of guidelines.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        return expand_home(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"guidelines: {path}: {reason}; needed a text file in UTF-8; check the path", EXIT_USAGE) from error
