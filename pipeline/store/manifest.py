"""The manifest: what an artifact says of itself. An artifact exists if and only if this file parses, names itself and matches sizes.

files -> content_id -> Manifest -> manifest.json, whose first line seals all that follows with its sha256.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import StoreError
from pipeline.store.directory import Directory
from pipeline.store.disk import advise, read_bounded
from stages.blocks import Closed
from stages.result import Interval, StageWarning
from stages.spec import EXIT_VERIFICATION, KEPT_DIR, MERGED_DIR, METRICS_FILE, MODEL_DIR, RESULT_FILE

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
CONFIG_FILE, LOG_FILE, SKIPPED_FILE = "config.yaml", "log.txt", "skipped.jsonl"  # which the pipeline puts beside what a stage leaves
_EVIDENCE = (CONFIG_FILE, LOG_FILE, SKIPPED_FILE, METRICS_FILE, RESULT_FILE)
# 100 files take about 20 kB; what is larger than this was not written by us.
MAX_MANIFEST_BYTES = 8 * 1024 * 1024

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 2048

# Formats that run code when they are opened.
PICKLE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")

_SEAL = re.compile(rb'\{"manifest_sha256": "([0-9a-f]{64})",\n')


def check_file_name(name: str) -> str:
    """Return the relative path of an artifact's file when it is safe and allowed.

    Raises:
        ValueError: it is absolute, leaves the artifact, is reserved, has control characters, or is a pickle.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(f"{name!r}: a relative path without empty parts, `.` or `..` is needed")
    if "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r}: backslashes, control and undecodable characters are refused; rename the file")
    if name.casefold() == MANIFEST_FILE:
        raise ValueError(f"{name!r} is reserved for the store; rename the file")
    if name.lower().endswith(PICKLE_SUFFIXES):
        raise ValueError(f"{name!r}: a pickle can run code when it is opened; save weights as safetensors and leave the rest out")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VersionRef = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}@v[1-9][0-9]{0,8}$")]


class FileEntry(Closed):
    """One file of an artifact."""

    path: Annotated[str, AfterValidator(check_file_name)] = Field(description="Relative to the artifact, with `/`.")
    size: int = Field(ge=0, lt=2**63, description="Bytes.")
    sha256: Sha256


class Parent(Closed):
    """An artifact that this one was made from."""

    ref: VersionRef = Field(description="Kind and version, `sft@v1`.")
    content_id: Sha256

    @property
    def kind(self) -> str:
        return self.ref.partition("@")[0]


class CodeState(Closed):
    """The state of the source code that made an artifact."""

    commit: str | None = Field(None, description="Git commit; null outside a checkout.")
    dirty: bool = Field(False, description="Whether files differed from that commit.")


class Imported(Closed):
    """Where an artifact came from that no stage of this store made."""

    path: str = Field(description="The directory that was imported.")
    by: str = Field(description="Who imported it.")
    at: str = Field(description="ISO 8601, UTC.")
    ref: str | None = Field(default=None, description="Its name in the store that it came from, where it had a manifest.")
    content_id: Sha256 | None = Field(default=None, description="Its content id there.")
    created_utc: str | None = Field(default=None, description="When it was published there.")


class ManifestFields(Closed):
    """What the publisher knows of an artifact; the store adds the rest."""

    parents: list[Parent] = Field(default_factory=list[Parent])
    data: dict[str, str] = Field(default_factory=dict, description="Record set -> content fingerprint.")
    cache_key: str | None = Field(None, description="Hash of all that decides the content; None is never reused.")
    config: dict[str, Any] = Field(default_factory=dict, description="The resolved configuration.")
    seed: int | None = None
    code: CodeState = Field(default_factory=lambda: CodeState(commit=None, dirty=False))
    packages: dict[str, str] = Field(default_factory=dict, description="Package -> version.")
    device: str | None = None
    precision: str | None = Field(None, description="What was computed in: float32 or bfloat16; null in artifacts of earlier versions.")
    world_size: int = Field(1, gt=0, description="Processes of the stage.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Final figures.")
    intervals: dict[str, Interval] = Field(
        default_factory=dict, description="Of held-out figures, where they are known; not written where none is."
    )
    facts: dict[str, Any] = Field(default_factory=dict, description="Hand-off facts that the next stage must find unchanged.")
    counts: dict[str, int] = Field(default_factory=dict, description="Records read, used, cut and dropped.")
    warnings: list[StageWarning] = Field(
        default_factory=list[StageWarning], description="What its figures are known to mean; not written where there is none."
    )
    notes: list[str] = Field(default_factory=list[str], description="What else the stage told; not written where there is nothing.")
    duration_s: float | None = Field(None, ge=0, allow_inf_nan=False, description="Seconds of the stage run, by the monotonic clock.")
    run_id: str | None = Field(None, description="Run that made it, a directory under `runs/`.")
    imported: Imported | None = Field(default=None, description="Where it came from; not written where a stage made it.")


class Manifest(ManifestFields):
    """All that an artifact says of itself."""

    # NaN and infinity are written as strings, so the file stays JSON and a degenerate metric does not lose a finished training.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: str
    version: int = Field(gt=0)
    content_id: Sha256
    created_utc: str = Field(description="ISO 8601; for people, never for order.")
    files: list[FileEntry] = Field(min_length=1)

    @field_validator("files")
    @classmethod
    def _paths_differ(cls, files: list[FileEntry]) -> list[FileEntry]:
        if len({entry.path for entry in files}) != len(files):
            raise ValueError("a path stands twice")
        return files

    @property
    def ref(self) -> str:
        """Its name in its store: kind and version."""
        return f"{self.kind}@v{self.version}"


def check_layout(files: Iterable[FileEntry]) -> None:
    """Refuse files that no directory can hold together.

    Raises:
        ValueError: a name is too long, or a path is a file and a directory.
    """
    paths = {entry.path for entry in files}
    for path in sorted(paths):
        if any(len(part.encode()) > MAX_NAME_BYTES for part in path.split("/")) or len(path.encode()) > MAX_PATH_BYTES:
            raise ValueError(f"{path[:80]!r}: a name of more than {MAX_NAME_BYTES} bytes, or a path of more than {MAX_PATH_BYTES}")
        if above := paths.intersection(str(parent) for parent in PurePosixPath(path).parents):
            raise ValueError(f"{min(above)[:80]!r} is a file and a directory")


def compute_content_id(files: Iterable[FileEntry]) -> str:
    """Hash an artifact's content: equal bytes under equal names give an equal id, whatever the time or host.

    Where the artifact has a model, only `model/`, `merged/` and `kept/` count. Else all but the evidence of how it was run: configuration,
    log, bad lines that were skipped (which name paths), metrics and result (times, memory).
    """
    entries = sorted(files, key=lambda entry: entry.path)
    payload = [entry for entry in entries if PurePosixPath(entry.path).parts[0] in (MODEL_DIR, MERGED_DIR, KEPT_DIR)]
    if not any(entry.path.startswith(f"{MODEL_DIR}/") for entry in payload):
        payload = [entry for entry in entries if entry.path not in _EVIDENCE] or entries
    lines = "".join(f"{entry.sha256} {entry.size} {entry.path}\n" for entry in payload)
    return hashlib.sha256(lines.encode()).hexdigest()


def render_manifest(manifest: Manifest) -> bytes:
    """Write a manifest as JSON whose first line holds the sha256 of the rest, so that no later change goes unseen."""
    optional = {"imported": manifest.imported, "intervals": manifest.intervals, "warnings": manifest.warnings, "notes": manifest.notes}
    absent = {name for name, value in optional.items() if not value}  # so that earlier versions read it
    body = manifest.model_dump_json(indent=1, exclude=absent).encode().removeprefix(b"{\n") + b"\n"
    return b'{"manifest_sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body


def parse_sealed(content: bytes) -> tuple[Manifest, str]:
    """Read a manifest, check its seal, and return both: the seal stands for all that the manifest says.

    Raises:
        ValueError: it is too large, altered, or does not parse.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise ValueError(f"{len(content)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    seal = _SEAL.match(content)
    body = content[seal.end() :] if seal else b""
    if seal is None or hashlib.sha256(body).hexdigest() != seal[1].decode():
        raise ValueError("its first line does not hold the sha256 of the rest, so it was altered after publishing")
    return Manifest.model_validate_json(b"{" + body), seal[1].decode()


def read_sealed_manifest(directory: Directory) -> tuple[Manifest, str]:
    """Read and check the manifest of an artifact's directory, and its seal; its files are not looked at.

    Raises:
        StoreError: it is missing, too large, altered, or does not parse (exit 3).
    """
    path = directory.path / MANIFEST_FILE
    try:
        return parse_sealed(read_bounded(MANIFEST_FILE, MAX_MANIFEST_BYTES, dir_fd=directory.fd))
    except ValidationError as error:
        raise StoreError(f"{path}: {_first_problem(error)}", EXIT_VERIFICATION) from error
    except (OSError, ValueError) as error:
        needed = "an intact manifest is needed; restore the artifact or remove it"
        said = f"{error.strerror}; {advise(error, needed)}" if isinstance(error, OSError) else f"{error}; {needed}"
        raise StoreError(f"{path}: {said}", EXIT_VERIFICATION) from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    newer = first["loc"] == ("schema_version",) or first["type"] == "extra_forbidden"
    todo = "update this package, as a newer one wrote it" if newer else "restore the artifact or remove it"
    return f"{place}: {first['msg']}; a manifest of schema version {SCHEMA_VERSION} is needed; {todo}"
