"""`serve.*` on a real instance, from this process, from its children, and from inside of replicas."""

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import served_applications as applications
from served_applications import Adder, Broken, Front

from headrace import runtime, serve
from headrace.engine.directory import instance_directory
from headrace.serve.api import _http_options
from headrace.spec.errors import (
    ApplicationNotFound,
    BackPressureError,
    DeployFailedError,
    DeploymentNotFound,
    InstanceError,
    LoopBlockedError,
    MethodNotFound,
    OptionError,
    OptionTypeError,
    RemoteTraceback,
    ReplicaDiedError,
)

PATIENCE_S = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A private home for instances; the variables that say so are this process's for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("HEADRACE_INSTANCE", "HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID"):
            patch.delenv(name, raising=False)
        yield os.environ["HEADRACE_HOME"]


@pytest.fixture(scope="module")
def port(home):
    """An instance with one application, `default`, under `/`."""
    serve.start(http_options={"port": 0})
    serve.run(Front.bind(Adder.bind()))
    yield next(iter(serve.status().proxies.values())).port
    serve.shutdown()


@pytest.fixture
def front(port):
    return serve.get_app_handle("default")


class Working:
    """A request, as far as Endless looks at it."""

    query_params = ("work",)


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as response:
        return response.read()


class TestCalls:
    def test_http(self, port):
        assert get(port, "/?n=4") == b'{"sum":5}'

    def test_methods_async_and_plain(self, front):
        assert front.chain.remote(3).result(PATIENCE_S) == 8
        assert front.plain.remote(3).result(PATIENCE_S) == 4

    def test_a_handle_that_came_from_a_replica(self, front):
        adder = front.adder_handle.remote().result(PATIENCE_S)
        assert adder == serve.get_deployment_handle("Adder", "default")
        assert adder.remote(1, b=2).result(PATIENCE_S) == 3
        pid, on_main_thread = adder.where.remote().result(PATIENCE_S)
        assert pid != os.getpid()
        assert not on_main_thread

    def test_an_error_keeps_its_type_over_two_hops(self, front):
        with pytest.raises(LookupError, match="gone") as caught:
            front.fail.remote("gone").result(PATIENCE_S)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "raise LookupError(message)" in str(caught.value.__cause__)

    def test_a_method_that_is_not_there(self, front):
        with pytest.raises(MethodNotFound, match="did you mean plain") as missing:
            front.plains.remote().result(PATIENCE_S)
        assert missing.value.__cause__ is None  # no traceback through code that is not the user's

    def test_a_deployment_and_an_application_that_are_not_there(self, front):
        with pytest.raises(DeploymentNotFound, match="Front"):
            serve.handle.DeploymentHandle("Nobody", "default").remote().result(PATIENCE_S)
        with pytest.raises(ApplicationNotFound, match="default"):
            serve.handle.DeploymentHandle("Nobody", "nowhere").remote().result(PATIENCE_S)

    def test_from_many_threads(self, front):
        with ThreadPoolExecutor(8) as pool:
            sums = list(pool.map(lambda n: front.chain.remote(n).result(PATIENCE_S), range(200)))
        assert sums == [2 * n + 2 for n in range(200)]

    def test_from_an_event_loop(self, front):
        async def main():
            response = front.chain.remote(1)
            assert await response == 4
            with pytest.raises(LoopBlockedError):
                response.result()
            return await asyncio.gather(*[front.chain.remote(n) for n in range(50)])

        assert asyncio.run(main()) == [2 * n + 2 for n in range(50)]

    def test_large_values_both_ways(self, front):
        array = np.arange(3_000_000, dtype=np.float64)
        back = front.give_back.remote({"array": array, "text": "x" * 200_000}).result(PATIENCE_S)
        assert np.array_equal(back["array"], array)
        assert len(back["text"]) == 200_000

    def test_a_response_as_an_argument_of_another_application(self, front, port):
        serve.run(Adder.bind(100), name="hundred", route_prefix=None)
        hundred = serve.get_app_handle("hundred")
        assert hundred.remote(front.chain.remote(1), b=front.plain.remote(1)).result(PATIENCE_S) == 106
        serve.delete("hundred")


class TestProcesses:
    def test_a_forked_child_connects_anew(self, front):
        assert front.plain.remote(1).result(PATIENCE_S) == 2
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                answer = front.plain.remote(5).result(PATIENCE_S)
                os.write(writer, str((answer, serve.status().applications["default"].status)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert file.read() == b"(6, <ApplicationStatus.RUNNING: 'RUNNING'>)"
        os.waitpid(pid, 0)
        assert front.plain.remote(1).result(PATIENCE_S) == 2

    def test_a_handle_in_a_spawned_process(self, front):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(call_pickled, (pickle.dumps([front]), 6)) == 7


def call_pickled(pickled, n):
    return pickle.loads(pickled)[0].plain.remote(n).result(PATIENCE_S)


class TestInsideOfAReplica:
    def test_the_own_application_is_the_default(self, front):
        assert front.by_name.remote(7).result(PATIENCE_S) == 7

    def test_its_context(self, front):
        app, deployment, replica_id, kind = front.context.remote().result(PATIENCE_S)
        assert (app, deployment, kind) == ("default", "Front", "Front")
        assert replica_id.startswith("Front#")

    def test_running_and_calling_another_application(self, front):
        assert front.run_another.remote("from-inside", 40).result(PATIENCE_S) == 41
        assert front.other_application.remote("from-inside", 2).result(PATIENCE_S) == 42
        serve.delete("from-inside")

    def test_deploying_on_the_event_loop_says_what_to_do(self, front):
        with pytest.raises(LoopBlockedError, match="to_thread"):
            front.run_on_the_loop.remote().result(PATIENCE_S)

    def test_outside_there_is_no_context(self, port):
        with pytest.raises(serve.exceptions.HeadraceError, match="outside of a replica"):
            serve.get_replica_context()
        with pytest.raises(OptionError, match="needs app_name"):
            serve.get_deployment_handle("Adder")


class TestApplications:
    def test_side_by_side_and_gone_again(self, port):
        handle = serve.run(applications.hello.bind(), name="other", route_prefix="/other")
        assert handle == serve.get_app_handle("other")
        assert get(port, "/other") == b"hello"
        assert get(port, "/?n=1") == b'{"sum":2}'
        status = serve.status().applications["other"]
        assert (status.status, status.route_prefix) == ("RUNNING", "/other")
        serve.delete("other")
        assert "other" not in serve.status().applications
        with pytest.raises(ApplicationNotFound):
            serve.get_app_handle("other")
        with pytest.raises(ApplicationNotFound):
            handle.remote(1).result(PATIENCE_S)

    def test_run_again_replaces_it(self, port):
        first = serve.run(Adder.bind(1), name="again", route_prefix=None)
        assert first.remote(1).result(PATIENCE_S) == 2
        second = serve.run(Adder.bind(2), name="again", route_prefix=None)
        assert second.remote(1).result(PATIENCE_S) == 3
        assert first.remote(1).result(PATIENCE_S) == 3
        serve.delete("again")

    def test_a_constructor_that_raises(self, port):
        with pytest.raises(DeployFailedError) as caught:
            serve.run(Broken.bind(), name="broken", route_prefix=None)
        assert 'served_applications.py", line' in str(caught.value)
        assert "FileNotFoundError: no model.bin" in str(caught.value)
        status = serve.status().applications["broken"]
        assert status.status == "DEPLOY_FAILED"
        assert "FileNotFoundError" in status.deployments["Broken"].message
        serve.delete("broken")

    def test_several_at_once(self, port):
        one, two = serve.run_many(
            [
                serve.RunTarget(Adder.bind(1), name="one", route_prefix=None),
                serve.RunTarget(lambda: Adder.bind(2), name="two", route_prefix="/two"),
            ]
        )
        assert (one.remote(1).result(PATIENCE_S), two.remote(1).result(PATIENCE_S)) == (2, 3)
        for name in ("one", "two"):
            serve.delete(name)

    def test_two_of_one_name_or_prefix(self, port):
        one = serve.RunTarget(Adder.bind(), name="one", route_prefix="/x")
        with pytest.raises(OptionError, match="two applications are called 'one'"):
            serve.run_many([one, one])
        with pytest.raises(OptionError, match="route_prefix='/x'"):
            serve.run_many([one, serve.RunTarget(Adder.bind(), name="two", route_prefix="/x")])

    def test_deleting_what_is_not_there_is_told_and_no_error(self, port, caplog):
        serve.delete("nobody")
        (record,) = [record for record in caplog.records if record.name == "headrace.serve"]
        assert record.levelname == "WARNING"
        assert "no application is called 'nobody'" in record.message

    @pytest.mark.parametrize(
        ("target", "match"), [(Adder, r"use Adder.bind\("), (Adder.func_or_class, "plain class"), (3, "not 3")]
    )
    def test_what_is_no_application(self, port, target, match):
        with pytest.raises(OptionTypeError, match=match):
            serve.run(target)

    def test_options_that_do_not_work_yet(self, port):
        with pytest.raises(OptionError, match="external_scaler_enabled"):
            serve.run(Adder.bind(), external_scaler_enabled=True)

    def test_options_that_change_nothing_warn(self, port):
        with pytest.warns(UserWarning, match="logging_config has no effect"):
            serve.run(Adder.bind(), name="logged", route_prefix=None, logging_config={"log_level": "DEBUG"})
        serve.delete("logged")


@pytest.fixture(scope="module")
def pid(port):
    """Of the replica of an application `limited`."""
    serve.run(applications.Endless.bind(), name="limited", route_prefix="/limited", request_timeout_s=60)
    yield int(get(port, "/limited"))
    serve.delete("limited")


class TestLimits:
    """What routers go by changes without a new revision or a restart, and holds for whoever calls."""

    def test_the_time_of_requests(self, port, pid):
        app = applications.Endless.bind()
        assert serve.status().applications["limited"].request_timeout_s == 60
        serve.run_many([serve.RunTarget(app, "limited", "/limited", request_timeout_s=0.05)])
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(port, "/limited?work")
        assert caught.value.code == 408
        status = serve.status().applications["limited"]
        assert (status.request_timeout_s, status.revision, status.status) == (0.05, 1, "RUNNING")
        assert int(get(port, "/limited")) == pid

    def test_what_a_refused_client_is_told(self, port, pid):
        busy = applications.Endless.options(
            max_ongoing_requests=1, max_queued_requests=1, backpressure_config={"status_code": 429, "retry_after_s": 7}
        )
        handle = serve.run(busy.bind(), name="limited", route_prefix="/limited")
        held = [handle.remote(Working()) for _ in range(2)]  # one at work, one that waits
        with pytest.raises(BackPressureError, match="max_queued_requests is 1") as refused:
            handle.remote(Working()).result(PATIENCE_S)
        assert (refused.value.status_code, refused.value.retry_after_s) == (429, 7)
        for response in held:
            response.cancel()
        assert int(get(port, "/limited")) == pid

    def test_what_may_run_twice(self, port, pid):
        handle = serve.run(applications.Endless.options(num_replicas=2).bind(), name="limited", route_prefix="/limited")
        assert handle.die_once.remote().result(PATIENCE_S) == 2
        with pytest.raises(ReplicaDiedError):
            handle.die.remote().result(PATIENCE_S)
        none = {"ratio": 0, "per_second": 0}
        serve.run(applications.Endless.options(retry_budget=none).bind(), name="limited", route_prefix="/limited")
        with pytest.raises(ReplicaDiedError):
            handle.die_once.remote().result(PATIENCE_S)
        assert serve.status().applications["limited"].revision == 1

    @pytest.mark.parametrize("wrong", [0, -1, "1", float("inf")])
    def test_a_time_that_is_none(self, port, wrong):
        with pytest.raises((OptionError, OptionTypeError), match="request_timeout_s="):
            serve.run(Adder.bind(), name="wrong", request_timeout_s=wrong)
        assert "wrong" not in serve.status().applications


class TestStart:
    def test_again_with_the_same_or_no_options_is_silent(self, port):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            serve.start()
            serve.start(http_options={"port": 0})

    def test_again_with_others_warns_and_changes_nothing(self, port):
        with pytest.warns(UserWarning, match=r"keeps its HTTP options: port=0 \(asked: 1\)"):
            serve.start(http_options=serve.HTTPOptions(port=1))
        assert get(port, "/-/healthz") == b"success"

    def test_grpc_that_the_instance_does_not_serve_warns_and_changes_nothing(self, port):
        function = "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server"
        with pytest.warns(UserWarning, match="serves no gRPC, and stays so"):
            serve.start(grpc_options={"port": 0, "grpc_servicer_functions": [function]})
        assert next(iter(serve.status().proxies.values())).grpc_port == 0

    @pytest.mark.parametrize("wrong", [{"prot": 1}, {"port": -1}])
    @pytest.mark.parametrize("option", ["http_options", "grpc_options"])
    def test_wrong_options(self, port, option, wrong):
        with pytest.raises((OptionError, OptionTypeError), match="port"):
            serve.start(**{option: wrong})

    def test_a_password_is_not_quoted(self, port):
        asked = serve.HTTPOptions(ssl_certfile="cert.pem", ssl_keyfile_password="open sesame")
        assert "open sesame" not in repr(asked)
        with pytest.warns(UserWarning, match="ssl_keyfile_password") as told:
            serve.start(http_options=asked)
        assert not [warning for warning in told if "open sesame" in str(warning.message)]
        with pytest.raises(OptionTypeError) as caught:
            serve.HTTPOptions(ssl_certfile="cert.pem", ssl_keyfile_password=b"open sesame")
        assert "open sesame" not in str(caught.value)

    def test_options_of_a_wrong_type(self, port):
        with pytest.raises(OptionTypeError, match="http_options=8000"):
            serve.start(http_options=8000)

    def test_waiting_calls_end_when_the_connection_is_closed(self, front):
        held = front.give_back.remote(1)
        assert held.result(PATIENCE_S) == 1
        runtime.close_own()
        assert held.result(PATIENCE_S) == 1
        assert front.plain.remote(1).result(PATIENCE_S) == 2


class TestHTTPOptions:
    """What `start` makes of both of its arguments, before it asks anybody."""

    @pytest.mark.parametrize("location", ["Disabled", serve.config.ProxyLocation.Disabled])
    @pytest.mark.parametrize("options", [None, {"port": 1}, serve.HTTPOptions(port=1)])
    def test_disabled(self, location, options):
        made = _http_options(options, location)
        assert made.ingress_workers == 0
        assert made.port == (8000 if options is None else 1)

    @pytest.mark.parametrize("location", [None, "EveryNode", "NoServer"])
    def test_no_host_is_no_http(self, location):
        made = _http_options({"host": None}, location)
        assert made.ingress_workers == 0
        assert made == _http_options(serve.HTTPOptions(host=None), location)
        assert made.host == serve.HTTPOptions().host
        assert msgspec.json.decode(msgspec.json.encode(made), type=serve.HTTPOptions) == made

    def test_everywhere_is_the_default(self):
        assert _http_options({"port": 1}, "EveryNode") == serve.HTTPOptions(port=1)
        assert _http_options(None, None) is None

    def test_a_place_that_is_none(self):
        with pytest.raises(OptionError, match="location='Everywhere' must be one of"):
            _http_options(None, "Everywhere")


class TestWithoutAnInstance:
    @pytest.fixture(autouse=True)
    def another_instance(self, home, monkeypatch):
        monkeypatch.setenv("HEADRACE_INSTANCE", "nobody")

    def test_status_is_empty(self):
        status = serve.status()
        assert (status.instance, status.applications) == ("nobody", {})

    def test_delete_says_so(self):
        with pytest.raises(InstanceError, match="no instance 'nobody' is running"):
            serve.delete("default")

    def test_shutdown_is_harmless(self, script):
        process = script("serve.shutdown(); serve.shutdown(); print('well')", "nobody")
        assert process.communicate(timeout=PATIENCE_S) == ("well\n", "")


SCRIPT = """
import sys
from headrace import serve

@serve.deployment
class Echo:
    async def __call__(self, value):
        return value

if __name__ == "__main__":
    {body}
"""


@pytest.fixture
def script(home):
    """Starts scripts of a user's, with instances of their own; neither outlives the test."""
    processes, names = [], set()

    def start(body, name, **keywords):
        environment = os.environ | {"HEADRACE_HOME": home, "HEADRACE_INSTANCE": name}
        names.add(name)
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(body=body)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As from a terminal. A shell that starts the tests in the background has them ignore Ctrl-C, and that
            # goes down to every child.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **keywords,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()  # no signal, where it was waited for
        process.wait()
    for name in names:
        end_instance(name)
    for process in processes:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def end_instance(name):
    """Have the keeper end, and with it all of its instance, if there is one still."""
    keeper = instance_directory(name).keeper_pid()
    if keeper is None:
        return
    with contextlib.suppress(ProcessLookupError):  # it was about to
        pidfd = os.pidfd_open(keeper)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            assert select.select([pidfd], [], [], PATIENCE_S)[0]
        finally:
            os.close(pidfd)


START = "serve.start(http_options={'ingress_workers': 0}"


class TestScripts:
    def test_the_instance_ends_with_its_script(self, script):
        body = f"{START}); print(serve.run(Echo.bind(), route_prefix=None).remote(3).result())"
        process = script(body, "ends")
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert out.startswith("3\n")
        assert instance_directory("ends").keeper_pid() is None

    def test_a_certificate_that_is_not_there_ends_the_start(self, script, tmp_path):
        process = script("serve.start(http_options={'port': 0, 'ssl_certfile': 'no.pem'})", "certified", cwd=tmp_path)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert f"OptionError: ssl_certfile='{tmp_path}/no.pem' cannot be read: No such file" in err
        assert instance_directory("certified").keeper_pid() is None

    def test_also_when_the_script_is_killed(self, script):
        process = script(f"{START}); print('up', flush=True); input()", "killed", stdin=subprocess.PIPE)
        assert process.stdout.readline() == "up\n"
        keeper = instance_directory("killed").keeper_pid()
        assert keeper is not None
        pidfd = os.pidfd_open(keeper)
        process.kill()
        process.communicate(timeout=PATIENCE_S)  # to its end: the keeper holds the same output
        assert select.select([pidfd], [], [], PATIENCE_S)[0]
        os.close(pidfd)
        assert instance_directory("killed").keeper_pid() is None

    def test_a_detached_one_stays_and_others_find_it(self, script):
        body = f"{START}, detached=True); serve.run(Echo.bind(), route_prefix=None); print('left')"
        process = script(body, "detached")
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (0, "left\n"), err
        try:
            process = script("print(serve.get_app_handle('default').remote(4).result())", "detached")
            assert process.communicate(timeout=PATIENCE_S)[0] == "4\n"
        finally:
            process = script("serve.shutdown(); print('ended')", "detached")
            assert process.communicate(timeout=PATIENCE_S)[0] == "ended\n"
        assert instance_directory("detached").keeper_pid() is None

    def test_ctrl_c_in_blocking_mode_is_no_error(self, script):
        run = "serve.run(Echo.bind(), blocking=True, route_prefix=None)"
        body = f"{START}); print('up', flush=True); {run}; print('after')"
        process = script(body, "blocking")
        assert process.stdout.readline() == "up\n"
        application_runs(script, "blocking")
        process.send_signal(2)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert "after\n" in out
        assert "Traceback" not in err
        assert instance_directory("blocking").keeper_pid() is None

    def test_a_driver_learns_that_its_instance_has_ended(self, script):
        """And of another one under the same name, when there is one."""
        run = "serve.run(Echo.bind(), route_prefix=None)"
        first = script(f"{START}); {run}; print('up', flush=True); input()", "twice", stdin=subprocess.PIPE)
        assert first.stdout.readline() == "up\n"
        body = "h = serve.get_app_handle('default'); print(h.remote(1).result(), flush=True); input()\n"
        body += (
            "    try: h.remote(2).result()\n    except Exception as error: print(type(error).__name__, flush=True)\n"
        )
        body += "    input(); print(h.remote(3).result())"
        driver = script(body, "twice", stdin=subprocess.PIPE)
        assert driver.stdout.readline() == "1\n"
        first.communicate("\n", timeout=PATIENCE_S)
        assert instance_directory("twice").keeper_pid() is None
        driver.stdin.write("\n")
        driver.stdin.flush()
        # The last that it heard may be that the application was deleted, before the instance ended.
        assert driver.stdout.readline() in ("InstanceError\n", "ApplicationNotFound\n")
        second = script(f"{START}); {run}; print('up', flush=True); input()", "twice", stdin=subprocess.PIPE)
        assert second.stdout.readline() == "up\n"
        out, err = driver.communicate("\n", timeout=PATIENCE_S)
        assert out == "3\n", err
        second.communicate("\n", timeout=PATIENCE_S)

    def test_an_exception_in_the_script_ends_it_too(self, script):
        process = script(f"{START}); sys.exit(5)", "fails")
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 5
        assert instance_directory("fails").keeper_pid() is None


def application_runs(script, name):
    """Wait until the instance's application runs, as another script sees it."""
    running = "any(a.status == 'RUNNING' for a in serve.status().applications.values())"
    body = f"import time\n    while not {running}: time.sleep(0.02)"
    process = script(body, name)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


def test_the_driver_thread_is_not_left_behind(port):
    serve.get_app_handle("default")
    assert any(thread.name == "headrace-driver" for thread in threading.enumerate())
    runtime.close_own()
    assert not any(thread.name == "headrace-driver" for thread in threading.enumerate())


def test_errors_of_http_keep_out_of_the_client_s_sight(port):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(port, "/?n=word")
    assert caught.value.code == 500
    assert b"ValueError" not in caught.value.read()


def test_two_applications_cannot_have_one_route(port):
    with pytest.raises(serve.exceptions.HeadraceError, match="'/'"):
        serve.run(Adder.bind(), name="second")
    assert get(port, "/?n=1") == b'{"sum":2}'


def test_in_a_notebook_s_cell_a_loop_runs_already(port):
    async def cell():
        handle = serve.run(Adder.bind(5), name="cell", route_prefix=None)
        assert await handle.remote(1) == 6
        serve.delete("cell")

    asyncio.run(cell())
