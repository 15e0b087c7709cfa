"""Fixtures for applications in tests, which pytest finds by itself where Headrace is installed.

In: tests that ask for `headrace_local` or `headrace_instance`. Out: an application in this process, ended after the
test. pytest loads this for everybody: so it imports nothing before a test asks, and has no hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

async_fixture: Callable[..., Any] = pytest.fixture
# pytest loads it anyway where it is installed. In its strict mode it takes no async fixtures but those of its own mark.
with contextlib.suppress(ImportError):
    from pytest_asyncio import fixture as async_fixture

if TYPE_CHECKING:
    from headrace.serve.testing import LocalTesting, TestInstance


@pytest.fixture
def headrace_local() -> Iterator[LocalTesting]:
    """Local testing mode for one test, plain or async: `.run(app)` returns a handle, `.http` is a client."""
    from headrace.serve.testing import LocalTesting

    local = LocalTesting()
    try:
        yield local
    finally:
        local.close()


@async_fixture
async def headrace_instance() -> AsyncIterator[TestInstance]:
    """A TestInstance in the event loop of an async test: needs pytest-asyncio or anyio, as the test does."""
    from headrace.serve.testing import TestInstance

    async with TestInstance() as instance:
        yield instance
