"""What a model said to all prompts, and what is known of it: made in chunks by all ranks, kept on the disk as soon as it is whole.

    <checkpoints>/evaluate/<model>-<way>.<part>.npz,   part: answers, kl, score, judge
    <checkpoints>/sample/...                           of `rlhf sample`

A killed stage goes on with the first part that is not there. Axes: N answers, the samples of a prompt one after the other.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.process.context import StageContext, Told
from stages.process.distributed import decide_in_main
from stages.process.ranks import Ranks
from stages.process.seeds import derive_seed
from stages.responses.engine import Draw, Sampling, sample_responses
from stages.responses.sampling import Response

_CHUNK = 512  # answers of all ranks between two words on how far it is
Arrays = dict[str, NDArray[Any]]
Ask = Callable[[list[list[int]], Sampling, Draw], list[Response]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Answers:
    """What a model said: token ids up to their end, and whether it ended by itself."""

    ids: list[list[int]]
    finished_N: NDArray[np.bool_]
    samples: int  # of each prompt
    logprobs: NDArray[np.float32] | None  # of all tokens, one answer after the other; not of greedy ones

    @property
    def prompts_N(self) -> NDArray[np.int64]:
        """Which prompt each answers."""
        return np.arange(len(self.ids)) // self.samples

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of each, the end token included."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def by_prompt(self, prompts: Sequence[list[int]]) -> list[tuple[list[int], list[list[int]]]]:
        """Put the answers behind their prompts."""
        return [(prompt, self.ids[place * self.samples : (place + 1) * self.samples]) for place, prompt in enumerate(prompts)]


class Shelf:
    """The parts that are done, on the disk."""

    def __init__(self, context: StageContext, ranks: Ranks) -> None:
        self._context, self._ranks = context, ranks
        self._directory = context.spec.checkpoint_dir / context.spec.stage
        self._directory.mkdir(exist_ok=True)

    def has(self, *names: str) -> bool:
        """Whether all of these parts are done; every rank gets the same answer."""
        return decide_in_main(self._context, lambda: all(self._path(name).is_file() for name in names))

    def keep(self, name: str, arrays: Arrays) -> None:
        """Keep a part, whole or not at all; every rank calls it, the main one writes."""
        if self._context.is_main:
            draft = self._path(f".{name}")
            np.savez(draft, allow_pickle=False, **arrays)
            draft.replace(self._path(name))
        self._ranks.wait()

    def read(self, name: str) -> Arrays:
        """Read a part that was kept."""
        with np.load(self._path(name), allow_pickle=False) as arrays:
            return dict(arrays)

    def read_answers(self, name: str, samples: int) -> Answers:
        """Read a model's answers."""
        return unpack_answers(self.read(f"{name}.answers"), samples)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.npz"


def sample_answers(
    ranks: Ranks,
    model: Any,
    prompts: Sequence[list[int]],
    samples: int,
    sampling: Sampling,
    *,
    greedy: bool,
    seed: int,
    batch_size: int,
    told: Told,
    ask: Ask | None = None,
) -> Arrays:
    """Have a model answer each prompt so many times; each rank its share, the same answers for any number of ranks up to rounding.

    Args:
        ask: what answers in place of the model's own forward.
        ranks, model, prompts, samples, sampling, greedy, seed, batch_size, told: as there; `samples` of each prompt.

    Raises:
        ValueError: the model's logits are not numbers; on every rank.
    """
    ask = ask or functools.partial(sample_responses, model, batch_size=batch_size)

    def sample(start: int, chunk: list[list[int]]) -> list[list[int]]:
        own = chunk[ranks.index :: ranks.count]
        if not own:
            return []

        def heard(done: int, _: int) -> None:  # of this rank's
            told(start + min(done * ranks.count, len(chunk)), len(asked))

        found = ask(own, sampling, Draw(derive_seed(seed, start), greedy, (ranks.index, ranks.count), heard))
        return [response.ids for response in found]

    asked = [prompt for prompt in prompts for _ in range(samples)]
    ids: list[list[int]] = []
    for start in range(0, len(asked), _CHUNK):
        told(start, len(asked))
        chunk = asked[start : start + _CHUNK]
        ids += together(ranks, functools.partial(sample, start, chunk), len(chunk))
    told(len(asked), len(asked))
    return {
        "ids": np.array([token for answer in ids for token in answer], dtype=np.int64),
        "lengths_N": np.array([len(answer) for answer in ids], dtype=np.int64),
        "finished_N": np.array([sampling.is_stopped(answer) for answer in ids], dtype=np.bool_),
    }


def unpack_answers(arrays: Arrays, samples: int) -> Answers:
    """Make answers of what `sample_answers` found of so many samples of each prompt; `logprobs` may have been put beside it."""
    ends_N = arrays["lengths_N"].cumsum()
    ids = [part.tolist() for part in np.split(arrays["ids"], ends_N[:-1])]
    return Answers(ids, arrays["finished_N"], samples, arrays.get("logprobs"))


def together(ranks: Ranks, work: Callable[[], list[Item]], total: int) -> list[Item]:
    """Do work on every rank's share, every n-th item from the rank's on, and give every rank all items in order.

    Raises:
        ValueError: What the work raised on any rank, on all of them.
    """
    failure, found = None, list[Item]()
    try:
        found = work()
    except ValueError as error:
        failure = str(error)
    shares = ranks.gather([(found, failure)])
    if failure := next((said for _, said in shares if said), None):
        raise ValueError(failure)
    return [shares[place % ranks.count][0][place // ranks.count] for place in range(total)]
