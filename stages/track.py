"""Rows of metrics.jsonl -> a tracker (TensorBoard, Trackio, MLflow, Weights & Biases), in a process beside the stage's.

    python -P -m stages.track TRACKING.json

Follows the file until its standard input ends, sends what came last and the stage's final figures, and ends. What the tracker does, or
fails to do, touches no process that trains. The trackers are accelerate's.
"""

import json
import math
import os
import select
import sys
import traceback
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from pydantic import BaseModel, Field

from stages.events import append_event
from stages.lines import read_figures, read_line
from stages.process.output import redact_streams
from stages.spec import EXIT_FAILED, EXIT_OK
from stages.track_spec import TrackingSpec

_POLL_S = 1.0


class Sent(BaseModel):
    """What a tracker has, kept beside the run: a stage that is resumed goes on where it was, and no step is sent twice."""

    run: str = Field(default_factory=lambda: uuid.uuid4().hex[:8], description="Ends the name of the tracker's run.")
    mlflow_run: str | None = Field(None, description="MLflow's own name of it.")
    begun: bool = Field(False, description="Whether the configuration was sent.")
    steps: dict[str, int] = Field(default_factory=dict, description="Figure -> the last step that was sent.")


class Rows:
    """Reads the rows that are appended; from the beginning again where a resumed stage wrote the file anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    def read(self) -> list[dict[str, float]]:
        """Return the whole rows since the last call."""
        try:
            with self._path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                stream.seek(self._offset)
                whole, newline, _ = stream.read().rpartition(b"\n")
        except OSError:  # not there yet, or not any more
            return []
        self._offset += len(whole) + len(newline)
        rows: list[dict[str, float]] = []
        for line in whole.splitlines():
            with suppress(ValueError):
                rows.append(read_figures(read_line(line)))
        return rows


def main() -> int:
    """Follow one run."""
    redact_streams()
    spec = TrackingSpec.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        follow(spec)
    except (Exception, SystemExit) as error:  # whatever a library raises, or ends its process with
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        message = f"tracking: {spec.tracker} failed ({said}) and gets no more rows; the stage goes on, and metrics.jsonl has all"
        append_event(spec.events_path, "note", message=message)
        return EXIT_FAILED
    return EXIT_OK


def follow(spec: TrackingSpec) -> None:
    """Send rows until standard input ends."""
    sent = _read_sent(spec.state_path)
    tracker = start_tracker(spec, sent)
    rows = Rows(spec.metrics_path)
    ended = False
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], _POLL_S)[0]) and not os.read(sys.stdin.fileno(), 1024)
        for row in rows.read():
            send(tracker, row, sent)
        _write_sent(spec.state_path, sent)
    with suppress(OSError, ValueError):  # a stage that failed leaves none
        figures = read_figures(json.loads(spec.result_path.read_text(encoding="utf-8"))["metrics"])
        send(tracker, {**figures, "step": max(sent.steps.values(), default=0)}, sent)
    _write_sent(spec.state_path, sent)
    tracker.finish()


def start_tracker(spec: TrackingSpec, sent: Sent) -> GeneralTracker:
    """Begin the tracker's run, or go on with it.

    Args:
        spec: Which tracker, and where.
        sent: What it has; is told the run's own name.
    """
    name = f"{spec.run}-{sent.run}"
    directory = spec.directory / spec.tracker
    directory.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any]
    if spec.tracker == "tensorboard":
        arguments = {"run_name": name, "logging_dir": str(directory / spec.project)}
    elif spec.tracker == "mlflow":
        os.environ.setdefault("MLFLOW_TRACKING_URI", directory.as_uri())
        # MLflow has put plain files into maintenance; an address of a server or of a database goes before them.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        arguments = {"experiment_name": spec.project, "run_name": name, "run_id": sent.mlflow_run}
    elif spec.tracker == "wandb":
        arguments = {"run_name": spec.project, "name": name, "id": name, "resume": "allow", "dir": str(directory)}
    else:
        os.environ.setdefault("TRACKIO_DIR", str(directory))
        quiet = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}  # of this process, which trains nothing
        arguments = {"run_name": spec.project, "name": name, "resume": "allow", **quiet}
    PartialState(cpu=True)  # which accelerate's loggers ask
    tracker: Any = LOGGER_TYPE_TO_CLASS[spec.tracker](**arguments)
    tracker.start()
    if spec.tracker == "mlflow":
        sent.mlflow_run = tracker.active_run.info.run_id
    if not sent.begun:
        tracker.store_init_configuration(spec.config)
        sent.begun = True
    _write_sent(spec.state_path, sent)
    return tracker


def send(tracker: GeneralTracker, row: dict[str, float], sent: Sent) -> None:
    """Send what is new of a row: of each figure, steps after the last one that was sent. What is no finite number is left out."""
    if not math.isfinite(row.get("step", math.nan)):
        return
    step = int(row["step"])
    new = {name: value for name, value in row.items() if name != "step" and math.isfinite(value) and step > sent.steps.get(name, -1)}
    if new:
        tracker.log(new, step=step)
        sent.steps |= dict.fromkeys(new, step)


def _read_sent(path: Path) -> Sent:
    with suppress(OSError, ValueError):
        return Sent.model_validate_json(path.read_text(encoding="utf-8"))
    return Sent.model_validate({})


def _write_sent(path: Path, sent: Sent) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(sent.model_dump_json(), encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
