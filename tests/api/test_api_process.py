"""`headrace api`, a real process on a real port, before clients who mean it no good."""

from __future__ import annotations

import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api_process import ApiProcess, Raw, said

from headrace.api.token import own_token
from headrace.cli import main

STATUS = "/api/serve/status"
PUT = "PUT /api/serve/applications/ HTTP/1.1\r\n"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder:  # short: sockets lie in it
        yield Path(folder)


@pytest.fixture(scope="module")
def api(home: Path) -> Iterator[ApiProcess]:
    with ApiProcess(home, "--allow-host", "api.example") as api:
        yield api


def request(api: ApiProcess, head: str, *, host: str = "localhost", token: bool = True, body: bytes = b"") -> bytes:
    authorization = f"Authorization: Bearer {api.token}\r\n" if token else ""
    return f"{head}Host: {host}\r\n{authorization}Connection: close\r\n\r\n".encode() + body


# --- its start and its end ------------------------------------------------------------------------------------------


def test_it_says_where_it_is_and_keeps_its_token_to_itself(api: ApiProcess) -> None:
    assert api.lines[0].endswith(f"http://127.0.0.1:{api.port}\n")
    assert api.lines[1] == f"the token is in {api.token_file}\n"
    assert stat.S_IMODE(api.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(api.token_file.parent.stat().st_mode) == 0o700
    assert api.token not in "".join(api.lines)
    assert api.token not in Path(f"/proc/{api.process.pid}/cmdline").read_text()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_to_whoever_is_connected(home: Path, api: ApiProcess, end: signal.Signals) -> None:
    token = api.token
    with ApiProcess(home) as api:
        assert api.token == token  # that of the start before
        idle, half = Raw(api.port), Raw(api.port)
        half.send(b"GET / HT")
        assert api.ask("GET", "/healthz")[0] == 200
        api.process.send_signal(end)
        assert api.process.wait(30) == 0
        assert idle.rest() == b""


@pytest.fixture
def refusal(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the command says when it does not start."""
    monkeypatch.setenv("HEADRACE_HOME", str(home))

    def refused(*arguments: str) -> str:
        assert main(["api", *arguments]) == 1
        return capsys.readouterr().err

    return refused


def test_it_does_not_start_with_a_token_that_others_can_read(home: Path, refusal: Callable[..., str]) -> None:
    directory = home / "open"
    directory.mkdir(mode=0o700)
    own_token(directory / "api.token")
    (directory / "api.token").chmod(0o644)
    assert "has mode 0644, and 0600 is needed" in refusal("--instance", "open", "--port", "0")


def test_it_does_not_start_on_a_port_that_is_taken(api: ApiProcess, refusal: Callable[..., str]) -> None:
    assert "choose another port with --port" in refusal("--port", str(api.port))


def test_it_does_not_start_where_it_cannot_listen(refusal: Callable[..., str]) -> None:
    assert "cannot listen on 192.0.2.1" in refusal("--host", "192.0.2.1", "--port", "0")
    assert "cannot listen on no.such.host.invalid" in refusal("--host", "no.such.host.invalid")


def test_without_the_extra_it_says_which(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'headrace[api]'" in refusal("--port", "0")


def test_the_header_for_curl(
    home: Path, api: ApiProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(home))
    assert main(["api", "--token-header", "--instance", "api-test"]) == 0
    assert capsys.readouterr().out == f"Authorization: Bearer {api.token}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--port", "70000"], "--port 70000"), (["--app-dir", "/no/where"], "--app-dir"), (["--instance", "a/b"], "a/b")],
)
def test_arguments_that_are_not_right(refusal: Callable[..., str], arguments: list[str], message: str) -> None:
    assert message in refusal(*arguments)


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_the_token_lets_in_and_nothing_else_does(api: ApiProcess) -> None:
    assert api.ask("GET", "/api/version")[0] == 200
    for value in ("", "Bearer", f"Bearer {api.token[:-1]}", f"Basic {api.token}", f"Bearer {api.token}\x00"):
        assert api.ask("GET", "/api/version", headers={"authorization": value})[0] in (400, 401)
    assert said(api.port, request(api, f"GET {STATUS} HTTP/1.1\r\n", token=False)) == (401, "Unauthorized")


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "PURGE"])
def test_other_hosts_and_origins_are_refused_whatever_the_method(api: ApiProcess, method: str) -> None:
    head = f"{method} {STATUS} HTTP/1.1\r\n"
    assert said(api.port, request(api, head, host="evil.example")) == (403, "HostRefused")
    assert said(api.port, request(api, f"{head}Origin: http://evil.example\r\n")) == (403, "OriginRefused")
    assert said(api.port, request(api, f"{head}Origin: null\r\n")) == (403, "OriginRefused")


def test_a_host_that_was_allowed(api: ApiProcess) -> None:
    assert api.ask("GET", "/api/version", headers={"host": "api.example:80"})[0] == 200


def test_no_host_at_all_is_no_loophole(api: ApiProcess) -> None:
    data = f"GET {STATUS} HTTP/1.0\r\nAuthorization: Bearer {api.token}\r\n\r\n".encode()
    assert said(api.port, data) == (403, "HostRefused")
    assert said(api.port, request(api, f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\n"))[0] in (400, 403)


def test_a_target_that_names_another_host_is_no_loophole(api: ApiProcess) -> None:
    assert said(api.port, request(api, f"GET http://evil.example{STATUS} HTTP/1.1\r\n"))[0] == 400


def test_the_form_of_a_page_is_not_taken(api: ApiProcess) -> None:
    body = b'{"applications": []}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        head = f"{PUT}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        assert said(api.port, request(api, head, body=body)) == (415, "NotJson")


def test_no_instance_runs(api: ApiProcess) -> None:
    status, answer = api.ask("GET", STATUS)
    assert status == 503
    assert answer["error"]["type"] == "ControllerAway"
    status, answer = api.ask("PUT", "/api/serve/applications", {"applications": []})
    assert status == 503


# --- what is no request ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\x00\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 70_000,
    ],
)
def test_what_is_no_http_is_told_so_and_costs_nobody_anything(api: ApiProcess, data: bytes) -> None:
    status, kind = said(api.port, data + b" " * 100 + b"\r\n\r\n")
    assert (status, kind) == (400, "CallerError")
    assert api.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize("length", [33_000, 60_000, 300_000])
def test_a_head_that_is_too_large_is_refused_however_it_arrives(api: ApiProcess, length: int) -> None:
    head = f"GET /healthz HTTP/1.1\r\nX: {'x' * length}\r\n"
    assert said(api.port, request(api, head)) in ((431, "HeadTooLarge"), (400, "CallerError"))


def test_http_2_is_told_that_it_is_none(api: ApiProcess) -> None:
    assert said(api.port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[0] in (400, 403)


def test_a_body_that_says_it_is_too_large_is_not_read(api: ApiProcess) -> None:
    head = f"{PUT}Content-Type: application/json\r\nContent-Length: 99999999999\r\n"
    assert said(api.port, request(api, head)) == (413, "BodyTooLarge")


@pytest.mark.parametrize("token", [True, False])
def test_a_body_without_an_end_is_cut_off(api: ApiProcess, token: bool) -> None:
    raw = Raw(api.port)
    raw.send(request(api, f"{PUT}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", token=token))
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    sent = 0
    try:
        while sent < 200:
            raw.socket.sendall(chunk)
            sent += 1
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert sent < 40  # what it reads, and what lies in the buffers between
    raw.socket.close()
    assert api.ask("GET", "/healthz")[0] == 200


def test_requests_behind_one_another_are_answered_in_order(api: ApiProcess) -> None:
    raw = Raw(api.port)
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    raw.send(one * 3 + request(api, "GET /api/version HTTP/1.1\r\n"))
    answers = raw.rest()
    assert answers.count(b"HTTP/1.1 200 OK") == 4
    assert answers.rstrip().endswith(b'"instance":"api-test"}')


def test_clients_that_leave_early_cost_nobody_anything(api: ApiProcess) -> None:
    head = f"{PUT}Content-Type: application/json\r\nContent-Length: 1000\r\n"
    for data in (b"", b"GET", request(api, head), request(api, head, body=b'{"applications"')):
        raw = Raw(api.port)
        raw.send(data)
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.socket.close()
    assert api.ask("GET", "/healthz")[0] == 200
    assert "Traceback" not in "".join(api.lines)


def test_many_who_say_nothing_do_not_keep_others_out_for_good(api: ApiProcess) -> None:
    silent = [Raw(api.port) for _ in range(300)]  # more than it has at once
    assert api.process.poll() is None
    for raw in silent:
        raw.socket.close()
    assert api.ask("GET", "/healthz")[0] == 200
