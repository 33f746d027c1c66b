"""The bench's own parts: the line protocol around a real update of a tiny model, the floor, the tables."""

import pytest

from tests.bench.floor import Product, compute_floor_s, list_products, list_shapes
from tests.bench.protocol import Worker, take_turns
from tests.bench.sections import describe_work, make_ppo_work
from tests.bench.sizes import SIZES
from tests.bench.store import measure_listing, measure_publish
from tests.bench.table import describe_machine, format_spread, format_table, write_report

WORK = make_ppo_work("tiny", "half", quick=True) | {"ppo_epochs": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_worker_answers_each_go_with_one_update_and_the_report_shows_it(tmp_path):
    worker = Worker("ppo_worker", {"ppo": WORK, "precision": "float32", "compile": False}, threads=1)
    try:
        turns = take_turns({"ours": worker}, repeats=1)["ours"]
    finally:
        worker.close()
    assert len(turns) == 1
    phases = turns[0]["phases"]
    assert sum(phases[phase]["wall_s"] for phase in ("rollout", "score", "update")) == pytest.approx(phases["total"]["wall_s"])
    assert 8 <= turns[0]["tokens"]["response"] <= 8 * 32
    assert turns[0]["optimizer_steps"] == 2
    assert 0 < turns[0]["net_mb"] < turns[0]["peak_mb"]

    rate = {"precision": "float32", "per_wall_s": 1e9, "per_cpu_s": 1e9}
    rates = [{"shape": list(shape), **rate} for shape in list_shapes(list_products(**describe_work(WORK)))]
    labels = {"size": "tiny", "answers": "half", "precision": "float32"}
    case = {"labels": labels, "work": WORK, "facts": worker.facts, "rates": rates, "engines": {"trl": turns, "ours": turns}}
    write_report(tmp_path / "some", describe_machine(threads=1, repeats=1), {"ppo": [case]})
    text = (tmp_path / "some.md").read_text()
    assert text.count("| tiny | half    | float32   |") == 4 + 2  # phases, and the memory of two engines
    assert f"torch {worker.facts['torch']}" in text
    assert (tmp_path / "some.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_worker_that_fails_tells_why():
    with pytest.raises(RuntimeError, match=r"(?s)ended with exit code 1.*KeyError: 'shapes'"):
        Worker("floor_worker", {"no": "shapes"}, threads=1)


def test_a_size_has_as_many_weights_as_its_name_says():
    assert SIZES["small"].parameters == pytest.approx(6.9e6, rel=0.02)
    assert SIZES["big"].parameters == pytest.approx(34e6, rel=0.02)


def test_the_floor_by_hand():
    assert Product(rows=3, inputs=4, outputs=5, count=2).flops == 2 * 3 * 4 * 5 * 2
    products = list_products("tiny", num_prompts=2, prompt_tokens=10, response_tokens=8, max_new_tokens=4, ppo_epochs=3)
    layers = 2 * 2 * (4 * 32 * 32 + 3 * 32 * 64)  # FLOPs a token: 2 layers
    head = 2 * 32 * 128
    flops = {phase: sum(product.flops for product in listed) for phase, listed in products.items()}
    assert flops["rollout"] == 10 * layers + 2 * head + 8 * (layers + head)
    assert flops["score"] == 4 * 18 * layers + 2 * 8 * head
    assert flops["update"] == 3 * 3 * (2 * 18 * layers + 8 * head)
    seconds = compute_floor_s(products, dict.fromkeys(list_shapes(products), 1000000.0))
    assert seconds["total"] == pytest.approx(sum(flops.values()) / 1e6)


def test_a_table_by_hand():
    assert format_table(["a", "bb"], [["1", "2"]]) == "| a | bb |\n|---|----|\n| 1 | 2  |"
    assert format_spread([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"


@pytest.mark.slow
def test_the_store_is_measured_on_artifacts_that_verify(tmp_path):
    listing = measure_listing(tmp_path / "many", 4, repeats=1)
    assert [line.split()[:2] for line in listing[1:]] == [["rlhf", "ls"], ["rlhf", "ls"], ["rlhf", "plan"]]
    publish = measure_publish(tmp_path / "large", 2, repeats=1)
    assert "over fsync and sha256" in publish[1] and float(publish[2].split()[1]) > 0
