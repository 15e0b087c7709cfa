"""The token's file: made private, used only while it is."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from headrace.api.token import own_token
from headrace.spec.errors import InstanceError


def test_the_first_start_makes_it_and_the_next_ones_keep_it(token_file: Path) -> None:
    token = own_token(token_file)
    assert len(token) >= 40
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert own_token(token_file) == token
    assert [path.name for path in token_file.parent.iterdir()] == [token_file.name]


def test_its_mode_does_not_hang_on_the_umask(token_file: Path) -> None:
    before = os.umask(0)
    try:
        own_token(token_file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600


def test_starts_at_the_same_time_have_one_token(token_file: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(own_token(token_file))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o700 | 0o001])
def test_one_that_others_may_reach_is_refused(token_file: Path, mode: int) -> None:
    own_token(token_file)
    token_file.chmod(mode)
    with pytest.raises(InstanceError, match=f"has mode {mode:04o}, and 0600 is needed"):
        own_token(token_file)


def test_one_of_another_user_is_refused(token_file: Path) -> None:
    own_token(token_file)
    if os.getuid() == 0:
        os.chown(token_file, 12345, -1)
    else:
        token_file = Path("/etc/passwd")
    with pytest.raises(InstanceError, match="belongs to user"):
        own_token(token_file)


def test_a_link_is_refused_wherever_it_leads(token_file: Path) -> None:
    own_token(token_file)
    link = token_file.with_name("link")
    link.symlink_to(token_file)
    with pytest.raises(InstanceError, match="cannot be read"):
        own_token(link)


def test_what_is_no_file_is_refused_without_waiting_for_it(token_file: Path) -> None:
    os.mkfifo(token_file, 0o600)
    with pytest.raises(InstanceError, match="no regular file"):
        own_token(token_file)


@pytest.mark.parametrize("text", ["", "short", "x" * 600, "a b" * 20, "ü" * 40, "\0" * 50])
def test_what_is_no_token_is_refused(token_file: Path, text: str) -> None:
    token_file.write_text(text)
    token_file.chmod(0o600)
    with pytest.raises(InstanceError, match="holds no token"):
        own_token(token_file)


def test_a_directory_that_cannot_be_written_says_so(token_file: Path) -> None:
    with pytest.raises(InstanceError, match="cannot be made"):
        own_token(token_file.parent / "missing" / "api.token")
