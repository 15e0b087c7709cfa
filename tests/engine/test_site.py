"""Which instance is meant: by arguments, by the environment, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.directory import InstanceDirectory
from headrace.engine.site import LocalSite, RaySite, checked_address, inner_site, site_of
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import InstanceError, OptionError, OptionTypeError


class StandIn:
    """A cluster with instances in a folder, and no Ray: what was asked of it, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[object, ...]] = []
        self.there: set[str] = set()

    def connect(self, address: str | None) -> None:
        self.asked.append(("connect", address))

    def find(self, instance: str) -> InstanceDirectory | None:
        self.asked.append(("find", instance))
        return InstanceDirectory(self.folder / f"{instance}@12345678") if instance in self.there else None

    def start(self, instance: str, options: ClusterOptions) -> tuple[InstanceDirectory, bool]:
        self.asked.append(("start", instance, options))
        started = instance not in self.there
        self.there.add(instance)
        return InstanceDirectory(self.folder / f"{instance}@12345678"), started

    def end(self, instance: str, timeout_s: float) -> None:
        self.asked.append(("end", instance))
        self.there.discard(instance)


@pytest.fixture
def cluster(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path)


class TestWhichIsMeant:
    def test_nothing_said_is_the_local_default(self) -> None:
        site = site_of(environ={})
        assert (site.engine, site.name, site.flags()) == ("local", "default", "")

    def test_the_environment_says(self) -> None:
        site = site_of(environ={"HEADRACE_ENGINE": "ray", "HEADRACE_ADDRESS": "h:1", "HEADRACE_INSTANCE": "x"})
        assert site == RaySite("x", "h:1")
        assert site.flags() == " --engine ray --address h:1 --instance x"

    def test_arguments_win_over_the_environment(self) -> None:
        environ = {"HEADRACE_ENGINE": "ray", "HEADRACE_ADDRESS": "h:1", "HEADRACE_INSTANCE": "x"}
        assert site_of("local", environ=environ) == site_of(environ={"HEADRACE_INSTANCE": "x"})
        assert site_of(address="auto", name="y", environ=environ) == RaySite("y", "auto")

    @pytest.mark.parametrize("environ", [{}, {"HEADRACE_ENGINE": "local"}])
    def test_who_names_an_address_means_ray(self, environ: dict[str, str]) -> None:
        assert site_of(address="h:1", environ=environ) == RaySite("default", "h:1")

    def test_the_address_of_the_environment_means_ray_unless_the_engine_is_said(self) -> None:
        assert site_of(environ={"HEADRACE_ADDRESS": "auto"}).engine == "ray"
        assert site_of(environ={"HEADRACE_ADDRESS": "auto", "HEADRACE_ENGINE": "local"}).engine == "local"

    def test_the_local_engine_has_no_address(self) -> None:
        with pytest.raises(OptionError, match="address='auto' has no effect with engine='local'"):
            site_of("local", "auto", environ={})

    def test_a_wrong_engine_is_told_with_the_nearest(self) -> None:
        with pytest.raises(OptionError, match="engine='rey': did you mean 'ray'"):
            site_of("rey", environ={})
        with pytest.raises(OptionError, match="HEADRACE_ENGINE='locale': did you mean 'local'"):
            site_of(environ={"HEADRACE_ENGINE": "locale"})
        with pytest.raises(OptionTypeError, match="engine=7"):
            site_of(7, environ={})  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["", "a/b", "a@b", "x" * 33])
    @pytest.mark.parametrize("engine", ["local", "ray"])
    def test_a_name_that_is_none(self, engine: str, name: str) -> None:
        with pytest.raises(OptionError, match="is not a name"):
            site_of(engine, name=name, environ={})


class TestAddresses:
    @pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head.example:6379", "[::1]:6379"])
    def test_those_of_a_cluster(self, address: str) -> None:
        assert checked_address(address) == address

    def test_a_client_s_address_is_told_the_way(self) -> None:
        with pytest.raises(OptionError, match=r"must run on a node.*ray job submit"):
            checked_address("ray://head:10001")

    def test_a_url_is_told_what_it_is(self) -> None:
        with pytest.raises(OptionError, match="is a URL"):
            checked_address("http://head:8265")

    @pytest.mark.parametrize("address", ["local", "head", "head:", ":6379", "head:0", "head:65536", "head:x", "head:٣"])
    def test_what_is_none(self, address: str) -> None:
        with pytest.raises(OptionError, match="HOST:PORT"):
            checked_address(address)

    @given(st.text())
    def test_any_text_is_an_address_or_a_wrong_option(self, text: str) -> None:
        with contextlib.suppress(OptionError):
            assert checked_address(text) == text

    def test_nobody_listens_there(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
            with pytest.raises(InstanceError, match=f"no Ray cluster answers at {address}"):
                RaySite("x", address).find()


class TestOnACluster:
    def test_ray_is_asked_anew_for_agents_outlive_their_controller(self, cluster: StandIn) -> None:
        site = RaySite("x", cluster=cluster)
        directory, _ = site.start(ClusterOptions())
        directory.create()
        lock = directory.lock_keeper()
        assert site.find() == directory
        cluster.there.clear()
        assert site.find() == directory
        assert site.find(anew=True) is None
        assert site.find() is None
        lock.release()

    def test_what_is_found_is_kept_while_its_keeper_lives(self, cluster: StandIn) -> None:
        site = RaySite("x", "h:1", cluster)
        assert site.find() is None
        directory, started = site.start(ClusterOptions())
        assert started
        directory.create()
        lock = directory.lock_keeper()
        cluster.asked.clear()
        assert site.find() == directory == site.directory()
        assert not cluster.asked
        lock.release()
        cluster.there.clear()
        assert site.find() is None
        assert ("find", "x") in cluster.asked

    def test_it_connects_to_its_address_first(self, cluster: StandIn) -> None:
        RaySite("x", cluster=cluster).find()
        assert cluster.asked == [("connect", "auto"), ("find", "x")]

    def test_one_that_does_not_run_is_told_with_the_way_to_start_it(self, cluster: StandIn) -> None:
        with pytest.raises(InstanceError, match=r"headrace start --engine ray --address h:1 --instance x"):
            RaySite("x", "h:1", cluster).directory()

    def test_started_twice_is_started_once(self, cluster: StandIn) -> None:
        site = RaySite("x", "h:1", cluster)
        options = ClusterOptions(ports=(20000, 20010))
        assert [site.start(options)[1], site.start(options)[1]] == [True, False]
        site.end(1.0)
        assert site.find() is None

    def test_the_name_is_the_instance_s_whatever_the_directory_is_called(self, cluster: StandIn) -> None:
        directory, _ = RaySite("x", "h:1", cluster).start(ClusterOptions())
        assert directory.name == "x"
        assert inner_site(directory).name == "x"


def test_a_process_of_an_instance_goes_by_its_directory_whatever_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = InstanceDirectory(tmp_path / "x@12345678")
    monkeypatch.delenv("HEADRACE_NODE", raising=False)
    here = inner_site(directory)
    monkeypatch.setitem(os.environ, "HEADRACE_NODE", "ab" * 28)
    there = inner_site(directory)
    assert isinstance(here, LocalSite)
    assert here.directory() == there.directory() == directory
    assert here.keeper_away_s == 0 < there.keeper_away_s
    assert here.controller_away_s < there.controller_away_s


def test_without_ray_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from headrace.engine.site import RaySite\n"
        "try: RaySite().find()\nexcept Exception as error: print(type(error).__name__, error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == ("InstanceError the Ray engine needs ray, which is not installed: pip install 'headrace[ray]'\n")
