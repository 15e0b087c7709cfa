"""Makes the environment of each peer: a venv with pinned versions in `bench/.envs/`, kept between runs.

Where Headrace is measured against a library on its own ground (FastAPI, grpcio), both are in one environment, Headrace
as the working tree has it.

In: a peer. Out: its environment on disk, made anew when its requirements have changed; EnvironmentFailed otherwise.
"""

from __future__ import annotations

import subprocess
import sys

from bench.peers import BENCH, CLUSTER, ENVIRONMENTS, WEB, Peer

ROOT = BENCH.parent
EXTRAS = {WEB: "grpc", CLUSTER: "ray"}  # of Headrace's, in the environments that hold it


class EnvironmentFailed(Exception):
    """The environment could not be made. The message is the last line of what pip or venv said."""


def make_environment(peer: Peer) -> None:
    """Make the peer's environment unless it stands already with the requirements as they are now."""
    if peer.folder is None or peer.requirements is None:
        return
    wanted = peer.requirements.read_text()
    if peer.holds_headrace:
        wanted += (ROOT / "pyproject.toml").read_text()  # its dependencies
    stamp = ENVIRONMENTS / peer.folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"making the environment of {peer.title} ...", flush=True)
    folder = ENVIRONMENTS / peer.folder
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    ours = ["--editable", f"{ROOT}[{EXTRAS[peer.folder]}]"] if peer.holds_headrace else []
    _run([*pip, "-r", str(peer.requirements), *ours])
    stamp.write_text(wanted)


def version(peer: Peer) -> str:
    """The version that is measured: the pin of the peer's package, "" if there is none."""
    if peer.requirements is None:
        return ""
    for line in peer.requirements.read_text().splitlines():
        name, _, pin = line.partition("==")
        if name.partition("[")[0] == (peer.package or peer.folder):
            return pin.strip()
    return ""


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no output"]
        raise EnvironmentFailed(f"could not be installed: {errors[-1][:300]}")
