"""A directory of files -> those that hold the records of a split, in the order of their paths.

They are read as a file alone is, each line under its own name: the library of datasets makes one table of them, in which a key that
stands twice is its last, a bad line has no number, and a field that one record lacks is null in all.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data.file_kinds import FILE_FORMATS, OTHER_FILES, TEXT_FILE
from data.schema import DataError, Problem

_SAVED = ("state.json", "dataset_dict.json")
_CARD = "README.md"  # may say which files belong to which split
# As the library of datasets reads names: a word of these between signs, in the file's name or a directory's.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def find_text_files(directory: Path) -> list[Path]:
    """List the `.txt` files of a directory, at any depth; none where it is a saved dataset.

    Raises:
        DataError: There are files of other formats beside them.
    """
    files = _list_files(directory)
    if any(path.name in _SAVED for path in files):
        return []
    texts = [path for path in files if path.name.lower().endswith(TEXT_FILE)]
    others = [path for path in files if path.name.lower().endswith(FILE_FORMATS) and path not in texts]
    if texts and others:
        found = f"found {len(texts)} {TEXT_FILE} files and {others[0].relative_to(directory)}"
        raise DataError([Problem(str(directory), "", f"{found}; needed files of one format; move the others away")])
    return texts


def find_record_files(directory: Path, split: str | None) -> list[Path]:
    """List the files of a directory that hold the records of a split, at any depth, where their names leave no doubt of it.

    Returns:
        None of them where the library of datasets knows better: of a saved dataset, of one with a card that names its files, of files of
        several formats or of formats that we do not read, and where the split is not said or there is none of its name.
    """
    files = _list_files(directory)
    formats = {next((ending for ending in FILE_FORMATS if path.name.lower().endswith(ending)), "") for path in files} - {""}
    others = any(path.name.lower().endswith(OTHER_FILES) and not path.name.lower().endswith(FILE_FORMATS) for path in files)
    if any(path.name in _SAVED for path in files) or others or len(formats) != 1 or _names_files(directory / _CARD):
        return []
    records = [path for path in files if path.name.lower().endswith(tuple(formats))]
    by_split: dict[str, list[Path]] = {}
    for path in records:
        by_split.setdefault(next(_find_splits(path.relative_to(directory)), ""), []).append(path)
    if len(by_split) > 1 and "" in by_split:
        return []
    if "" in by_split:
        return records if split in (None, "train") else []
    return records if len(by_split) == 1 and split is None else by_split.get(split or "", [])


def _list_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))


def _names_files(card: Path) -> bool:
    try:
        return "configs:" in card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _find_splits(path: Path) -> Iterator[str]:
    words = re.split(r"[^a-z]+", str(path).lower())
    return (_SPLITS[word] for word in words if word in _SPLITS)
