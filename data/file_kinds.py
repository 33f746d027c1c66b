"""What kinds of files hold records: by their names, and by how they begin where that is not what their names say."""

from pathlib import Path

TEXT_FILE = ".txt"
FILE_FORMATS = (".jsonl", ".jsonl.gz", ".json", ".parquet", TEXT_FILE)
OTHER_FILES = (".csv", ".tsv", ".arrow", ".gz", ".zip")  # surely no dataset ids: never looked up on a hub

_BEGINNINGS = {
    b"\x1f\x8b": "gzip data; needed text; give its name the ending .jsonl.gz",
    b"PAR1": "a Parquet file; needed text; give its name the ending .parquet",
    b"PK\x03\x04": "a zip archive; needed text; unpack it",
    b"\xff\xfe": "UTF-16 text; needed UTF-8 text; save the file as UTF-8",
    b"\xfe\xff": "UTF-16 text; needed UTF-8 text; save the file as UTF-8",
}


def find_other_content(path: Path) -> str:
    """Say what a file of text holds whose bytes are of another kind than its name says; nothing where they are text."""
    with path.open("rb") as stream:
        head = stream.read(4)
    return next((found for beginning, found in _BEGINNINGS.items() if head.startswith(beginning)), "")
