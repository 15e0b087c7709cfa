"""Exit codes of all commands: scripts and CI pipelines branch on them, so they are never changed.

Out: numbers. docs/reference/cli.md lists which command ends with which.
"""

from __future__ import annotations

DONE = 0
FAILED = 1
WRONG_ARGUMENTS = 2  # of commands that never tell of a rollout
ROLLED_BACK = 2
USAGE = 64  # wrong arguments where 2 means rolled back (sysexits.h: EX_USAGE)
TIMED_OUT = 124  # as timeout(1) has it
INTERRUPTED = 130  # as a shell has it: 128 + SIGINT

TELL_OF_ROLLOUTS = frozenset(("deploy", "rollout", "promote"))


def usage_code(command: str) -> int:
    """What this command ends with when its arguments are not right."""
    return USAGE if command in TELL_OF_ROLLOUTS else WRONG_ARGUMENTS
