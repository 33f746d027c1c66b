"""What the fast paths of a GPU make and cost: attention over spans, waits, casts, memory of the cache, float32 and TF32."""

import copy
import tempfile
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.models import attention
from stages.models.attention import CachedRows, attend
from stages.models.packing import pack
from stages.models.policy import load_policy
from stages.models.precision import autocast
from stages.process.gpu import prepare_gpu
from stages.responses.generation import generate_responses
from stages.responses.narrow import narrow
from tests.bench.load_memory import watch_private
from tests.bench.our_models import open_policy
from tests.bench.sizes import SIZES
from tests.bench.workload import EOS, PPOWork, make_plain_policy, make_prompts
from tests.gpu.parity import prepare_ppo
from tests.gpu.place import Figure, Place, at_most, attempt, make_hardware, measure_s, relative_error

_ROUNDING = 2.0**-7  # a step of bfloat16, relative


def measure(place: Place) -> Iterator[Figure]:
    """Measure all of it."""
    for heads, key_heads, size in place.choose([(16, 16, 64), (32, 8, 128), (8, 1, 256)], [(4, 2, 8)]):
        for kind, documents, parents in (("documents", *_lay_documents(place)), ("K answers", *_lay_answers(place))):
            case = f"{kind} {heads}/{key_heads} heads of {size}"
            yield from attempt(case, measure_spans(place, case, heads, key_heads, size, documents, parents))
        case = f"a cache {heads}/{key_heads} heads of {size}"
        yield from attempt(case, measure_cached(place, case, heads, key_heads, size))
    for case, figures in (
        ("update", measure_waits(place)),
        ("decoding", measure_decoding(place)),
        ("loading", measure_loading(place)),
        ("products", measure_products(place)),
    ):
        yield from attempt(case, figures)


def _lay_documents(place: Place) -> tuple[list[int], None]:
    return [37, 512, 900, 64, 1500, 300, 700, 83] if not place.pretend else [3, 9, 5, 17], None


def _lay_answers(place: Place) -> tuple[list[int], list[int]]:
    prompt, answers = place.choose((600, [120, 300, 77, 260]), (6, [4, 9, 3, 7]))
    return [prompt, *answers] * 2, [-1, 0, 0, 0, 0, -1, 5, 5, 5, 5]


def measure_spans(
    place: Place, case: str, heads: int, key_heads: int, size: int, lengths: list[int], parents: list[int] | None
) -> Iterator[Figure]:
    """Compare attention over spans and over groups, both in bfloat16, with groups in float32; outputs and gradients."""
    row = pack([[1] * length for length in lengths], parents, device=torch.device("cuda"))
    num_tokens, num_real = len(row.ids_N), sum(lengths)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, num_tokens, size) for count in (heads, key_heads, key_heads)]
    given = [torch.randn(shape, generator=generator).to("cuda") for shape in shapes]
    weights = torch.randn(num_real, heads, size, generator=generator).to("cuda")
    takes_spans = attention._takes_spans

    def compute(dtype: torch.dtype, spans: bool) -> list[torch.Tensor]:
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in given]
        attention._takes_spans = lambda query: spans and takes_spans(query)
        try:
            output = attend(torch.nn.Identity(), *inputs, None, packed_row=row)[0][0, :num_real]
        finally:
            attention._takes_spans = takes_spans
        return [output.detach().float(), *(each.float() for each in torch.autograd.grad((output.float() * weights).sum(), inputs))]

    expected = compute(torch.float32, False)
    for name, spans in (("groups", False), ("spans", True)):
        found = compute(torch.bfloat16, spans)
        furthest = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        yield at_most(case, f"{name}: relative error", furthest, 4 * _ROUNDING)
    repeats = place.choose(20, 1)

    def run(spans: bool) -> None:
        for _ in range(repeats):
            compute(torch.bfloat16, spans)

    times = {}
    for spans in (False, True):
        run(spans)
        times[spans] = measure_s(lambda spans=spans: run(spans)) / repeats
    yield Figure(case, "groups / spans, forward and backward", times[False] / times[True], "x")


@torch.no_grad()
def measure_cached(place: Place, case: str, heads: int, key_heads: int, size: int) -> Iterator[Figure]:
    """Compare attention of a token a row over its own columns of a cache with that over all columns and a mask, in float32."""
    max_rows, num_columns, rows, columns, column = place.choose((32, 1024, 24, 768, 700), (4, 12, 3, 10, 7))
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(max_rows, key_heads, num_columns, size, generator=generator).to("cuda", torch.bfloat16) for _ in "kv")
    query = torch.randn(rows, heads, 1, size, generator=generator).to("cuda", torch.bfloat16)
    lengths = torch.linspace(1, column + 1, rows).int().to("cuda")  # the last key of each lies in the column
    numbers, places = torch.arange(rows + 1, dtype=torch.int32, device="cuda"), key_heads * num_columns
    starts = numbers * places
    starts[:rows] += column + 1 - lengths
    index = torch.arange(columns, device="cuda")
    hidden = (index > column) | (index <= column - lengths[:, None])
    mask = torch.zeros(rows, 1, 1, columns, device="cuda").masked_fill(hidden[:, None, None], -torch.inf)
    seen = CachedRows(numbers, starts, lengths, columns)
    seen_key, seen_value = key[:rows, :, :columns], value[:rows, :, :columns]
    exact = [tensor.float() for tensor in (query, seen_key, seen_value)]
    layer: Any = SimpleNamespace(num_key_value_groups=heads // key_heads, is_causal=False)
    expected = attend(layer, *exact, mask)[0]
    found = attend(layer, query, seen_key, seen_value, mask.bfloat16(), cached_rows=seen)[0]
    yield at_most(case, "its own columns: relative error", relative_error(found, expected), 2 * _ROUNDING)
    yield at_most(case, "each row's, the furthest", max(map(relative_error, found, expected)), 4 * _ROUNDING)


class _Casts(TorchDispatchMode):
    """Counts matrices that are cast from float32 to bfloat16."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.count = least, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16 and args[0].numel() >= self.least:
            self.count += 1
        return result


def measure_waits(place: Place) -> Iterator[Figure]:
    """Count how often the CPU waits for the GPU in the micro-batches of an update."""
    trainer, experience, _ = prepare_ppo(place.choose("small", "tiny"), make_hardware("bfloat16"))
    num_micro_batches = len(experience.split(256))
    trainer.updater.accumulate_gradients(experience, 256)  # the first time libraries wait for what they set up
    if place.pretend:
        place.pretend.syncs.clear()
        trainer.updater.accumulate_gradients(experience, 256)
        waits = place.pretend.num_syncs
    else:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trainer.updater.accumulate_gradients(experience, 256)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchroniz" in str(warning.message) for warning in caught)
    yield at_most("update", f"waits in {num_micro_batches} micro-batches", waits, 2)


def measure_decoding(place: Place) -> Iterator[Figure]:
    """Count casts of weights in a step, and see that rollouts of other lengths leave no memory behind."""
    size = place.choose("small", "tiny")
    hardware = make_hardware("bfloat16")
    policy = open_policy(size, 0.02, hardware).to("cuda").eval()
    copied = narrow(policy)
    tokens = torch.full((1, 4), 5, device="cuda")
    with torch.no_grad(), autocast(policy.base_model, tokens.device), _Casts(SIZES[size].hidden ** 2) as casts:
        copied(input_ids=tokens, use_cache=False)
    yield at_most("decoding", "casts of weights a step", casts.count, 0)
    reserved = []
    for turn, longest in enumerate(place.choose((256, 64, 200, 120, 90, 256), (12, 4, 8, 12))):
        work = PPOWork(size, 0.02, place.choose(64, 4), 4, place.choose(200, 8), longest, 1)
        generate_responses(policy, make_prompts(work), max_new_tokens=longest, stop_token_ids={EOS}, seed=turn, max_rows=32)
        reserved.append(torch.cuda.memory_reserved() / 2**20)
    case, name = "decoding", "memory reserved after rollouts of other lengths over that after the first, the longest"
    if place.pretend:  # which reserves nothing
        yield Figure(case, name, 1.0, "x")
    else:
        yield at_most(case, name, max(reserved[1:]) / reserved[0], 1.1, "x")
    segments = [] if place.pretend else torch.cuda.memory_snapshot()
    grow = all(segment.get("is_expandable", False) for segment in segments)
    yield Figure("memory", "segments that grow", float(grow), "", "1", grow)


def measure_loading(place: Place) -> Iterator[Figure]:
    """Say how much of a policy's weights lay in the CPU's memory when it had been loaded, at the most."""
    size = place.sizes[-1]
    with tempfile.TemporaryDirectory() as directory:
        make_plain_policy(size, seed=0).to(torch.bfloat16).save_pretrained(directory)
        with watch_private() as read_peak:
            load_policy(directory, make_hardware("bfloat16"))
            share = read_peak() / (4 * SIZES[size].parameters)
    case, name, limit = f"loading {size}", "private memory of the process over the model's bytes", 0.5
    yield Figure(case, name, share) if place.pretend else at_most(case, name, share, limit)


def measure_products(place: Place) -> Iterator[Figure]:
    """Say how exact float32 products are, as the reference has them and with TF32."""
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    expected = a @ b
    hardware = make_hardware("float32")
    for tf32, limit in ((False, 1e-6), (True, 1e-2)):
        prepare_gpu(copy.copy(hardware).model_copy(update={"tf32": tf32}))
        found = (a.float().to("cuda") @ b.float().to("cuda")).cpu().double()
        error = float((found - expected).norm() / expected.norm())
        case = f"products, tf32: {str(tf32).lower()}"
        yield at_most(case, "relative error", error, limit)
        if tf32:  # whole products would err by less
            yield place.reach(case, "relative error, or TF32 is off", error, 1e-5, "")
    prepare_gpu(hardware)
    yield Figure(
        "attention", "cuDNN's", float(torch.backends.cuda.cudnn_sdp_enabled()), "", "0", not torch.backends.cuda.cudnn_sdp_enabled()
    )
