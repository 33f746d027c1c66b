"""Source -> rows: a file or dataset becomes a stream of (where, row), and what cannot be read becomes a `Problem`.

`rows.py` knows files and formats, `records.py` knows what a row must hold.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol, cast

from data.directories import find_record_files, find_text_files
from data.file_kinds import BOM, FILE_FORMATS, GZIPPED, OTHER_FILES, TEXT_FILE, find_other_content, spreads_objects, starts_array
from data.schema import DataError, Problem, first_line

MAX_LINE_BYTES = 10_000_000

Row = tuple[str, object]  # where, the decoded value
Report = Callable[[Problem], None]


class SourceLike(Protocol):
    """Where a record set lies: a file, a saved dataset directory, or a Hugging Face dataset id."""

    @property
    def path(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def subset(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def format(self) -> str | None: ...
    @property
    def columns(self) -> Mapping[str, str]: ...


def read_rows(source: SourceLike, wanted: Sequence[str], report: Report, *, whole_texts: bool = False) -> Iterator[Row]:
    """Yield every readable row of a source with its place, and report every unreadable one.

    Args:
        source: What to read.
        wanted: The columns to read from Parquet and datasets: others may hold images or embeddings and are ignored anyway.
        report: Called with each problem; reading goes on where the format allows it.
        whole_texts: A `.txt` file is one row, not a row a line; and a directory of them has one for each, in the order of their paths.

    Raises:
        DataError: The source as a whole cannot be opened.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        _refuse_dataset_options(source)
        return _read_file(path, wanted, report, whole_texts=whole_texts)
    if whole_texts and (files := find_text_files(path)):
        _refuse_dataset_options(source)
        return (row for file in files for row in _read_file(file, wanted, report, whole_texts=True))
    if path.is_dir() and source.subset is None and (files := find_record_files(path, source.split)):
        return (row for file in files for row in _read_file(file, wanted, report, whole_texts=False))
    if path.is_dir() or _looks_like_dataset_id(source.path):
        return _read_dataset(source, path, wanted)
    raise _cannot_read(source.path, "no such file or directory; needed a file, a saved dataset directory or a dataset id; check the path")


def _looks_like_dataset_id(path: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) is not None and not path.endswith(FILE_FORMATS + OTHER_FILES)


def _refuse_dataset_options(source: SourceLike) -> None:
    given = [name for name in ("split", "subset", "revision") if getattr(source, name) is not None]
    if given:
        raise DataError([Problem(source.path, name, "set for a plain file; needed for datasets only; remove it") for name in given])


def _cannot_read(where: str, message: str) -> DataError:
    return DataError([Problem(where, "", message)])


# Files


def _read_file(path: Path, wanted: Sequence[str], report: Report, *, whole_texts: bool) -> Iterator[Row]:
    name = path.name.lower()
    if not name.endswith(FILE_FORMATS):
        raise _cannot_read(str(path), f"found a {path.suffix or 'suffixless'} file; needed {', '.join(FILE_FORMATS)}; convert or rename it")
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(path, wanted)
            return
        if not name.endswith(GZIPPED) and (found := find_other_content(path)):
            raise _cannot_read(str(path), f"found {found}")
        if name.endswith(TEXT_FILE) and whole_texts:
            text = _decode(path.read_bytes().removeprefix(BOM), str(path), report)
            yield from () if text is None else [(str(path), {"text": text})]
        else:
            with gzip.open(path, "rb") if name.endswith(GZIPPED) else path.open("rb") as opened:
                stream = cast(IO[bytes], opened)
                name = name.removesuffix(".gz")
                if not name.endswith(TEXT_FILE) and spreads_objects(stream):
                    needed = "needed one object on each line, or one list of them ([ first); write it so (jq -c . FILE)"
                    raise _cannot_read(f"{path}:1", f"found an object that goes over several lines; {needed}")
                reader = _read_array if starts_array(stream, name) else _read_lines
                if name.endswith(TEXT_FILE):
                    yield from ((where, {"text": text}) for where, text in _read_texts(stream, str(path), report))
                else:
                    yield from reader(stream, str(path), report)
    except (OSError, EOFError, zlib.error) as error:
        raise _cannot_read(str(path), f"cannot be read ({first_line(error)}); needed a whole, readable file; check it") from error


def _read_lines(stream: IO[bytes], name: str, report: Report) -> Iterator[Row]:
    """JSONL: one JSON value per line."""
    decoder, twice = _make_decoder()
    for where, text in _read_texts(stream, name, report):
        try:
            value = decoder.decode(text)
        except (ValueError, RecursionError) as error:
            report(Problem(where, "", _json_message(error, text, "one JSON object on each line")))
            twice.clear()
            continue
        if not _report_twice(where, twice, report):
            yield where, value


def _read_texts(stream: IO[bytes], name: str, report: Report) -> Iterator[tuple[str, str]]:
    """Lines of text; blank ones count but carry nothing. Memory is bounded by the line cap."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            report(Problem(where, "", f"line longer than {MAX_LINE_BYTES:,} bytes; needed shorter ones; split or remove it"))
            _skip_to_next_line(stream)
            continue
        text = _decode(line.removeprefix(BOM), where, report)  # files that were joined have it within, too
        if text is not None and (text := text.rstrip()):
            yield where, text


def _skip_to_next_line(stream: IO[bytes]) -> None:
    while (rest := stream.readline(1_000_000)) and not rest.endswith(b"\n"):
        pass


def _decode(data: bytes, where: str, report: Report) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at column {error.start + 1} is not UTF-8"
        report(Problem(where, "", f"{found}; needed UTF-8 text; save the file as UTF-8"))
        return None


def _read_array(stream: IO[bytes], name: str, report: Report) -> Iterator[Row]:
    """A JSON array, read item by item so that each keeps the line on which it begins."""
    text = _decode(stream.read().removeprefix(BOM), name, lambda problem: report(replace(problem, ends_file=True)))
    if text is None:
        return
    decoder, twice = _make_decoder()
    position, counted, line = _skip_space(text, 0) + 1, 0, 1
    expected = "item"
    while True:
        position = _skip_space(text, position)
        line, counted = line + text.count("\n", counted, position), position
        where, mark = f"{name}:{line}", text[position : position + 1]
        if mark == "]" and expected != "item after ','":
            rest = _skip_space(text, position + 1)
            if rest < len(text):
                report(Problem(where, "", "found text after the end of the array; needed one array; remove the rest", True))
            return
        if expected == "','":
            if mark != ",":
                found = f"found {mark!r} after an item; needed ',' or ']'; correct the array (the rest is unread)"
                report(Problem(where, "", found, ends_file=True))
                return
            position, expected = position + 1, "item after ','"
            continue
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            report(Problem(where, "", _json_message(error, text) + " (the rest is unread)", ends_file=True))
            return
        if not _report_twice(where, twice, report):
            yield where, value
        expected = "','"


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}, which JSON does not have")


_SPACE = re.compile(r"[ \t\r\n]*")


def _make_decoder() -> tuple[json.JSONDecoder, list[str]]:
    """Make a decoder, and the list in which it leaves the keys that stand twice in one object: JSON readers silently take the last."""
    twice: list[str] = []

    def make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(name for name in made if names.count(name) > 1)
        return made

    return json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=make_object), twice


def _report_twice(where: str, twice: list[str], report: Report) -> bool:
    found = bool(twice)
    for name in dict.fromkeys(twice):
        report(Problem(where, name[:80], "found the key twice in one object; needed it once; remove one of the two"))
    twice.clear()
    return found


def _json_message(error: Exception, text: str, needed: str = "one JSON object") -> str:
    if isinstance(error, json.JSONDecodeError):
        if "\0" in text:
            return "found a NUL byte; needed text; remove it"
        return f"not JSON ({error.msg} at column {error.colno}); needed {needed}; correct it"
    if isinstance(error, RecursionError):
        return "nested too deeply; needed one flat JSON object; correct it"
    if "digits" in str(error):  # of which Python names a setting of its own
        return "found a number of thousands of digits; needed an ordinary number or text; replace it"
    return f"{first_line(error)}; needed an ordinary number or text; replace it"


def _read_parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    # Imported here, not at the top: `rlhf --help` must not pay for it. By name: it carries no types.
    pyarrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
        names: list[str] = file.schema_arrow.names
        columns = _choose_columns(names, wanted, str(path))
        if twice := [name for name in columns if names.count(name) > 1]:
            raise _cannot_read(str(path), f"found the column {twice[0]} twice; needed it once; remove one of the two")
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except pyarrow.ArrowException as error:
        raise _cannot_read(str(path), f"not a readable Parquet file ({first_line(error)}); needed a whole one; write it anew") from error


# Hugging Face datasets


def _read_dataset(source: SourceLike, path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    dataset, split = _open_dataset(source, path)
    name = f"{source.path}[{split}]" if split else source.path
    for number, row in enumerate(dataset.select_columns(_choose_columns(dataset.column_names, wanted, name)), start=1):
        yield f"{name}:{number}", row


def _choose_columns(names: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    present = [column for column in wanted if column in names]
    if not present:
        found = f"found columns {', '.join(names)[:300] or 'none'}"
        raise _cannot_read(where, f"{found}; needed some of {', '.join(wanted[:7])}, ...; say by columns: which is which")
    return present


def _open_dataset(source: SourceLike, path: Path) -> tuple[Any, str | None]:
    library: Any = import_module("datasets")  # here, not at the top: it imports torch where there is one
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded: Any = library.load_from_disk(str(path))
        else:
            loaded = library.load_dataset(str(path) if path.is_dir() else source.path, name=source.subset, revision=source.revision)
    except Exception as error:  # the library raises two dozen kinds, each a reason why there is no data
        needed = "needed a saved dataset directory or a dataset id that can be reached; check path, subset and revision"
        raise _cannot_read(source.path, f"cannot be opened ({first_line(error)}); {needed}") from error
    by_split = cast(dict[str, Any], loaded if isinstance(loaded, dict) else {str(loaded.split or ""): loaded})
    if source.split is None and len(by_split) == 1:
        return next(iter(by_split.values())), None
    if source.split not in by_split:
        found = f"found {', '.join(by_split).strip() or 'no named split'}"
        raise DataError([Problem(source.path, "split", f"{found}; needed one of them, not {source.split}; set split")])
    return by_split[source.split], source.split
