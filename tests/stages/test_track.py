"""Rows go to trackers: what was written is read back by what the trackers' own tools read."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from stages.lines import to_line
from stages.track import Rows, Sent, send, start_tracker
from stages.track_spec import TrackingSpec

ROWS = [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3)]
# As a stage that was resumed from step 2 logs on, with a figure more in the last row.
LATER = [*ROWS[1:], {"step": 4, "train/loss": 0.25}, {"step": 4, "eval/loss": 0.5, "eval/none": float("nan")}]
EXPECTED = {"train/loss": [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)], "eval/loss": [(4, 0.5)]}


@pytest.fixture
def make_spec(tmp_path):
    def make(tracker):
        return TrackingSpec(
            tracker=tracker,
            project="demo",
            run="ppo-0123456789abcdef",
            config={"stage": "ppo", "ppo.kl_coef": 0.05, "ppo.lora": None},
            directory=tmp_path,
            metrics_path=tmp_path / "metrics.jsonl",
            result_path=tmp_path / "result.json",
            events_path=tmp_path / "events.jsonl",
            state_path=tmp_path / "state.json",
        )

    return make


def send_all(spec, rows):
    """Send rows in one life of the process; what was sent is kept on the disk in between."""
    sent = Sent.model_validate_json(spec.state_path.read_text()) if spec.state_path.exists() else Sent()
    tracker = start_tracker(spec, sent)
    for row in rows:
        send(tracker, row, sent)
    spec.state_path.write_text(sent.model_dump_json())
    tracker.finish()
    return sent


def read_tensorboard(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (directory / "tensorboard" / "demo").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    assert any(run.rglob("hparams.yml"))
    return {name: [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def read_mlflow(directory):
    from mlflow import MlflowClient

    client = MlflowClient((directory / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    (run,) = client.search_runs([experiment.experiment_id])  # resumed, not begun anew
    assert run.data.params["ppo.kl_coef"] == "0.05" and run.info.status == "FINISHED"
    return {name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}


def read_trackio(directory):
    with sqlite3.connect(directory / "trackio" / "demo.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({run for run, _, _ in rows}) == 1
    figures = {}
    for _, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            figures.setdefault(name, []).append((step, value))
    return figures


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("tensorboard", read_tensorboard), ("mlflow", read_mlflow), ("trackio", read_trackio)])
def test_a_resumed_stage_goes_on_in_the_same_run_and_no_step_is_written_twice(name, read, make_spec, tmp_path, monkeypatch):
    pytest.importorskip(name)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "TRACKIO_DIR"):
        monkeypatch.delenv(variable, raising=False)
    if name == "trackio":  # it reads this when it is imported, which happens once in a test process
        monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=False)
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    spec = make_spec(name)
    first = send_all(spec, ROWS)
    assert send_all(spec, LATER).run == first.run
    assert read(tmp_path) == EXPECTED


@pytest.mark.slow
def test_wandb_gets_rows_and_final_figures_offline_from_a_process_of_its_own(make_spec, tmp_path):
    pytest.importorskip("wandb")
    spec = make_spec("wandb")
    spec.metrics_path.write_text("".join(map(to_line, ROWS)))
    spec.result_path.write_text(json.dumps({"metrics": {"eval/greedy/judge_score": 93.5}}))
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-P", "-m", "stages.track", str(tmp_path / "spec.json")]
    done = subprocess.run(command, input="", env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "wandb").rglob("*.wandb")
    content = written.read_bytes()
    assert [text for text in (b"train/loss", b"ppo.kl_coef", b"eval/greedy/judge_score", b"93.5") if text not in content] == []
    assert Sent.model_validate_json(spec.state_path.read_text()).steps == {"train/loss": 3, "eval/greedy/judge_score": 3}


def test_rows_are_read_as_they_come_and_anew_where_the_file_was_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = Rows(path)
    assert rows.read() == []
    path.write_text(to_line(ROWS[0]) + '{"step": 2, "tra')
    assert rows.read() == [ROWS[0]]
    with path.open("a") as stream:
        stream.write('in/loss": 0.5}\nno row\n')
    assert rows.read() == [ROWS[1]]
    draft = tmp_path / "draft"
    draft.write_text(to_line(ROWS[0]))  # as a resumed stage rewinds it
    draft.replace(path)
    assert rows.read() == [ROWS[0]]


def test_of_each_figure_only_later_steps_are_sent():
    class Kept:
        def __init__(self):
            self.logged = []

        def log(self, values, step):
            self.logged.append((step, values))

    tracker, sent = Kept(), Sent()
    for row in [*ROWS, *LATER, {"train/loss": 1.0}]:  # the last has no step
        send(tracker, row, sent)
    assert tracker.logged == [*((step, {"train/loss": 1 / step}) for step in (1, 2, 3, 4)), (4, {"eval/loss": 0.5})]
