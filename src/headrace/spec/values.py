"""Checks of single values of options: each raises OptionTypeError or OptionError, naming the option and the value."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError

MOST = 2**31 - 1  # of any count or number of seconds: all messages have room for it


def check_integer(name: str, value: object, least: int, besides: str = "", most: int = MOST) -> None:
    """It is an integer within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{name}={value!r} must be an integer of at least {least}{besides}")
    if value < least:
        raise OptionError(f"{name}={value!r} must be at least {least}{besides}")
    if value > most:
        raise OptionError(f"{name}={value!r} must be at most {most}")


def check_number(name: str, value: object, most: float = MOST) -> None:
    """It is a number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{name}={value!r} must be a number of at least 0")
    if not 0 <= value < math.inf:  # comparisons alone: an integer may be too large for a float
        raise OptionError(f"{name}={value!r} must be a number of at least 0")
    if value > most:
        raise OptionError(f"{name}={value!r} must be at most {most}")


def check_environment(name: str, value: object) -> None:
    """They are environment variables."""
    if not isinstance(value, Mapping):
        raise OptionTypeError(f"{name}={value!r} must be a dict of strings, such as {{'OMP_NUM_THREADS': '1'}}")
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise OptionTypeError(f"{name}: {key!r}: {text!r} must be a string for a string, such as {str(key)!r}: '1'")
        if not key or "=" in key or "\0" in key + text:
            raise OptionError(f"{name}: {key!r} must be a name without '=', and nothing may hold a zero byte")


def check_plain(name: str, value: object) -> None:
    """It is JSON-like data."""
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise OptionTypeError(
            f"{name} of type {type(value).__name__} must be JSON-like data (dict, list, str, numbers): {error}"
        ) from error
