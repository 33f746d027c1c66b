"""What a loss is known to mean: a pure function of it."""


def find_ignorance(loss: float, of_chance: float, *, what: str, model: str, remedy: str) -> str | None:
    """Say that a loss is above that of a model which knows nothing: training made it worse.

    Args:
        loss: In nats.
        of_chance: That of the other model: log of the vocabulary for a language model, log 2 for pairs.
        what: Such as `loss`, `held-out loss`.
        model: Such as `model`, `reward model`.
        remedy: What to do.
    """
    if not loss > of_chance:
        return None
    found, known = _write_apart(loss, of_chance)
    return f"the {what} {found} is above {known}, that of a {model} which knows nothing; {remedy}"


def _write_apart(first: float, second: float, digits: int = 3) -> tuple[str, str]:
    """Write two different numbers by as many digits as tell them apart: "5.83 is above 5.83" says nothing."""
    while f"{first:.{digits}g}" == f"{second:.{digits}g}" and digits < 17:
        digits += 1
    return f"{first:.{digits}g}", f"{second:.{digits}g}"
