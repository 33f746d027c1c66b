"""What was said of a stage beside what it took, and what the next plan makes of that."""

import dataclasses
import json
import socket
from concurrent.futures import ThreadPoolExecutor

from pytest import approx, fixture

from pipeline.cli.options import make_console
from pipeline.cost.machines import GPUS
from pipeline.cost.memory import PhaseMemory, Verdict
from pipeline.cost.setup import Setup
from pipeline.cost.times import Spent
from pipeline.estimates.estimate import Estimate, StageEstimate
from pipeline.estimates.kept import dump_recipe, keep_estimate, make_digest, recall_estimate
from pipeline.estimates.machine import Machine
from pipeline.estimates.past import calibrate_estimate
from pipeline.estimates.taken import ran_here, read_taken
from pipeline.recipe.load import find_recipe, load_recipe
from pipeline.report.costs import tell_spread
from pipeline.report.page.facts import tell_costs
from pipeline.report.spent import compare_cost, print_cost
from stages.tracing.report import Depth, TraceReport

NEED = Depth(layers=2, phases={}, parameters=1, learning=[1], held=1, whole=1, checkpoint=1, output=1)
PPO_PARTS = {"rollout": 10.0, "score": 8.0, "update": 20.0, "held-out answers": 1.0, "held-out scores": 1.0}


@fixture
def recipe():
    return load_recipe(find_recipe("demo"), [], has_files=False)


def say(parts, stage="ppo", machine=None):
    """An estimate of one stage."""
    machine = machine or Machine("cpu", None, 1e10, None)
    spent = [Spent(name, seconds, "") for name, seconds in parts.items()]
    setup = Setup("ddp", 2, 2, on_gpu=machine.gpu is not None)
    phases = [PhaseMemory("update", {"weights": 10**9}, {})]
    made = StageEstimate(stage, NEED, setup, phases, Verdict("fits", 2e9, 1e10), spent, 0)
    return Estimate(machine, 2, [made], {}, [], TraceReport(resident=0, import_s=0.0))


def publish_run(store, publish, recipe, *, seconds, attempts=1, host=None, device="cpu (1 threads)", events=(), **fields):
    """An artifact of PPO, with the run that made it."""
    name = f"ppo-{len(store.refs()):016x}"
    run = store.root / "runs" / name
    run.mkdir(parents=True)
    attempt = {"user": "u", "host": host or socket.gethostname(), "process": 1, "command": "rlhf run", "start": "2026-01-01T00:00:00+00:00"}
    (run / "run.json").write_text(json.dumps({"began": attempts, "attempts": [attempt] * attempts}))
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    rows = [{"step": step, "time/rollout_s": 6.0, "time/score_s": 4.0, "time/update_s": 12.5} for step in (1, 2)]
    files = {
        "model/model.safetensors": name.encode(),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "config.yaml": json.dumps(dump_recipe(recipe)).encode(),
    }
    given = {"duration_s": seconds, "device": device, "world_size": 2, "run_id": name, "metrics": {"peak_memory_bytes": 1.1e9}}
    return publish(store, "ppo", files, **given | fields)


EVENTS = [
    {"event": "machine", "time": 100.0},
    {"event": "progress", "time": 101.0, "phase": "held-out answers of the SFT model"},
    {"event": "progress", "time": 104.0, "phase": "train"},
    {"event": "end", "time": 155.0},
]


def test_what_is_said_is_kept_and_set_beside_what_the_stage_took(store, publish, recipe, capsys):
    keep_estimate(store.root, recipe, say(PPO_PARTS))
    artifact = publish_run(store, publish, recipe, seconds=60.0, events=EVENTS)
    cost = compare_cost(store.root, artifact)
    rows = {row["name"]: (row["planned"], row["took"]) for row in cost["rows"]}
    assert rows["rollout"] == (10, 12) and rows["score"] == (8, 8) and rows["update"] == (20, 25)
    assert rows["held-out answers"] == (2, 3)  # with their scores, which the run does not tell apart
    assert rows["start"] == (None, 60 - 55)
    assert rows["all"] == (40, 60) and rows["peak memory"] == (1e9, 1.1e9)  # of one of two processes
    print_cost(make_console(), cost)
    shown = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["rollout", "10", "s", "12", "s", "1.20"] for line in shown)
    section = tell_costs([artifact], store.root)
    assert section.tables and "ppo@v1" in section.tables[0].html and not section.texts


def test_without_a_plan_a_run_tells_what_it_took_and_a_page_says_so(store, publish, recipe, capsys):
    artifact = publish_run(store, publish, recipe, seconds=60.0)
    cost = compare_cost(store.root, artifact)
    assert cost["planned_utc"] is None and "plan --cost" in cost["notes"][0]
    print_cost(make_console(), cost)
    assert capsys.readouterr().out == ""
    assert "nothing was planned" in tell_costs([artifact], store.root).texts[0]


def test_the_next_plan_of_the_same_recipe_is_corrected_by_what_past_runs_took(store, publish, recipe):
    for seconds in (60.0, 62.0, 300.0):  # the last on a busy machine
        publish_run(store, publish, recipe, seconds=seconds)
    found = calibrate_estimate(say(PPO_PARTS), recipe, store)
    assert found.stages[0].calibration.factor == approx(62 / 40)
    assert found.stages[0].calibration.runs == 3
    assert found.stages[0].seconds == approx(62)
    assert any("1.55 x what was counted, as 3 runs" in line for line in tell_spread(found))


def test_another_recipe_is_corrected_by_what_was_kept_of_those_that_ran(store, publish, recipe):
    longer = load_recipe(find_recipe("demo"), ["ppo.iterations=120"], has_files=False)
    publish_run(store, publish, recipe, seconds=60.0)
    assert calibrate_estimate(say(PPO_PARTS), longer, store).stages[0].calibration is None  # nothing was said of that run
    keep_estimate(store.root, recipe, say({"rollout": 50.0}))
    assert calibrate_estimate(say(PPO_PARTS), longer, store).stages[0].calibration.factor == approx(60 / 50)


def test_a_run_that_was_resumed_or_ran_elsewhere_corrects_nothing(store, publish, recipe):
    publish_run(store, publish, recipe, seconds=60.0, attempts=2)
    publish_run(store, publish, recipe, seconds=60.0, host="elsewhere")
    publish_run(store, publish, recipe, seconds=60.0, device="NVIDIA H100 80GB HBM3")
    assert calibrate_estimate(say(PPO_PARTS), recipe, store).stages[0].calibration is None
    assert not read_taken(store.root, store.get("ppo@v1")).whole
    h100 = calibrate_estimate(say(PPO_PARTS, machine=Machine("h100", GPUS["h100"], 8e10, None)), recipe, store)
    assert h100.stages[0].calibration.factor == approx(60 / 40)


def record_attempts(store, publish, recipe, *attempts):
    """A run with these attempts, and what each published, if anything."""
    name, recorded = f"ppo-{7:016x}", []
    begun = {"user": "u", "process": 1, "command": "rlhf run", "start": "2026-01-01T00:00:00+00:00"}
    for host, outcome in attempts:
        if outcome == "published":
            fields = {"duration_s": 60.0, "device": "cpu", "world_size": 2, "run_id": name}
            files = {"model/m": f"{len(recorded)}".encode(), "config.yaml": json.dumps(dump_recipe(recipe)).encode()}
            ref = publish(store, "ppo", files, **fields).ref
        recorded.append(begun | {"host": host, "outcome": outcome, "ref": ref if outcome == "published" else None})
    run = store.root / "runs" / name
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"began": len(recorded), "attempts": recorded}))
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))


def test_each_run_by_force_of_the_same_inputs_is_whole_and_counts(store, publish, recipe):
    here = socket.gethostname()
    record_attempts(store, publish, recipe, ("elsewhere", "published"), (here, "published"), (here, "killed"), (here, "published"))
    assert [read_taken(store.root, store.get(f"ppo@v{version}")).whole for version in (1, 2, 3)] == [True, True, False]
    assert [ran_here(store.root, store.get(f"ppo@v{version}").manifest, "cpu") for version in (1, 2)] == [False, True]
    assert [bool(read_taken(store.root, store.get(f"ppo@v{version}")).parts) for version in (1, 2, 3)] == [False, False, True]  # the last's
    assert calibrate_estimate(say(PPO_PARTS), recipe, store).stages[0].calibration.runs == 1


def test_what_was_pulled_from_elsewhere_says_nothing_of_this_cpu(store, publish, recipe):
    artifact = publish_run(store, publish, recipe, seconds=600.0)
    for path in (store.root / "runs" / artifact.manifest.run_id).iterdir():
        path.unlink()
    assert calibrate_estimate(say(PPO_PARTS), recipe, store).stages[0].calibration is None
    keep_estimate(store.root, recipe, say(PPO_PARTS))
    assert compare_cost(store.root, artifact)["notes"] == ["planned for cpu, ran on cpu (1 threads) of another host, as far as is known"]
    outside = publish_run(store, publish, recipe, seconds=60.0)
    (store.root / "runs" / outside.manifest.run_id).rename(store.root / "elsewhere")
    forged = outside.manifest.model_copy(update={"run_id": "../elsewhere"})
    assert not ran_here(store.root, forged, "cpu")


def test_damaged_events_and_metrics_are_left_out_of_what_a_stage_took(store, publish, recipe, capsys):
    huge = ["9" * 400, "1e999", "NaN", "-5", '"x"', "[" * 100_000]
    lines = [f'{{"event": "progress", "phase": "held-out answers", "time": {value}}}\n' for value in huge]
    rows = [f'{{"step": 3, "time/rollout_s": {value}}}\n' for value in huge]
    files = {"model/m": b"1", "metrics.jsonl": "".join(rows).encode() + b"\xff\n", "config.yaml": json.dumps(dump_recipe(recipe)).encode()}
    artifact = publish_run(store, publish, recipe, seconds=60.0, events=EVENTS, metrics={"peak_memory_bytes": float("nan")})
    events = store.root / "runs" / artifact.manifest.run_id / "events.jsonl"
    events.write_text(events.read_text() + "".join(lines))
    other = publish(store, "ppo", files, duration_s=60.0, device="cpu", run_id=None)
    keep_estimate(store.root, recipe, say(PPO_PARTS))
    assert read_taken(store.root, artifact).parts["held-out answers"] == 3
    assert read_taken(store.root, artifact).memory is None
    assert "rollout" not in read_taken(store.root, other).parts
    for each in (artifact, other):
        print_cost(make_console(), compare_cost(store.root, each))
    assert "peak memory" in capsys.readouterr().out


def test_gpus_are_told_apart_by_their_names(store, publish, recipe):
    def runs_on(device, name):
        return ran_here(store.root, publish_run(store, publish, recipe, seconds=1.0, device=device).manifest, name)

    assert runs_on("NVIDIA A100-SXM4-80GB", "a100") and not runs_on("NVIDIA A100-SXM4-40GB", "a100")
    assert runs_on("NVIDIA A100-SXM4-40GB", "a100-40") and runs_on("NVIDIA GeForce RTX 4090", "rtx-4090")
    assert runs_on("NVIDIA L4", "l4") and not runs_on("NVIDIA L40S", "l4")


def test_what_a_stage_costs_by_is_what_it_reads_and_not_its_price(recipe):
    def digest(stage, *changes):
        return make_digest(stage, dump_recipe(load_recipe(find_recipe("demo"), list(changes), has_files=False)))

    assert digest("sft") == digest("sft", "ppo.iterations=7", "hardware.price_per_gpu_hour=3", "seed=12")
    assert digest("sft") == digest("sft", "sft.learning_rate=1e-5", "sft.weight_decay=0.1")  # steps that take as long
    assert digest("ppo") == digest("ppo", "ppo.kl_coef=0.1", "ppo.clip_range=0.3") != digest("ppo", "ppo.ppo_epochs=7")
    assert digest("sft") != digest("sft", "sft.epochs=6")
    assert digest("evaluate") != digest("evaluate", "ppo.iterations=7")  # of which models are kept


def test_plans_for_several_gpus_are_kept_beside_one_another(store, publish, recipe):
    a100, h100 = (
        say({"rollout": seconds}, machine=Machine(name, GPUS[name], 8e10, None)) for name, seconds in (("a100", 90.0), ("h100", 30.0))
    )
    keep_estimate(store.root, recipe, h100)
    keep_estimate(store.root, recipe, a100)  # dearer, so the other is rented
    artifact = publish_run(store, publish, recipe, seconds=60.0, device="NVIDIA H100 80GB HBM3")
    cost = compare_cost(store.root, artifact)
    assert cost["notes"] == [] and {row["name"]: row["planned"] for row in cost["rows"]}["rollout"] == 30
    longer = load_recipe(find_recipe("demo"), ["ppo.iterations=120"], has_files=False)
    assert calibrate_estimate(h100, longer, store).stages[0].calibration.factor == approx(60 / 30)
    other = publish_run(store, publish, recipe, seconds=60.0, device="NVIDIA L4")
    assert compare_cost(store.root, other)["notes"][0].startswith("planned for ")


def test_two_plans_of_one_recipe_at_once_are_both_kept_whole(store, recipe):
    def keep(_):
        for _ in range(3):
            keep_estimate(store.root, recipe, say(PPO_PARTS))
            assert recall_estimate(store.root, "ppo", dump_recipe(recipe)).seconds == PPO_PARTS

    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(keep, range(4)))) == 4


def test_a_kept_estimate_that_is_damaged_is_none(store, recipe):
    keep_estimate(store.root, recipe, say(PPO_PARTS))
    assert recall_estimate(store.root, "ppo", dump_recipe(recipe)).seconds == PPO_PARTS
    (path,) = (store.root / "estimates").glob("*.json")
    whole = path.read_text()
    wrong = [whole.replace("20.0", value) for value in ("NaN", "1e999", "-1", "9" * 400, '"x"', "[" * 100_000)]
    for content in ("", "{", "null", *wrong, "\ud800"):
        path.write_text(content, errors="surrogatepass")
        assert recall_estimate(store.root, "ppo", dump_recipe(recipe)) is None
    again = dataclasses.replace(say(PPO_PARTS))
    keep_estimate(store.root, recipe, again)
    assert recall_estimate(store.root, "ppo", dump_recipe(recipe)).processes == 2


def test_a_note_does_not_end_what_a_stage_was_doing(store, publish, recipe):
    lines = [(0, "progress", "held-out answers"), (1, "note", None), (4, "progress", "train"), (5, "end", None)]
    events = [{"event": event, "time": time, **({"phase": phase} if phase else {})} for time, event, phase in lines]
    taken = read_taken(store.root, publish_run(store, publish, recipe, seconds=6.0, events=events))
    assert taken.parts["held-out answers"] == 4
