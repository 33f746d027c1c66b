"""Rows of a published format -> records, as a recipe's file gives them."""

from pathlib import Path

import pytest

from data.load import load_records
from data.schema import DataError


@pytest.fixture
def read(write_lines):
    """Read rows as records of one kind: `read(kind, *rows, columns=...)`."""

    def read(kind, *rows, **options):
        return load_records(write_lines(*rows, **options), kind)

    return read


@pytest.fixture
def told(write_lines):
    """Read rows and return the line that tells how."""

    def told(kind, *rows, **options):
        reports = []
        load_records(write_lines(*rows, **options), kind, reports=reports)
        return reports[0].line()

    return told


@pytest.fixture
def refused(write_lines):
    """Read rows and return what is told of the bad ones."""

    def refused(kind, *rows, **options):
        source = write_lines(*rows, **options)
        with pytest.raises(DataError) as caught:
            load_records(source, kind)
        return [str(problem).removeprefix(f"{Path(source.path).parent}/") for problem in caught.value.problems]

    return refused
