"""What a page is made of: sections of sentences, pictures with their tables, tables, and answers side by side. Plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from pipeline.report.markup import table
from pipeline.report.verdict import News


@dataclass(frozen=True)
class Picture:
    """A picture, the same as a table, and a remark on it."""

    title: str
    svg: Markup
    table: Markup
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; folded away under its caption where it is only for those who look closer."""

    caption: str
    head: Sequence[str]
    rows: Iterable[Iterable[str]]
    folded: bool = False

    @property
    def html(self) -> Markup:
        """The table as HTML, every text escaped."""
        return table(self.caption, self.head, self.rows)


@dataclass(frozen=True)
class Said:
    """One answer, with its figures in words."""

    model: str
    response: str
    figures: tuple[str, ...] = ()
    cut: int = 0  # characters that are not shown


@dataclass(frozen=True)
class Case:
    """A prompt, and what each model said to it."""

    prompt: str
    cut: int  # characters of the prompt that are not shown
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Group:
    """Cases that were chosen for one reason."""

    title: str
    note: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; `warnings` are told before all else."""

    id: str
    title: str
    texts: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    groups: Sequence[Group] = ()
    more: Sequence[Table] = ()  # after the pictures


@dataclass(frozen=True)
class Banner:
    """A verdict as it stands on top of the page."""

    name: str
    sentence: str
    news: News


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    subtitle: str
    banners: Sequence[Banner]
    sections: Sequence[Section]
    missing: Sequence[str] = field(default_factory=tuple[str])
