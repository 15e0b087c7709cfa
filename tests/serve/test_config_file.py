"""Configuration files: what is read, where what is wrong is said to be, and files that mean no good."""

from __future__ import annotations

import json
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.serve.config_file import MOST_BYTES, load_config, parse_config, read_config
from headrace.spec.errors import ConfigError

SHOP = """\
# the shop
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
applications:
  - name: shop
    import_path: shop:app
    deployments:
      - name: Prices
        num_replicas: 2
      - name: Door
        num_replica: 1
"""
# As Ray Serve's documentation has it.
RAY = """\
proxy_location: EveryNode

http_options:
  host: 0.0.0.0
  port: 8000

grpc_options:
  port: 9000
  grpc_servicer_functions: []

logging_config:
  encoding: TEXT
  log_level: INFO
  logs_dir: null
  enable_access_log: true

target_capacity: 50

applications:
- name: app1
  route_prefix: /
  import_path: text_ml.app
  external_scaler_enabled: true
  runtime_env:
    working_dir: .
    env_vars: {TOKEN: "1"}
  deployments:
  - name: Translator
    num_replicas: 1
    ray_actor_options:
      num_cpus: 0.2
      num_gpus: 0.0
    user_config:
      language: french
    max_ongoing_requests: 5
    graceful_shutdown_wait_loop_s: 2.0
    health_check_period_s: 10
  - name: Summarizer
    num_replicas: 1
"""


def problems(text, name="serve.yaml"):
    with pytest.raises(ConfigError) as raised:
        parse_config(text, name)
    return str(raised.value)


def test_an_unknown_key_is_told_with_its_line_and_the_nearest():
    assert problems(SHOP) == (
        "serve.yaml:13: applications[0].deployments[1]: unknown key 'num_replica'; did you mean 'num_replicas'?"
    )


def test_a_file_of_ray_serve_loads_as_it_is():
    read = parse_config(RAY, "ray.yaml")
    (app,) = read.schema.applications
    assert app.deployment_names == ["Translator", "Summarizer"]
    assert app.deployments[0].overrides() == {
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0.2, "num_gpus": 0.0},
        "user_config": {"language": "french"},
        "max_ongoing_requests": 5,
    }
    assert read.schema.target_capacity == 50
    assert [note.partition(" has no")[0] for note in read.notes] == [
        "ray.yaml:11: 'logging_config'",
        "ray.yaml:23: applications[0]: 'external_scaler_enabled'",
        "ray.yaml:36: applications[0].deployments[0]: 'graceful_shutdown_wait_loop_s'",
        "ray.yaml:37: applications[0].deployments[0]: 'health_check_period_s'",
    ]


def test_one_application_at_the_top_is_a_configuration_too():
    text = "import_path: a.b.app\nhost: 127.0.0.1\nport: 9001\nargs: {x: 1}\n"
    schema = parse_config(text).schema
    assert schema.model_dump(exclude_unset=True) == {
        "http_options": {"host": "127.0.0.1", "port": 9001},
        "applications": [{"import_path": "a.b.app", "args": {"x": 1}}],
    }
    assert problems("import_path: a.b\nnmae: x\n") == "serve.yaml:2: unknown key 'nmae'; did you mean 'name'?"


def test_json_is_read_by_the_same_path():
    plain = {"applications": [{"import_path": "a:b", "args": {"text": "\U0001f600 \\ud83d\t", "n": 1e-7, "m": 10**20}}]}
    for indent in (None, 2, "\t"):
        for ascii_only in (True, False):
            text = json.dumps(plain, indent=indent, ensure_ascii=ascii_only)
            assert parse_config(text).schema.model_dump(exclude_unset=True) == plain
    text = json.dumps({"applications": [{"import_path": "a:b", "colour": 1}]}, indent=1)
    assert problems(text, "x.json").startswith("x.json:5: applications[0]: unknown key 'colour'; ")


def test_all_is_told_at_once():
    text = "http_options: {port: x}\ngrpc_option: {}\napplications:\n- name: 3\n- import_path: a:b\n  route_prefix: b\n"
    assert [line.partition(": ")[0] for line in problems(text).splitlines()] == [
        "serve.yaml:1",
        "serve.yaml:2",
        "serve.yaml:4",
        "serve.yaml:4",
        "serve.yaml:6",
    ]
    many = "applications:\n" + "".join(f"- {{import_path: 'a:b', x{n}: 1}}\n" for n in range(30))
    assert len(problems(many).splitlines()) == 21


def test_a_duplicate_of_a_name_is_told_where_it_stands():
    one, other = "- {import_path: 'a:b', route_prefix: /a}", "- {import_path: 'a:b',\n   route_prefix: /a, name: b}"
    text = f"applications:\n{one}\n{other}\n"
    told = "serve.yaml:4: applications[1]: applications[0] has route_prefix='/a' already: give each its own"
    assert problems(text) == told


def test_anchors_and_merges_are_read():
    text = (
        "applications:\n- import_path: a:b\n  deployments:\n"
        "  - &base {name: A, num_replicas: 2, max_queued_requests: 5}\n  - {<<: *base, name: B, num_replicas: 3}\n"
    )
    first, second = parse_config(text).schema.applications[0].deployments
    assert (first.num_replicas, first.max_queued_requests) == (2, 5)
    assert (second.name, second.num_replicas, second.max_queued_requests) == ("B", 3, 5)


def test_values_are_those_of_yaml_but_for_dates_and_keys():
    text = (
        "applications: [{import_path: a:b, args: {d: 2024-01-31, n: 1e3, o: 0o1, y: yes, z: ~, 1: x, s: '1e3', =: e}}]"
    )
    args = parse_config(text).schema.applications[0].args
    expected = {"d": "2024-01-31", "n": 1000.0, "o": "0o1", "y": True, "z": None, "1": "x", "s": "1e3", "=": "e"}
    assert args == expected


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is empty"),
        ("# nothing\n", "it is empty"),
        (b"\x89PNG\r\n\x1a\n", "serve.yaml:1: it is no text"),
        (b"a: 1\nb: \xff", "serve.yaml:2: it is no text"),
        ("a: 1\nb: \x07", "serve.yaml:2: it is no text: "),
        ("a:\n\tb: 1", "serve.yaml:2: it is no YAML"),
        ("a:\n\tb: 1", "(YAML is indented by spaces, not tabs)"),
        ("a: [1, 2", "it is no YAML"),
        ("a: 1\n b: 2", "serve.yaml:2: it is no YAML"),
        ("a: 1\nb: 2\na: 3", "serve.yaml:3: the key 'a' is there twice: first in line 1"),
        ("a: 1\n---\nb: 2", "serve.yaml:2: a second document begins here"),
        ("[]", "serve.yaml:1: the configuration must be a mapping"),
        ("just text", "the configuration must be a mapping"),
        ("? [a]\n: b", "a key must be a text"),
        ("? {a: b}\n: c", "a key must be a text"),
        ("a: *b", "the alias *b stands for nothing before it"),
        ("a: &b [*b]", "the alias *b refers to itself"),
        ("a: &b {c: {d: *b}}", "the alias *b refers to itself"),
        (BOMB, "it has more than 100000 values, with what aliases repeat"),
        ("a: !!python/object/apply:os.system ['true']", "is not allowed: a configuration is plain data"),
        ("a: !!python/name:os.system", "is not allowed"),
        ("a: !mine x", "the tag '!mine' is not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("a: !!set {x, y}", "is not allowed"),
        ("a: !!int x", "serve.yaml:1: 'x' is no int"),
        ("a: !!float ''", "is no float"),
        ("a: !!bool x", "is no bool"),
        ("<<: 3", "'<<' must be followed by a mapping"),
        ("[" * 10_000, "it is nested more than 60 deep"),
        ("{a: " * 10_000, "it is nested more than 60 deep"),
        ("- " * 10_000 + "x", "it is nested more than 60 deep"),
        ("a: " + "x" * MOST_BYTES, f"a configuration has at most {MOST_BYTES} bytes"),
        ("[" + "1," * 200_000 + "1]", "it has more than 100000 values"),
        ("%YAML 9.9\n---\na: 1", "it is no YAML"),
        ("a: 1" + "0" * 5000, "is no int"),
    ],
)
def test_a_hostile_text_is_an_error_that_says_what_it_is(text, told):
    assert told in problems(text)


def test_bounds_hold_for_a_huge_file(tmp_path):
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"a: 1\n" * 2_000_000)
    with pytest.raises(ConfigError, match="has at most"):
        read_config(huge)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_what_has_no_effect_is_one_warning(tmp_path):
    file = tmp_path / "ray.yaml"
    file.write_text(RAY)
    with pytest.warns(UserWarning, match="logging_config") as caught:
        load_config(file)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    file.write_text("applications: []")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_config(file).applications == []


@given(st.text())
@example("\ufeffapplications: []")
@example("a: \ud800")
@example("? ")
@example("- &a\n- *a")
def test_any_text_is_a_configuration_or_a_config_error(text):
    try:
        parse_config(text)
    except ConfigError as error:
        told = str(error)
    else:
        told = "config"
    assert told.startswith("config")


@given(st.binary())
def test_any_bytes_are_a_configuration_or_a_config_error(data):
    with pytest.raises(ConfigError, match=r"^config"):
        parse_config(data)


_WORDS = "applications: |import_path: a:b|name: x|deployments:|<<: |!!str |rollout: canary|null|&a |*a|? |: |- |  "
_SIGNS = ["\n", "{", "}", "[", "]", ",", "'", '"', "#", "|\n", ">-\n", "---\n", "...\n", "\t"]
_FRAGMENTS = st.lists(st.sampled_from([*_WORDS.split("|"), *_SIGNS])).map("".join)


@given(_FRAGMENTS)
def test_pieces_of_configurations_are_one_or_a_config_error(text):
    try:
        schema = parse_config(text).schema
    except ConfigError as error:
        assert str(error).startswith("config")  # noqa: PT017
    else:
        parse_config(json.dumps(schema.model_dump(exclude_unset=True)))
