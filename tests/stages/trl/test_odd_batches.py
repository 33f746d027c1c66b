"""Any micro-batch size and any number of processes leave the same weights, where the records divide by neither of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.blocks import HardwareSettings
from stages.models.policy import load_policy
from stages.trl.batches import count_unrepeated
from stages.trl.rm import collate_comparisons, keep_comparisons, weigh_comparisons

DRIVER = Path(__file__).with_name("odd_batches_driver.py")
ROOT = DRIVER.parents[3]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, make_stage_in, plain_hardware, base_model_dir, warm_start):
    """({(stage, records, batch size, micro-batch size, processes): (weights, held-out figures, steps)}, shares of two processes)."""
    directory = tmp_path_factory.mktemp("odd")
    spec = make_stage_in(directory, "sft", hardware=plain_hardware.model_copy(update={"attention": "auto"}), batch_size=24)
    spec.spec.checkpoint_dir.mkdir()
    found, shares = {}, {}
    for count in (1, 2, 3):
        output = directory / f"{count}.pt"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(DRIVER)]
        command = [*torchrun, str(spec.spec_path), str(base_model_dir), str(output)]
        process = subprocess.run(command, cwd=ROOT, env=warm_start(), capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, (process.stdout + process.stderr)[-3000:]
        results, seen = torch.load(output)
        found, shares = found | {(*key, count): value for key, value in results.items()}, shares | seen
    return found, shares


@pytest.fixture(scope="module")
def results(ran):
    return ran[0]


@pytest.fixture(scope="module")
def shares(ran):
    """{micro-batches of a step: {stage: (tokens of each step's ranks, meetings)}}."""
    return ran[1]


def groups_of(results):
    """{(stage, records, batch size): [(micro-batch size, processes, result), ...]}, a single process first."""
    groups = {}
    for (stage, records, batch_size, micro_batch_size, count), result in results.items():
        groups.setdefault((stage, records, batch_size), []).append((micro_batch_size, count, result))
    return groups


@pytest.mark.slow
def test_any_micro_batch_size_and_number_of_processes_leave_the_same_weights(results, base_model_dir):
    before = dict(load_policy(str(base_model_dir), HardwareSettings(device="cpu", precision="float32")).named_parameters())
    for group, runs in groups_of(results).items():
        _, _, (expected, _, steps) = runs[0]
        assert len(runs) > 1
        assert steps == (4 if group[1:] == (7, 6) else 2), group
        assert max((expected[name] - before[name]).abs().max() for name in expected.keys() & before.keys()) > 1e-3, "nothing was learnt"
        for micro_batch_size, count, (weights, _, _) in runs[1:]:
            furthest = max((weights[name] - expected[name]).abs().max().item() for name in expected)
            assert furthest < 5e-6, f"{group}: micro-batches of {micro_batch_size} on {count} processes are {furthest} away"


@pytest.mark.slow
def test_held_out_figures_count_every_record_once(results):
    for group, runs in groups_of(results).items():
        _, _, (_, expected, _) = runs[0]
        assert len(expected) == 1, "after the first epoch; the last evaluation is the stage's own"
        for micro_batch_size, count, (_, figures, _) in runs[1:]:
            for found, wanted in zip(figures, expected, strict=True):
                assert found == pytest.approx(wanted, abs=1e-4), f"{group}: micro-batches of {micro_batch_size} on {count} processes"


@pytest.mark.slow
def test_both_processes_get_as_many_tokens_of_each_step(shares):
    for steps, by_stage in shares.items():
        for stage, (tokens_SW, _) in by_stage.items():
            assert len(tokens_SW) == 2
            for first, second in tokens_SW:
                assert abs(first - second) <= 0.05 * (first + second) / 2, (steps, stage)


@pytest.mark.slow
def test_processes_add_their_gradients_up_once_in_a_step_of_any_number_of_micro_batches(shares):
    for stage in ("sft", "rm"):
        assert shares[1][stage][1] == shares[4][stage][1] > 0, stage


def test_every_record_of_an_epoch_counts_once():
    """Against accelerate's own sharding: what it gives out, and which of it is not new."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    for num_records in range(1, 14):
        for size in (1, 2, 3, 4):
            for num_ranks in (2, 3, 4):
                seen = []
                for rank in range(num_ranks):
                    *full, last = list(BatchSamplerShard(BatchSampler(range(num_records), size, drop_last=False), num_ranks, rank))
                    seen += [record for batch in full for record in batch]
                    seen += last[: count_unrepeated(num_records, size, rank, num_ranks)]
                assert sorted(seen) == list(range(num_records)), (num_records, size, num_ranks)


def test_a_comparison_that_came_before_has_no_pair_and_no_weight():
    items = [
        {"prompt_ids": [5], "responses": [[6], [7, 8]], "ranks": [1, 2]},
        {"prompt_ids": [9], "responses": [[6], [7]], "ranks": [2, 1]},
    ]
    batch = collate_comparisons(items)
    assert [weigh_comparisons(keep_comparisons(batch, kept)).item() for kept in (2, 1, 0)] == [2, 1, 0]
    assert torch.equal(keep_comparisons(batch, 1)["ranks"], torch.tensor([1, 2, 1, 1]))
