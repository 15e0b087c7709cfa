"""The token of the control API: a secret in a file that nobody but its user can read.

In: the path of the file. Out: the token, made at the first start. Invariant: a token is used only out of a regular file
of this user's with mode 0600; any other is an error, for somebody else may know it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from headrace.spec.errors import InstanceError

_TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]{32,512}")
_LARGEST_BYTES = 1024


def own_token(path: Path) -> str:
    """The token in the file, which is made if it is not there. Raises InstanceError where the file is not private."""
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        _make(path)
        descriptor = _open(path)
    try:
        return _read(path, descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InstanceError(
            f"the token of the control API cannot be read ({path}: {error.strerror}): remove the file, and a new one "
            "is made at the next start"
        ) from error


def _read(path: Path, descriptor: int) -> str:
    info = os.fstat(descriptor)
    remedy = "a token that others may know is none: remove the file, and a new one is made at the next start"
    if not stat.S_ISREG(info.st_mode):
        raise InstanceError(f"{path} is no regular file: {remedy}")
    if info.st_uid != os.getuid():
        raise InstanceError(f"{path} belongs to user {info.st_uid}, not to you (user {os.getuid()}): {remedy}")
    if info.st_mode & 0o077:
        raise InstanceError(f"{path} has mode {stat.S_IMODE(info.st_mode):04o}, and 0600 is needed: {remedy}")
    text = os.read(descriptor, _LARGEST_BYTES).decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(text):
        raise InstanceError(
            f"{path} holds no token: 32 to 512 letters, digits or any of - _ . ~ + / = are one; remove the file, and "
            "a new one is made at the next start"
        )
    return text


def _make(path: Path) -> None:
    """Put a new token in place, whole. One that somebody else puts there first is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, f"{secrets.token_urlsafe(32)}\n".encode())
        finally:
            os.close(descriptor)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another start was faster: its token is as good
    except OSError as error:
        raise InstanceError(f"the token of the control API cannot be made ({path}: {error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
