"""What the log says of an error that user code raised.

In: the error, whose it is and where it was raised. Out: a line where that says all, else its traceback.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import headrace
from headrace.spec.errors import (
    BatchError,
    GeneratorError,
    MethodNotFound,
    NotServableError,
    PayloadError,
    RequestCancelledError,
    ServingError,
)
from headrace.wire.frames import ErrorInfo
from headrace.wire.payload import traceback_text

log = logging.getLogger("headrace.replica")

_PACKAGE = f"{Path(headrace.__file__).parent}/"


def log_failure(who: str, where: str, error: BaseException, info: ErrorInfo | None = None) -> None:
    """Log the error of these requests for people; `info` where it is known. Errors that say all in a line get one."""
    message = str(error) if info is None else info.message
    if isinstance(error, ServingError | MethodNotFound | GeneratorError | RequestCancelledError):
        log.warning("%s: %s: %s: %s", who, where, type(error).__name__, message)
    elif isinstance(error, BatchError):
        log.error("%s: %s", who, message)
    elif isinstance(error, NotServableError):
        log.error("%s: %s returned what is no HTTP response: %s", who, where, message)
    elif isinstance(error, PayloadError) and not is_of_user_code(error):
        log.error("%s: arguments or result of %s: %s", who, where, message)
    else:
        text = (traceback_text(error) if info is None else info.traceback_text).rstrip() or message
        log.error("%s: %s raised %s\n%s", who, where, type(error).__name__, text)


def is_of_user_code(error: BaseException) -> bool:
    """Whether user code raised the error, or passed it on: code that is not Headrace's is in the traceback."""
    return any(not frame.f_code.co_filename.startswith(_PACKAGE) for frame, _ in traceback.walk_tb(error.__traceback__))
