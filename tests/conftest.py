"""What holds for all tests, whoever starts them."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Have Ctrl-C mean what it means in a terminal: a shell that runs tests beside each other starts them, and so the
    processes that they start, deaf to it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
