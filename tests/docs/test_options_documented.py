"""docs/reference/options.md: every option is described, with its default, and nothing that is no option."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import msgspec
import pytest

from headrace.serve.api import RunTarget, run
from headrace.spec.cluster import ClusterOptions
from headrace.spec.config import HTTPOptions
from headrace.spec.grpc import gRPCOptions
from headrace.spec.method import MethodOptions
from headrace.spec.options import GONE, NO_EFFECT, NOT_YET, DeploymentOptions

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "options.md").read_text()
OF_DEPLOYMENT, OF_HTTP = PAGE.split("\n## Of HTTP\n")
OF_HTTP, OF_GRPC = OF_HTTP.split("\n## Of gRPC\n")
OF_GRPC, OF_CLUSTER = OF_GRPC.split("\n## Of a cluster\n")
OF_DEPLOYMENT, OF_APPLICATION = OF_DEPLOYMENT.split("\n## Of an application\n")
OF_DEPLOYMENT, OF_METHOD = re.split("\n### Of a method\n", OF_DEPLOYMENT)
OF_METHOD, REST = OF_METHOD.split("\n### ", 1)
OF_DEPLOYMENT += "\n### " + REST


def rows(text: str) -> dict[str, list[str]]:
    """Name -> the other cells of its row, for each name in the first column of the tables of `text`."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith(("| option |", "| name |")):
            first, *others = [cell.strip() for cell in line.strip("|").split(" | ")]
            for name in re.findall(r"`([a-z_]+)[`=]", first):
                found.setdefault(name, others)  # the table of what works comes first
    return found


@pytest.mark.parametrize(
    "name", ["name", "ray_actor_options", *DeploymentOptions.__struct_fields__, *NO_EFFECT, *NOT_YET, *GONE]
)
def test_every_option_of_a_deployment_is_described(name: str) -> None:
    assert name in rows(OF_DEPLOYMENT)


@pytest.mark.parametrize("name", HTTPOptions.__struct_fields__)
def test_every_option_of_http_is_described(name: str) -> None:
    assert name in rows(OF_HTTP)


@pytest.mark.parametrize("name", MethodOptions.__struct_fields__)
def test_every_option_of_a_method_is_described(name: str) -> None:
    assert name in rows(OF_METHOD)


def test_every_option_of_an_application_is_described_with_its_default() -> None:
    fields = {field.name: field for field in dataclasses.fields(RunTarget)}
    described = rows(OF_APPLICATION)

    assert described.keys() == fields.keys() - {"target", "logging_config", "external_scaler_enabled"}
    for name, (default, _) in described.items():
        assert default.strip("`").replace('"', "") == str(fields[name].default)
        assert name in inspect.signature(run).parameters


@pytest.mark.parametrize("name", gRPCOptions.__struct_fields__)
def test_every_option_of_grpc_is_described(name: str) -> None:
    assert name in rows(OF_GRPC)


@pytest.mark.parametrize("name", ClusterOptions.__struct_fields__)
def test_every_option_of_a_cluster_is_described(name: str) -> None:
    assert name in rows(OF_CLUSTER)


def test_nothing_is_described_that_is_no_option() -> None:
    keys = {"name", "ray_actor_options"}
    known = keys | {*DeploymentOptions.__struct_fields__, *NO_EFFECT, *NOT_YET, *GONE}

    assert set(rows(OF_DEPLOYMENT)) <= known
    assert set(rows(OF_METHOD)) <= set(MethodOptions.__struct_fields__)
    assert set(rows(OF_HTTP)) <= set(HTTPOptions.__struct_fields__)
    assert set(rows(OF_GRPC)) <= set(gRPCOptions.__struct_fields__)
    assert set(rows(OF_CLUSTER)) <= set(ClusterOptions.__struct_fields__)


@pytest.mark.parametrize("kind", [DeploymentOptions, MethodOptions, HTTPOptions, gRPCOptions, ClusterOptions])
def test_the_defaults_in_the_docs_are_the_real_ones(kind: type[msgspec.Struct]) -> None:
    pages = {
        DeploymentOptions: OF_DEPLOYMENT,
        MethodOptions: OF_METHOD,
        HTTPOptions: OF_HTTP,
        gRPCOptions: OF_GRPC,
        ClusterOptions: OF_CLUSTER,
    }
    described = rows(pages[kind])
    in_words = {"chosen": "None", "none": "None"}
    options = kind()
    for name in kind.__struct_fields__:
        written = described[name][0].strip("`").replace('"', "")
        default = getattr(options, name)
        if isinstance(default, msgspec.Struct):
            default = str(msgspec.structs.asdict(default)).replace("'", "")
        shown = f"{default:.12g}" if type(default) in (int, float) else str(default)
        assert in_words.get(written, written) == shown, name
