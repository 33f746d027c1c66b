"""Notes and warnings of a stage are kept: told once, over attempts too, in its events and its result."""

import json

from stages.process.context import StageContext
from stages.process.runtime import leave_result
from stages.result import StageResult
from stages.warnings.told import read_told
from tests.stages.warnings.histories import iterations


def begin(spec):
    for directory in (spec.output_dir, spec.checkpoint_dir):
        directory.mkdir(exist_ok=True)
    return StageContext(spec)


def log(context, rows):
    for row in rows:
        context.write_metrics(int(row["step"]), {name: value for name, value in row.items() if name != "step"})


def test_a_warning_is_told_once_over_a_resume_and_stands_in_the_result(make_stage, base_model_dir, reward_model_dir, capsys):
    stage = make_stage("ppo", models={"sft": base_model_dir, "rm": reward_model_dir})
    rows = iterations(14, kl=20.0)
    first = begin(stage.spec)
    first.note("a note")
    first.warn("lost", "a tenth is lost")
    log(first, rows[:12])
    again = begin(stage.spec)  # the process was killed, and starts again from iteration 8
    again.note("a note")
    again.warn("lost", "a tenth is lost")
    again.rewind_metrics(8)
    log(again, rows[8:])
    leave_result(again, StageResult(metrics={}, counts={}, world_size=1, device="cpu", precision="float32"))

    told = capsys.readouterr().err
    assert told.count("warning: a tenth is lost") == 1 and told.count("warning: KL to the SFT model is 20 nats") == 1
    warnings = [event for event in stage.events() if event["event"] == "warning"]
    assert [(event["name"], event["first_step"]) for event in warnings] == [("lost", None), ("kl", 10)]
    assert [warning.name for warning in read_told(stage.spec.events_path).warnings] == ["lost", "kl"]
    result = stage.result
    assert result.notes == ["a note"]
    assert [(warning.name, warning.first_step, warning.last_step) for warning in result.warnings] == [("lost", None, None), ("kl", 10, 14)]


def test_damaged_and_foreign_lines_of_events_say_nothing(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [{"event": "note", "message": "seen"}, {"event": "warning", "name": 7}, {"event": "warning", "name": "kl", "message": "far"}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n"note"\n{"event": "note", "mess')
    told = read_told(path)
    assert told.notes == ["seen"] and [warning.message for warning in told.warnings] == ["far"]
    assert read_told(tmp_path / "none.jsonl").notes == []
