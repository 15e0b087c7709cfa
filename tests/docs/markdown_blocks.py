"""Code blocks of a markdown page, and what the page says is to be done with them.

In: a page. Out: `Block`s in order. A comment on the line above a block says what it is: `<!-- file: NAME -->` a file to
be saved, `<!-- not run: REASON -->` neither saved nor run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\s*$")
DIRECTIVE = re.compile(r"^<!-- (file|not run): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, its first line's number in the page, and the comment above it."""

    language: str
    text: str
    line: int
    directive: str = ""
    argument: str = ""


def blocks_of(page: Path) -> list[Block]:
    """The page's blocks. ValueError for a fence that is not closed."""
    lines = page.read_text().splitlines()
    blocks: list[Block] = []
    at = 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        if not opened:
            at += 1
            continue
        end = at + 1
        while end < len(lines) and lines[end] != "```":
            end += 1
        if end == len(lines):
            raise ValueError(f"{page}:{at + 1}: the block is not closed")
        said = DIRECTIVE.match(lines[at - 1]) if at else None
        text = "\n".join(lines[at + 1 : end]) + "\n"
        blocks.append(Block(opened[1], text, at + 2, said[1] if said else "", said[2] if said else ""))
        at = end + 1
    return blocks


@dataclass(frozen=True)
class Command:
    """One `$ ` line of a console block, and the lines that are shown below it."""

    line: str
    output: str


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block. A line that ends with a backslash goes on in the next."""
    commands: list[Command] = []
    pending = ""
    for line in block.text.splitlines():
        if pending or line.startswith("$ "):
            pending += line.removeprefix("$ ")
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            commands.append(Command(pending, ""))
            pending = ""
        elif commands:
            last = commands[-1]
            commands[-1] = Command(last.line, last.output + line + "\n")
        else:
            raise ValueError(f"a console block begins with {line!r}, not with a command")
    return commands
