import pytest
from terminals import Terminal


@pytest.fixture
def terminal(tmp_path):
    """A shell's place, in which nothing is left running."""
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same for all tests of a module."""
    place = Terminal(tmp_path_factory.mktemp("t"))
    yield place
    place.close()
