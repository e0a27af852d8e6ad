"""Calls outside any flow share the journal of the process; here every test has its own."""

import pytest

from dspy_stream.configuration import configure
from dspy_stream.lm.cache import DictJournal


@pytest.fixture(autouse=True)
def own_journal():
    configure(journal=DictJournal())
    yield
    configure(journal=None, lm=None, adapter=None, track_usage=False)
