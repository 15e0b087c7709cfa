"""Who asks the controller for something: the name that the history of an application has for whoever changed it.

In: the process. Out: `user@host:pid`.
"""

from __future__ import annotations

import getpass
import os


def who() -> str:
    """The user, the machine and the process that runs this."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user of a container may have no name
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}:{os.getpid()}"
