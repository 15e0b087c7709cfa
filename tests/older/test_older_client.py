"""The client of 2020: what it refuses and says, what its traffic is made of, and whom it leaves alone."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace import serve
from headrace.serve.older.client import Client
from headrace.serve.testing import LocalTesting
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    HeadraceError,
    OptionError,
    OptionTypeError,
    UserCodeError,
)


@serve.deployment
class Present:
    """Code of today, beside which the older runs: it gets Starlette's requests as they are."""

    async def __call__(self, request: Any) -> Any:
        flask = [name for name in ("args", "data", "get_json", "path") if hasattr(request, name)]
        return {"flask": flask, "json": await request.json(), "kind": type(request).__name__}


class Named:
    def __init__(self, name: str = "") -> None:
        self.name = name

    def __call__(self, request: Any) -> Any:
        return self.name

    def tags(self, request: Any) -> Any:
        return [serve.get_current_backend_tag(), serve.get_current_replica_tag()]

    def reconfigure(self, config: Any) -> None:
        self.name = config


class Raises:
    def __init__(self) -> None:
        raise KeyError("the model is not there")

    def __call__(self, request: Any) -> None:
        pass


def plain(request: Any) -> Any:
    return request.args.to_dict(), request.data, request.json, request.form, request.method, request.headers


def fails(request: Any) -> None:
    raise LookupError("of the user")


@serve.accept_batch
def doubled(requests: list[Any]) -> list[Any]:
    return [2 * request.data for request in requests]


@pytest.fixture
def client(headrace_local: LocalTesting) -> Iterator[Client]:
    headrace_local.run(Present.bind(), name="present", route_prefix="/present")
    made = serve.connect()
    yield made
    for name in made.list_endpoints():
        made.delete_endpoint(name)
    for tag in made.list_backends():
        made.delete_backend(tag)


def answers(client: Client, endpoint: str, number: int = 60) -> set[Any]:
    handle = client.get_handle(endpoint)
    return set(serve.get([handle.remote() for _ in range(number)]))


@pytest.mark.parametrize(
    ("use", "error", "told"),
    [
        (lambda c: c.create_backend("t", 5), OptionTypeError, r"takes a class or a function, not 5"),
        (lambda c: c.create_backend("t", Present), OptionTypeError, r"takes a plain class or function"),
        (lambda c: c.create_backend("t", Named, 1, 2), OptionTypeError, r"does not fit the constructor: too many"),
        (lambda c: c.create_backend("t", plain, 1), OptionError, r"a function takes no arguments: \(1,\) are too many"),
        (lambda c: c.create_backend("a b", plain), OptionError, r"name='a b' must be"),
        (lambda c: c.create_backend(5, plain), OptionTypeError, r"name=5 must be a string"),
        (lambda c: c.create_backend("t", plain, config=3), OptionTypeError, r"config=3 must be a dict"),
        (lambda c: c.create_backend("t", plain, config={"num_replica": 2}), OptionTypeError, r"mean 'num_replicas'\?"),
        (lambda c: c.create_backend("t", plain, config={"num_replicas": 0}), OptionError, r"num_replicas=0 must be"),
        (lambda c: c.create_backend("t", plain, config={"num_replicas": "2"}), OptionTypeError, r"must be an integer"),
        (lambda c: c.create_backend("t", plain, config={"batch_wait_timeout": -1}), OptionError, r"from 0 to 3600"),
        (lambda c: c.create_backend("t", plain, config={"max_batch_size": 5}), OptionError, r"accept_batch"),
        (lambda c: c.create_backend("t", plain, config={"user_config": 5}), OptionError, r"no method reconfigure"),
        (lambda c: c.create_backend("t", Named, config={"user_config": object()}), OptionTypeError, r"JSON-like"),
        (lambda c: c.create_backend("t", plain, ray_actor_options={"cpus": 1}), OptionError, r"'cpus' is none of"),
        (lambda c: c.create_backend("t", plain, env="conda"), OptionError, r"env='conda' does not work here"),
        (lambda c: serve.CondaEnv("torch"), OptionError, r"CondaEnv\('torch'\).*Install what the backend imports"),
        (lambda c: serve.accept_batch(Named), OptionTypeError, r"marks a function or a method"),
        (lambda c: c.create_backend("known", plain), OptionError, r"'known' is registered already"),
        (lambda c: c.create_endpoint("e"), OptionTypeError, r"needs backend="),
        (lambda c: c.create_endpoint("e", backend=plain), OptionTypeError, r"must be the tag of a backend"),
        (lambda c: c.create_endpoint("e", backend="other"), OptionError, r"'other' is not registered.*are: known"),
        (lambda c: c.create_endpoint("e", backend="known", route="e"), OptionError, r"did you mean '/e'\?"),
        (lambda c: c.create_endpoint("e", backend="known", route="/present"), OptionError, r"is taken by"),
        (lambda c: c.create_endpoint("e", backend="known", methods="GET"), OptionTypeError, r"must be a list"),
        (lambda c: c.create_endpoint("e", backend="known", methods=[]), OptionError, r"at least one"),
        (lambda c: c.create_endpoint("e", backend="known", methods=["FETCH"]), OptionError, r"must be one of GET"),
        (lambda c: c.create_endpoint("e", backend="known", methods=[1]), OptionTypeError, r"must be a string"),
        (lambda c: c.create_endpoint("present", backend="known"), OptionError, r"there is an application 'present'"),
        (lambda c: c.create_endpoint("there", backend="known"), OptionError, r"there is an endpoint 'there'"),
        (lambda c: c.set_traffic("there", {"known": 0.5}), OptionError, r"must add up to 1, and add up to 0.5"),
        (lambda c: c.set_traffic("there", {"known": 2, "a": -1}), OptionError, r"the weight of 'known'.*not 2"),
        (lambda c: c.set_traffic("there", {"known": -1, "a": 2}), OptionError, r"the weight of 'known'.*not -1"),
        (lambda c: c.set_traffic("there", {"known": float("nan")}), OptionError, r"not nan"),
        (lambda c: c.set_traffic("there", {"known": True}), OptionTypeError, r"not True"),
        (lambda c: c.set_traffic("there", {}), OptionError, r"must add up to 1"),
        (lambda c: c.set_traffic("there", [("known", 1)]), OptionTypeError, r"must be a dict of backend and weight"),
        (lambda c: c.set_traffic("there", {1: 1.0}), OptionTypeError, r"1 must be the tag of a backend"),
        (lambda c: c.set_traffic("there", {"other": 1.0}), OptionError, r"'other' is not registered"),
        (lambda c: c.set_traffic("nowhere", {"known": 1.0}), OptionError, r"'nowhere' does not exist.*are: there"),
        (lambda c: c.set_traffic("present", {"known": 1.0}), OptionError, r"'present' does not exist"),
        (lambda c: c.set_traffic(None, {"known": 1.0}), OptionTypeError, r"must be the name of an endpoint"),
        (lambda c: serve.set_traffic("present", {"known": 1.0}), OptionTypeError, r"must be the number of a revision"),
        (lambda c: serve.shadow_traffic("present", "known", 0.5), OptionTypeError, r"must be a dict of revision"),
        (lambda c: c.shadow_traffic("there", "known", 1.5), OptionError, r"proportion=1.5"),
        (lambda c: c.shadow_traffic("there", "known", "1"), OptionTypeError, r"proportion='1'"),
        (lambda c: c.shadow_traffic("there", "other", 0.5), OptionError, r"'other' is not registered"),
        (lambda c: c.shadow_traffic("nowhere", "known", 0.5), OptionError, r"'nowhere' does not exist"),
        (lambda c: c.delete_backend("known"), OptionError, r"in the traffic of endpoint 'there'"),
        (lambda c: c.delete_backend(None), OptionTypeError, r"must be the tag of a backend"),
        (lambda c: c.get_backend_config("other"), OptionError, r"'other' is not registered"),
        (lambda c: c.update_backend_config("other", {}), OptionError, r"'other' is not registered"),
        (lambda c: c.update_backend_config("known", {"max_batch_size": 3}), OptionError, r"accept_batch"),
        (lambda c: c.update_backend_config("known", {"user_config": 3}), OptionError, r"no method reconfigure"),
        (lambda c: c.get_handle("nowhere"), ApplicationNotFound, r"endpoint 'nowhere' does not exist"),
        (lambda c: c.get_handle("there").options(methods=1), OptionTypeError, r"has no option 'methods': did you mean"),
        (lambda c: c.get_handle("there").options(shard_key=1), OptionTypeError, r"shard_key=1 .* must be a string"),
        (lambda c: c.get_handle("there").options(http_headers=1), OptionTypeError, r"must be a dict of texts"),
        (lambda c: serve.get(5), OptionTypeError, r"takes a response"),
        (lambda c: c.get_handle("there", sync=False).remote().result(), OptionTypeError, r"`response = await"),
    ],
)
def test_what_makes_no_sense_is_told(
    client: Client, use: Callable[[Client], Any], error: type[HeadraceError], told: str
) -> None:
    client.create_backend("known", plain)
    client.create_endpoint("there", backend="known")
    with pytest.raises(error, match=told) as caught:
        use(client)
    assert isinstance(caught.value, ValueError | TypeError | KeyError)
    assert client.list_endpoints() == {
        "there": {"route": None, "methods": ["GET"], "traffic": {"known": 1.0}, "shadows": {}}
    }
    assert list(client.list_backends()) == ["known"]


def test_an_endpoint_is_an_application_whose_revisions_are_backends(client: Client) -> None:
    for tag in ("one", "two"):
        client.create_backend(tag, Named, tag)
    assert "endpoint" not in serve.status().applications
    client.create_endpoint("endpoint", backend="one", route="/named", methods=["get", "POST"])
    assert serve.status().applications["endpoint"].route_prefix == "/named"
    assert answers(client, "endpoint") == {"one"}
    serve.set_traffic("endpoint", {"one": 0.5, "two": 0.5})
    assert answers(client, "endpoint") == {"one", "two"}
    assert serve.status().applications["endpoint"].weights == {1: 0.5, 2: 0.5}
    client.set_traffic("endpoint", {"one": 1.0})
    client.set_traffic("endpoint", {"two": 1.0, "one": 0.0})
    assert answers(client, "endpoint") == {"two"}
    assert [record.labels["backend"] for record in serve.history("endpoint").revisions] == ["one", "two"]
    # The names of today act on the same.
    serve.set_traffic("endpoint", {1: 1.0})
    assert client.list_endpoints()["endpoint"]["traffic"] == {"one": 1.0}
    assert client.get_handle("endpoint").tags.remote().result()[0] == "one"
    assert client.get_handle("endpoint").options(method_name="tags").remote().result()[1].startswith("one#")
    with pytest.raises(AttributeError, match="tag"):
        client.get_handle("endpoint").tag.remote().result()


def test_endpoints_share_a_backend(client: Client) -> None:
    client.create_backend("one", Named, "one")
    client.create_endpoint("first", backend="one", route="/first")
    client.create_endpoint("second", backend="one", route="/second", methods=["PUT"])
    assert [each["methods"] for each in client.list_endpoints().values()] == [["GET"], ["PUT"]]
    client.delete_endpoint("first")
    client.delete_endpoint("first")
    with pytest.raises(OptionError, match="in the traffic of endpoint 'second'"):
        client.delete_backend("one", force=True)
    client.delete_endpoint("second")
    client.delete_backend("one")
    client.delete_backend("one")
    assert (client.list_backends(), client.list_endpoints()) == ({}, {})


def test_shadows(client: Client) -> None:
    for tag in ("one", "two", "three"):
        client.create_backend(tag, Named, tag)
    client.create_endpoint("endpoint", backend="one")
    serve.shadow_traffic("endpoint", "two", 0.5)
    client.shadow_traffic("endpoint", "three", 1)
    assert client.list_endpoints()["endpoint"]["shadows"] == {"two": 0.5, "three": 1.0}
    with pytest.raises(OptionError, match="in the shadows of endpoint 'endpoint'"):
        client.delete_backend("two")
    client.shadow_traffic("endpoint", "three", 0)
    assert client.list_endpoints()["endpoint"]["shadows"] == {"two": 0.5}
    client.update_backend_config("two", {"num_replicas": 2})
    assert client.list_endpoints()["endpoint"]["shadows"] == {"two": 0.5}
    assert answers(client, "endpoint") == {"one"}
    client.set_traffic("endpoint", {"one": 0.5, "three": 0.5})
    assert client.list_endpoints()["endpoint"] == {
        "route": None,
        "methods": ["GET"],
        "traffic": {"one": 0.5, "three": 0.5},
        "shadows": {},
    }


def test_a_backend_that_does_not_start_changes_nothing(client: Client) -> None:
    client.create_backend("good", Named, "good")
    client.create_backend("bad", Raises)
    for _ in range(2):
        with pytest.raises(DeployFailedError, match="KeyError: 'the model is not there'"):
            client.create_endpoint("endpoint", backend="bad")
        assert client.list_endpoints() == {}
    client.create_endpoint("endpoint", backend="good")
    with pytest.raises(DeployFailedError, match="KeyError: 'the model is not there'"):
        client.set_traffic("endpoint", {"good": 0.5, "bad": 0.5})
    assert client.list_endpoints()["endpoint"]["traffic"] == {"good": 1.0}
    with pytest.raises(DeployFailedError, match="does not start for endpoint 'endpoint'"):
        client.shadow_traffic("endpoint", "bad", 0.5)
    assert client.list_endpoints()["endpoint"]["shadows"] == {}
    assert answers(client, "endpoint") == {"good"}


def test_a_config_changes_in_place(client: Client) -> None:
    client.create_backend("one", Named, "one", config=serve.BackendConfig(user_config="first"))
    client.create_backend("two", Named, "two")
    client.create_endpoint("endpoint", backend="one")
    client.set_traffic("endpoint", {"one": 0.5, "two": 0.5})
    before = client.get_handle("endpoint").tags.remote().result
    assert answers(client, "endpoint") == {"first", "two"}
    client.update_backend_config("one", {"user_config": "second"})
    assert answers(client, "endpoint") == {"second", "two"}
    assert client.get_backend_config("one") == serve.BackendConfig(user_config="second")
    assert client.list_endpoints()["endpoint"]["traffic"] == {"one": 0.5, "two": 0.5}
    replicas = serve.status().applications["endpoint"].deployments["endpoint"].replicas
    assert sorted(replica.id for replica in replicas) == ["endpoint#1", "endpoint#2"], before()
    config = client.get_backend_config("two")
    config.num_replicas = 2
    client.update_backend_config("two", config)
    assert client.list_backends()["two"].num_replicas == 2


def test_a_tag_that_is_used_again_runs_its_new_code(client: Client) -> None:
    client.create_backend("tag", Named, "before")
    client.create_backend("other", Named, "other")
    client.create_endpoint("endpoint", backend="tag")
    client.set_traffic("endpoint", {"other": 1.0})
    client.delete_backend("tag")
    client.create_backend("tag", Named, "after")
    client.set_traffic("endpoint", {"tag": 1.0})
    assert answers(client, "endpoint") == {"after"}


def test_what_a_call_of_a_handle_is_to_a_backend(client: Client) -> None:
    client.create_backend("plain", plain)
    client.create_endpoint("endpoint", backend="plain")
    handle = client.get_handle("endpoint")
    assert handle.remote({"x": 1}, a=1, b=[2]).result() == (
        {"a": 1, "b": [2]},
        {"x": 1},
        {"x": 1},
        {"x": 1},
        "GET",
        {},
    )
    told = handle.options(http_method="POST", http_headers={"a": "b"}, shard_key="me").remote().result()
    assert told == ({}, None, None, None, "POST", {"a": "b"})
    assert handle == client.get_handle("endpoint") != client.get_handle("other", missing_ok=True)
    assert pickle.loads(pickle.dumps(handle)) == handle
    assert hash(handle) == hash(pickle.loads(pickle.dumps(handle)))

    async def awaited() -> Any:
        response = await client.get_handle("endpoint", sync=False).remote("data")
        return (await response)[1], (await handle.remote("more"))[1]

    assert asyncio.run(awaited()) == ("data", "more")
    client.create_backend("fails", fails)
    client.create_endpoint("failing", backend="fails")
    with pytest.raises((LookupError, UserCodeError), match="of the user"):
        client.get_handle("failing").remote().result()
    client.create_backend("doubled", doubled)
    client.create_endpoint("doubled", backend="doubled")
    assert serve.get([client.get_handle("doubled").remote(i) for i in range(3)]) == [0, 2, 4]


def test_code_of_today_sees_none_of_it(client: Client, headrace_local: LocalTesting) -> None:
    client.create_backend("plain", plain)
    client.create_endpoint("endpoint", backend="plain", route="/older", methods=["POST"])
    answer = headrace_local.http.post("/present?a=1", json={"x": 1})
    assert answer.json() == {"flask": [], "json": {"x": 1}, "kind": "HttpRequest"}
    args, *_, method, _ = headrace_local.http.post("/older?a=1&a=2&b", json=None, content=b"\0").json()[:6]
    assert (args, method) == ({"a": "1", "b": ""}, "POST")
    assert headrace_local.http.get("/older").status_code == 405
    headers = {"X-SERVE-CALL-METHOD": "anything"}
    assert headrace_local.http.post("/older", headers=headers).status_code == 404


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"\xff\xfe", "application/json", 200),
        (b"[" * 100_000, "application/json", 200),
        (b"a=%ff&=&&b", "application/x-www-form-urlencoded", 200),
        (b"--x", "multipart/form-data; boundary=x", 200),
        (b"--x\r\nbroken", "multipart/form-data; boundary=y", 400),
        (b"--x\r\nbroken", "multipart/form-data", 400),
    ],
)
def test_a_hostile_body_is_that_request_s_trouble(
    client: Client, headrace_local: LocalTesting, content: bytes, kind: str, status: int
) -> None:
    def reads(request: Any) -> Any:
        return [request.json, request.get_json(silent=True), len(request.form), len(request.data)]

    client.create_backend("reads", reads)
    client.create_endpoint("endpoint", backend="reads", route="/reads", methods=["POST"])
    answer = headrace_local.http.post("/reads", content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()[0] is None
        assert answer.json()[3] == len(content)
    assert json.loads(headrace_local.http.post("/reads", content=b"1").text)[0] == 1


def test_where_nothing_runs_it_says_so(headrace_local: LocalTesting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_INSTANCE", "nobodys")
    with pytest.raises(HeadraceError, match="'nobodys' does not run"):
        serve.connect()
    with pytest.raises(OptionTypeError, match="must be the number of a revision"):
        serve.set_traffic("app", {"v1": 1.0})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="http_options and http_port say the same thing"):
        serve.start(http_options={"port": 1}, http_port=1)
