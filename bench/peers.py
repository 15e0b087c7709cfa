"""Who is measured: how each server is started and where it answers.

In: nothing. Out: `Peer`, the description of one server; `PEERS`, those that serve the no-op model (x's sum as y), in
the order of the tables.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).parent
APPS = BENCH / "apps"
ENVIRONMENTS = BENCH / ".envs"
WEB = "web"  # the environment of what is measured against itself: Headrace, FastAPI, uvicorn and grpcio, same versions
CLUSTER = "cluster"  # that of Headrace and Ray Serve beside each other on one Ray cluster


@dataclass(frozen=True)
class Peer:
    """One row of the table. `command` may contain {python}, {bin} (its folder), {apps}, {port} and {second_port}.

    `folder` names its app and its requirements in `bench/peers/`, and its environment; None: Headrace itself, in the
    environment that runs the bench. The table shows the pinned version of `package`, by default that of the folder's
    name. `port` None: any free one, drawn at each start. `calls` names the framework for the measurements of handles,
    "" where it has none.
    """

    name: str
    title: str
    command: tuple[str, ...]
    folder: str | None
    path: str = "/"
    port: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    calls: str = ""
    package: str = ""

    @property
    def python(self) -> str:
        return sys.executable if self.folder is None else str(ENVIRONMENTS / self.folder / "bin" / "python")

    @property
    def requirements(self) -> Path | None:
        return None if self.folder is None else BENCH / "peers" / self.folder / "requirements.txt"

    @property
    def working_folder(self) -> Path:
        return BENCH.parent if self.folder is None else BENCH / "peers" / self.folder

    @property
    def holds_headrace(self) -> bool:
        """Whether this repository's package belongs into the peer's environment."""
        return self.folder in (WEB, CLUSTER)

    def command_line(self, port: int, second_port: int = 0) -> list[str]:
        values = {
            "python": self.python,
            "bin": str(Path(self.python).parent),
            "apps": str(APPS),
            "port": str(port),
            "second_port": str(second_port),
        }
        return [part.format(**values) for part in self.command]


RAY_ENV = {
    # Ray starts its workers at nice 15 by default, which on a busy machine would measure the scheduler.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
RAY_FAST_ENV = {**RAY_ENV, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
LISTEN = ("--host", "127.0.0.1", "--port", "{port}")
UVICORN_OPTIONS = ("--no-access-log", "--log-level", "warning")
UVICORN = ("{bin}/uvicorn", "app:app", *LISTEN, *UVICORN_OPTIONS)
MOSEC = ("{python}", "app.py", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning")

PEERS = (
    Peer(
        "headrace",
        "Headrace",
        ("{bin}/headrace", "run", "noop:app", "--app-dir", "bench/apps", *LISTEN),
        None,
        calls="headrace",
    ),
    Peer("nohop", "no hop: handler in one uvloop process", ("{python}", "nohop.py"), "nohop", port=8111),
    Peer("uvicorn", "uvicorn, bare ASGI function", UVICORN, "uvicorn"),
    Peer("fastapi", "FastAPI on uvicorn", UVICORN, "fastapi"),
    Peer("mosec", "Mosec, one worker", MOSEC, "mosec", path="/inference"),
    Peer("mosec32", "Mosec, batches of 32", MOSEC, "mosec", path="/inference", env={"BENCH_BATCH": "32"}),
    Peer("ray", "Ray Serve, default", ("{python}", "app.py", "{port}"), "ray", env=RAY_ENV, calls="ray"),
    Peer(
        "ray-fast",
        "Ray Serve, throughput flags and HAProxy",
        ("{python}", "app.py", "{port}"),
        "ray",
        env=RAY_FAST_ENV,
        calls="ray",
    ),
    Peer("litserve", "LitServe", ("{python}", "app.py", "{port}"), "litserve", path="/predict"),
    Peer(
        "bentoml",
        "BentoML",
        ("{bin}/bentoml", "serve", "app:Total", *LISTEN),
        "bentoml",
        path="/total",
        env={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false"},
    ),
)
