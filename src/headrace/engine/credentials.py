"""What a process of this node proves by, to those of other nodes, that it belongs to the instance.

In: the node's instance directory, the environment. Out: Credentials; a file that names the node's TLS files, for
processes that the instance did not start (drivers, the command line).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from headrace.engine.directory import InstanceDirectory, read_secret, write_whole
from headrace.spec.errors import InstanceError
from headrace.wire.frames import BROKEN
from headrace.wire.tcp import Credentials
from headrace.wire.tls import TlsFiles, tls_files

_NAME = "tls.json"


def write_tls_files(directory: InstanceDirectory, files: TlsFiles | None) -> None:
    """Keep which files this node's TLS goes by; None: there is none. Raises OSError."""
    if files is None:
        (directory.path / _NAME).unlink(missing_ok=True)
    else:
        write_whole(directory.path / _NAME, msgspec.json.encode(files))


def credentials_of(directory: InstanceDirectory, environ: Mapping[str, str] = os.environ) -> Credentials:
    """By the secret of the directory, and the TLS files that the environment names, else the directory.

    Raises InstanceError, OptionError.
    """
    return Credentials(read_secret(directory), tls_files(environ) or _kept_tls_files(directory))


def _kept_tls_files(directory: InstanceDirectory) -> TlsFiles | None:
    path = directory.path / _NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=TlsFiles)
    except FileNotFoundError:
        return None
    except (OSError, *BROKEN) as error:
        raise InstanceError(f"{path} does not say which files TLS between nodes goes by: {error}") from error
