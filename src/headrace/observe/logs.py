"""Where the log lines of Headrace's own processes go.

In: records of the loggers below `headrace`. Out: lines on stderr, at once; the keeper puts the process's name before
each. The root logger is not touched: how user code logs is its own to say.
"""

from __future__ import annotations

import logging
import sys


def log_to_stderr() -> None:
    """Have Headrace's loggers, and no others, write to this process's stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    ours = logging.getLogger("headrace")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
