"""The private directory of an instance: where everything lies, who may use it, and that only one keeper runs in it.

In: the instance's name and the environment. Out: paths, the keeper's lock, and on disk the snapshot, the instance's
secret and which node this is (where there are several). Invariant: nothing is created in, read from or removed from a
directory that is not this user's own with mode 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace.spec.errors import InstanceError, OptionError
from headrace.spec.snapshot import Snapshot
from headrace.wire.frames import BROKEN

MAX_SOCKET_PATH_BYTES = 99  # sun_path is 108 bytes on Linux and 104 on macOS
_LONGEST_SOCKET = "r/9999999999.sock"
_LOCK_PATIENCE_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True)
class InstanceDirectory:
    """The layout of one instance's directory. Nothing is touched before `create` or `lock_keeper`."""

    path: Path

    @property
    def name(self) -> str:
        """The instance's name; what follows an `@` in the path tells nodes on one machine apart."""
        return self.path.name.partition("@")[0]

    @property
    def keeper_socket(self) -> Path:
        return self.path / "keeper.sock"

    @property
    def control_socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def snapshot(self) -> Path:
        return self.path / "snapshot.bin"

    @property
    def state(self) -> Path:
        return self.path / "state.db"

    @property
    def api_token(self) -> Path:
        return self.path / "api.token"

    @property
    def secret(self) -> Path:
        return self.path / "secret"

    @property
    def node(self) -> Path:
        return self.path / "node"

    @property
    def lock(self) -> Path:
        return self.path / "keeper.lock"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def replicas(self) -> Path:
        return self.path / "r"

    def replica_socket(self, n: int) -> Path:
        return self.replicas / f"{n}.sock"

    @property
    def packs(self) -> Path:
        return self.path / "packs"

    def pack(self, name: str) -> Path:
        """Where the source pack of this name lies, which is the SHA-256 of its bytes."""
        return self.packs / name

    def log(self, process_id: str) -> Path:
        """Where the output of this process lies; what a file name cannot hold becomes `_`."""
        return self.logs / (re.sub(r"[^A-Za-z0-9_.#@+-]|^\.|^$", "_", process_id)[:120] + ".log")

    def create(self) -> None:
        """Make the directory and its parts, mode 0700. Raises InstanceError when it is not ours alone to use."""
        longest = os.fsencode(self.path / _LONGEST_SOCKET)
        if len(longest) > MAX_SOCKET_PATH_BYTES:
            raise InstanceError(
                f"the runtime directory {self.path} is too long: the sockets in it would have {len(longest)} bytes, "
                f"and {MAX_SOCKET_PATH_BYTES} are allowed; set HEADRACE_HOME to a shorter directory"
            )
        try:
            _make_home(self.path.parent)
            for directory in (self.path, self.replicas, self.logs):
                make_private(directory)
        except OSError as error:
            raise InstanceError(
                f"the runtime directory {self.path} cannot be made ({error.strerror}: {error.filename}); "
                f"set HEADRACE_HOME to a directory that you may write"
            ) from error

    def lock_keeper(self) -> KeeperLock:
        """Become the one keeper of this instance. Raises InstanceError naming the keeper that runs already."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                pid = _lock_owner(descriptor)
                # Whoever asks whether a keeper runs holds the lock too, for a moment, and is no keeper.
                if pid is None and time.monotonic() < deadline:
                    time.sleep(0.002)
                    continue
                os.close(descriptor)
                raise InstanceError(
                    f"instance {self.name} already runs, pid {pid or 'unknown'}; stop it by "
                    f"`headrace shutdown --instance {self.name}` or choose another name by --instance"
                ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return KeeperLock(descriptor)

    def keeper_pid(self) -> int | None:
        """The pid of the keeper that runs, or None when none does."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _lock_owner(descriptor)
        else:
            return None
        finally:
            os.close(descriptor)

    def clean(self) -> None:
        """Remove what an ended life of the instance left: its sockets, the snapshot that names them, its secret.

        Its logs move aside as `logs.old`, so that those of one past life can be read. Only for the holder of the lock.
        """
        self.remove_sockets()
        for leftover in (self.snapshot, self.secret, self.node, *self.path.glob(".snapshot.*")):
            leftover.unlink(missing_ok=True)
        if any(self.logs.iterdir()):
            old = self.path / "logs.old"
            make_private(old)
            for past in old.iterdir():
                past.unlink()
            self.logs.rename(old)
            self.logs.mkdir(mode=0o700)

    def remove_sockets(self) -> None:
        """Remove the sockets, so that whoever comes sees at once that nobody is there."""
        for path in (self.keeper_socket, self.control_socket, *self.replicas.glob("*.sock")):
            path.unlink(missing_ok=True)


class KeeperLock:
    """The lock of the one keeper, held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another keeper start. Harmless when released already."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def instance_directory(name: str = "default") -> InstanceDirectory:
    """The directory of the instance of this name; nothing is created. Raises OptionError for a name not allowed."""
    if not _NAME.fullmatch(name):
        raise OptionError(f"instance={name!r} is not a name: 1 to 32 letters, digits, '_' and '-' are allowed")
    return InstanceDirectory(_home() / name)


def runtime_directory(path: str | os.PathLike[str]) -> InstanceDirectory:
    """The directory that a child of the keeper was told in HEADRACE_RUNTIME_DIR."""
    return InstanceDirectory(Path(path))


def list_instances() -> list[InstanceDirectory]:
    """The instances of this user that run, by name."""
    try:
        found = sorted(path for path in _home().iterdir() if _NAME.fullmatch(path.name))
    except OSError:
        return []
    return [directory for directory in map(InstanceDirectory, found) if directory.keeper_pid() is not None]


def read_snapshot(directory: InstanceDirectory) -> Snapshot | None:
    """The last published snapshot, or None when there is none or the file is broken."""
    try:
        return msgspec.msgpack.decode(directory.snapshot.read_bytes(), type=Snapshot)
    except (OSError, *BROKEN):
        return None


def write_snapshot(directory: InstanceDirectory, snapshot: Snapshot) -> None:
    """Put the snapshot in place at once: a reader sees the old one or this one, whole."""
    write_whole(directory.snapshot, msgspec.msgpack.encode(snapshot))


def write_secret(directory: InstanceDirectory, secret: bytes) -> None:
    """Keep what the processes of this node prove to those of others that they belong to the instance."""
    write_whole(directory.secret, secret)


def read_secret(directory: InstanceDirectory) -> bytes:
    """The secret of the instance. Raises InstanceError when there is none, or others may read it."""
    try:
        with open(os.open(directory.secret, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
            info = os.fstat(file.fileno())
            secret = file.read()
    except OSError as error:
        raise InstanceError(
            f"the secret of the instance cannot be read from {directory.secret} ({error.strerror}): does the instance "
            f"run on this node?"
        ) from error
    if info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise InstanceError(
            f"{directory.secret} is of user {info.st_uid} with mode {stat.S_IMODE(info.st_mode):04o}: it has to be "
            f"yours alone (mode 0600)"
        )
    return secret


def write_node(directory: InstanceDirectory, node: str) -> None:
    """Keep the id of the node that this is."""
    write_whole(directory.node, node.encode())


def read_node(directory: InstanceDirectory) -> str:
    """The id of the node that this is, "" where there is but one."""
    try:
        return directory.node.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def write_whole(path: Path, data: bytes) -> None:
    """Put a file of mode 0600 in place at once: a reader sees the old one or this one, whole. Raises OSError.

    Not by two threads of a process at once.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _lock_owner(descriptor: int) -> int | None:
    """The living process whose pid stands in the lock."""
    text = os.pread(descriptor, 32, 0).strip()
    if not text.isdigit():
        return None
    try:
        os.kill(int(text), 0)
    except ProcessLookupError:  # a keeper that was killed leaves its pid
        return None
    except PermissionError:
        pass
    return int(text)


def _home() -> Path:
    home = os.environ.get("HEADRACE_HOME")
    if home:
        return Path(home).absolute()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime).absolute() / "headrace"
    return Path(f"/tmp/headrace-{os.getuid()}")


def _make_home(home: Path) -> None:
    """Make the directory of all instances, or see that nobody else can put things of theirs in our place there."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    trusted = (os.getuid(), 0)
    info = home.stat()
    if not stat.S_ISDIR(info.st_mode):
        raise InstanceError(f"{home} is no directory: remove it, or set HEADRACE_HOME to a directory of your own")
    if info.st_uid not in trusted or home.lstat().st_uid not in trusted:
        raise InstanceError(
            f"{home} belongs to user {info.st_uid}, not to you (user {os.getuid()}), and its owner could run code "
            f"as you: remove it, or set HEADRACE_HOME to a directory of your own"
        )
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        raise InstanceError(
            f"{home} may be written by other users (mode {stat.S_IMODE(info.st_mode):04o}): "
            f"make it private by `chmod 700 {home}`, or set HEADRACE_HOME to a directory of your own"
        )


def make_private(directory: Path) -> None:
    """Make a directory of mode 0700, or see that the one there is ours; a mode of ours that is too open is narrowed."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    info = directory.lstat()
    if not stat.S_ISDIR(info.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(info.st_mode) else "no directory"
        raise InstanceError(f"{directory} is {kind}: remove it, or set HEADRACE_HOME to a directory of your own")
    if info.st_uid != os.getuid():
        raise InstanceError(
            f"{directory} belongs to user {info.st_uid}, not to you (user {os.getuid()}), and its owner could run code "
            f"as you: remove it, or set HEADRACE_HOME to a directory of your own"
        )
    if stat.S_IMODE(info.st_mode) != 0o700:
        directory.chmod(0o700)
