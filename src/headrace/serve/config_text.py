"""Configurations as text: YAML with comments for people, and the JSON Schema for editors.

In: schemas as plain data, specifications of applications. Out: text that `config_file` reads back as the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.spec.application import ApplicationSpec, DeploymentSpec
from headrace.spec.config_schema import ServeDeploySchema
from headrace.spec.options import DeploymentOptions

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> str:
    """The published JSON Schema of configuration files."""
    schema = ServeDeploySchema.model_json_schema()
    head = {
        "$schema": DIALECT,
        "title": "A configuration of Headrace",
        "description": "The applications of an instance, for `headrace deploy FILE`. Ray Serve's files are such files.",
    }
    return json.dumps({**head, **schema}, indent=2) + "\n"


def written_config(config: Mapping[str, Any]) -> str:
    """The configuration as YAML, its keys in their order."""
    import yaml

    text: str = yaml.safe_dump(
        dict(config), sort_keys=False, allow_unicode=True, default_flow_style=False, width=120, indent=2
    )
    return text


def written_build(specs: Sequence[tuple[str, ApplicationSpec]]) -> str:
    """A configuration of what these applications declare in their code, by import path, with comments."""
    lines = [
        "# What the applications declare in their code. `headrace deploy FILE` deploys it.",
        "applications:",
    ]
    for path, spec in specs:
        lines += _block({"name": spec.name, "route_prefix": spec.route_prefix, "import_path": path}, "- ", "  ")
        lines.append("  # Options here take the place of those in the code; what is left out is as the code says.")
        lines.append("  deployments:")
        for deployment in spec.deployments:
            lines += _block(declared_options(deployment), "  - ", "    ")
            if deployment.options.max_ongoing_requests is None:
                chosen = f"max_ongoing_requests: {deployment.max_ongoing_requests}"
                lines.append(f"    # {chosen} (chosen by the kind of its methods)")
    return "\n".join(lines) + "\n"


def _block(data: Mapping[str, Any], first: str, others: str) -> list[str]:
    lines = written_config(data).splitlines()
    return [f"{first}{lines[0]}", *(f"{others}{line}" for line in lines[1:])]


def declared_options(deployment: DeploymentSpec) -> dict[str, Any]:
    """The options that the code says otherwise than by default, and the number of replicas, as a configuration."""
    found: dict[str, Any] = {"name": deployment.name, "num_replicas": deployment.options.num_replicas}
    default = DeploymentOptions()
    for name in DeploymentOptions.__struct_fields__:
        value = getattr(deployment.options, name)
        if value == getattr(default, name) or name in found:
            continue
        found[name] = msgspec.to_builtins(value)
    if deployment.options.request_router_config is not None:
        router = found["request_router_config"]  # the rest is filled in when an application is built
        found["request_router_config"] = {
            name: router[name] for name in ("request_router_class", "request_router_kwargs")
        }
    return found
