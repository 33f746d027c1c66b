"""What kinds of files hold records: by their names, and by how they begin where that is not what their names say."""

from pathlib import Path
from typing import IO

BOM = b"\xef\xbb\xbf"
TEXT_FILE = ".txt"
GZIPPED = (".jsonl.gz", ".ndjson.gz", ".json.gz")
FILE_FORMATS = (".jsonl", ".jsonl.gz", ".json", ".parquet", TEXT_FILE, ".json.gz", ".ndjson", ".ndjson.gz")
OTHER_FILES = (".csv", ".tsv", ".arrow", ".gz", ".zip", ".zst", ".xz", ".bz2", ".tar", ".xlsx")  # no dataset ids: never looked up on a hub

_BEGINNINGS = {
    b"\x1f\x8b": "gzip data; needed text; give its name the ending .jsonl.gz",
    b"PAR1": "a Parquet file; needed text; give its name the ending .parquet",
    b"PK\x03\x04": "a zip archive; needed text; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd data; needed text; unpack it (zstd -d)",
    b"\xfd7zXZ": "xz data; needed text; unpack it (xz -d)",
    b"BZh": "bzip2 data; needed text; unpack it (bzip2 -d)",
    b"ARROW1": "an Arrow file; needed text; write it as Parquet or JSONL",
    b"version https://git-lfs": "a pointer to the file, which git-lfs has not fetched; needed the file itself; run git lfs pull",
    b"<!DOCTYPE": "a web page; needed records; fetch the file itself",
    b"<html": "a web page; needed records; fetch the file itself",
    b"\xff\xfe": "UTF-16 text; needed UTF-8 text; save the file as UTF-8",
    b"\xfe\xff": "UTF-16 text; needed UTF-8 text; save the file as UTF-8",
}


def find_other_content(path: Path) -> str:
    """Say what a file of text holds whose bytes are of another kind than its name says; nothing where they are text."""
    with path.open("rb") as stream:
        head = stream.read(32)
    return next((found for beginning, found in _BEGINNINGS.items() if head.startswith(beginning)), "")


def starts_array(stream: IO[bytes], name: str) -> bool:
    """Whether a file holds one JSON array, whatever its name; a line may be a list too, but a whole one."""
    head = _read_head(stream).lstrip()
    first, more, _ = head.partition(b"\n")
    return head.startswith(b"[") and (name.endswith(".json") or bool(more and first.rstrip().endswith((b"[", b","))))


def spreads_objects(stream: IO[bytes]) -> bool:
    """Whether a file begins with an object that goes over several lines, as `json.dump(indent=2)` writes it: each would be a bad line."""
    first, _, rest = _read_head(stream).lstrip().partition(b"\n")
    return first.rstrip() == b"{" and rest.lstrip().startswith(b'"')


def _read_head(stream: IO[bytes]) -> bytes:
    head = stream.read(4096).removeprefix(BOM)
    stream.seek(0)
    return head
