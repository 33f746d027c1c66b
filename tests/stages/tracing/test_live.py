"""Bytes that live and operations that are made, counted of code that runs, on fake tensors and on real ones."""

from contextlib import nullcontext

import torch
from pytest import mark

from stages.internals import fakes, is_fake
from stages.tracing.live import Live


def test_a_storage_counts_once_for_as_long_as_it_lives():
    live = Live()
    with live:
        first = torch.ones(1000)
        view = first[:500].view(5, 100)
        second = first + 1
        assert live.now == 8000
        del first
        assert live.now == 8000  # the view holds it
        del view
        assert live.now == 4000
    assert live.peak == 8000
    assert second.sum() == 2000


def test_operations_of_a_product_are_counted():
    live = Live()
    with live:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert live.flops == 2 * 3 * 5 * 7


@mark.parametrize("mode", [nullcontext, fakes])
def test_products_of_experts_are_counted_in_any_precision(mode):
    live = Live()
    with mode(), live:
        tokens, experts = torch.ones(6, 8, requires_grad=True), torch.ones(2, 8, 16, requires_grad=True)
        out = torch.nn.functional.grouped_mm(tokens, experts, offs=torch.tensor([2, 6], dtype=torch.int32))
        assert out.shape == (6, 16) and live.flops == 2 * 6 * 8 * 16  # each token meets one expert of two
        out.square().sum().backward()
        assert (tokens.grad.shape, experts.grad.shape) == ((6, 8), (2, 8, 16))
    assert live.flops == 3 * 2 * 6 * 8 * 16


def test_whole_numbers_stay_readable_among_fake_tensors():
    with fakes(), Live():
        lengths = torch.tensor([3, 1, 2])
        states = torch.zeros(6, 4)
        assert lengths.cumsum(0).tolist() == [3, 4, 6]
        assert states[lengths.repeat_interleave(lengths) > 1].shape == (5, 4)


def test_what_is_too_large_for_a_mask_holds_its_bytes_and_is_not_computed():
    rows, columns = 2**13, 2**10
    with fakes(), Live() as live:
        small, large = (torch.zeros(count, 1, dtype=torch.long) == torch.arange(columns) for count in (2, rows))
        assert (is_fake(small), is_fake(large)) == (False, True)
        assert small.sum() == 2
        before, numbers = live.now, large.float()
        assert is_fake(numbers) and live.now - before == rows * columns * torch.float32.itemsize
        assert large.untyped_storage().nbytes() == rows * columns
