"""Records of one kind, by split -> findings: what no single line shows (duplicates, contradictions, leakage)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from data.holdout import split_text, too_few
from data.schema import Comparison, Record, Text


@dataclass(frozen=True)
class Findings:
    """What the whole-set checks found.

    Args:
        counts: Records per split, and how many are duplicated, contradictory, leaked, without a pair, empty.
        errors: What makes training pointless; the caller stops.
        warnings: What the user should know; training goes on.
    """

    counts: dict[str, int]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


class Checker:
    """Checks the record sets of one kind against themselves and each other, record by record; of each only hashes are held.

    A comparison whose ranks are all equal makes no pair: it is counted and left out of training; when none has a pair,
    that is an error.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._empty: dict[str, int] = {}  # texts of a split
        self._usable: set[str] = set()  # the splits that hold a pair, or something else than comparisons and empty texts
        self._is_texts = False
        self._has_parts = False  # the first text, of which the end can be held out
        self._trained: set[int] = set()
        self._asked: dict[str, set[int]] = {}  # prompts, or texts
        self._orders: set[int] = set()
        self._counts = {"duplicates": 0, "contradictions": 0, "comparisons_without_pair": 0, "empty_answers": 0}

    def begin(self, split: str) -> None:
        """Name a split whose records come, if it has any: `train`, then `eval` where there is one."""
        self._sizes[split] = self._empty[split] = 0
        self._asked[split] = set()

    def add(self, split: str, record: Record) -> None:
        """Check the next record of a split."""
        self._sizes[split] += 1
        if isinstance(record, Text):
            self._is_texts = True
            if not record.text:  # left out of training, so no copy of another one
                self._empty[split] += 1
                return
            if not self._asked[split]:
                self._has_parts |= split_text(record.text, 0.5) is not None
        self._usable |= {split} if not isinstance(record, Comparison) or record.has_pair else set()
        self._asked[split].add(hash(record.text if isinstance(record, Text) else record.prompt))
        if split == "train":
            known = len(self._trained)
            self._trained.add(hash(record))
            self._counts["duplicates"] += len(self._trained) == known
        self._counts["empty_answers"] += sum(not answer.strip() for answer in record.answers)
        if isinstance(record, Comparison):
            self._counts["comparisons_without_pair"] += not record.has_pair
            self._counts["contradictions"] += self._count_contradictions(record)

    def _count_contradictions(self, comparison: Comparison) -> int:
        """Count pairs of answers that are now ranked in both orders for one prompt, within one comparison or across several."""
        found = 0
        ranked = sorted(zip(comparison.ranks, comparison.completions, strict=True))
        for (high, better), (low, worse) in combinations(ranked, 2):
            order = hash((comparison.prompt, better, worse))
            if high < low and order not in self._orders:
                self._orders.add(order)
                found += hash((comparison.prompt, worse, better)) in self._orders
        return found

    def findings(self) -> Findings:
        """Say what was found."""
        leaked = len(self._asked.get("train", set()) & self._asked.get("eval", set()))
        if self._is_texts:
            own = {"duplicates": self._counts["duplicates"], "leaked_texts": leaked, "empty_texts": sum(self._empty.values())}
        else:
            counts = self._counts
            own = {name: counts[name] for name in ("duplicates", "contradictions")} | {"leaked_prompts": leaked}
            own |= {name: counts[name] for name in ("comparisons_without_pair", "empty_answers")}
        errors = [f"{name}: found no records; needed at least one; check the source" for name, size in self._sizes.items() if not size]
        for name, size in self._sizes.items():
            if size and name not in self._usable and self._is_texts:
                errors.append(f"{name}: found no text that is not empty; needed at least one; check the source")
            elif size and name not in self._usable:
                errors.append(f"{name}: ranks: all {size} comparisons rank their answers equal; needed different ranks; rank them")
        counts = self._sizes | own
        warnings: list[str] = []
        if self._is_texts and "eval" not in self._sizes and self._usable and len(self._asked["train"]) == 1:
            if self._sizes["train"] - self._empty["train"] == 1 and self._has_parts:
                warnings.append("found a single text and no eval file; its end is held out, a share of data.eval_fraction of it")
            else:
                errors.append(too_few("train", "texts", self._sizes["train"]).message)
        return Findings(counts, tuple(errors), (*warnings, *_warnings(counts)))


def check(splits: Mapping[str, Iterable[Record]]) -> Findings:
    """Check whole record sets of one kind; see `Checker`."""
    checker = Checker()
    for split, records in splits.items():
        checker.begin(split)
        for record in records:
            checker.add(split, record)
    return checker.findings()


def _warnings(counts: Mapping[str, int]) -> Iterable[str]:
    texts = {
        "duplicates": "training records occur more than once; each copy trains again; remove them if that is not wanted",
        "contradictions": "pairs of answers are ranked both ways for one prompt; they teach nothing; keep one ranking",
        "leaked_prompts": "held-out prompts also occur in training; held-out figures look too good; remove them from one side",
        "leaked_texts": "held-out texts also occur in training; held-out figures look too good; remove them from one side",
        "empty_texts": "texts are empty; they teach nothing and are left out",
        "comparisons_without_pair": "comparisons rank all answers equal; they make no pair and are left out",
        "empty_answers": "ranked answers are empty; they train as an immediate end token; remove them if that is not meant",
    }
    return (f"{counts[name]} {text}" for name, text in texts.items() if counts.get(name))
