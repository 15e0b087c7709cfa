"""How a configuration writes strategies, sticky keys and runtime environments.

In: plain data. Out: the kinds that `spec.declared` checks it by, and the values that `spec.rollout` makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from headrace.spec.application import ImportedCode
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.kinds import Either, Field, Flag, Items, Keys, Kind, Number, Table, Tagged, Text
from headrace.spec.names import split_import_path
from headrace.spec.placement import RUNTIME_ENV_KEYS
from headrace.spec.rollout import CHECKS, STRATEGIES, Comparison, Strategy
from headrace.spec.rollout import rollout as parse_rollout

INSTALL = "install what the application imports in the environment that runs the instance"
DEFAULT_RTOL = 1e-6  # as that of serve.numeric

_TEXTS = {
    "against_baseline": "Whether the candidate must be no worse than the baseline revision.",
    "analysis": "Checks that the revision must pass.",
    "atol": "Absolute tolerance of numbers.",
    "better": "Which way is good.",
    "compare": "How answers are compared: exact, numeric, or by a function.",
    "duration_s": "How long requests are mirrored, in seconds.",
    "false_rollback": "Bound on the chance that a revision as good as the baseline is rolled back.",
    "fraction": "Share of the requests that is mirrored.",
    "hold_s": "How long the old revision is kept as it was, in seconds.",
    "max": "The most that is allowed.",
    "max_ratio": "The most that the candidate's latency may be, as a multiple of the baseline's.",
    "max_s": "The most that the latency may be, in seconds.",
    "max_surge": "Replicas beyond a deployment's number: a count, or a share as a number with a decimal point.",
    "max_unavailable": "Replicas that may be missing meanwhile: a count, or a share as a number with a decimal point.",
    "min": "The least that is allowed.",
    "min_samples": "How many requests must have been seen before the check can be passed.",
    "name": "Name of the metric, as it is reported.",
    "promote": "Whether the revision takes the traffic at the end by itself.",
    "quantile": "Which quantile of the latencies.",
    "rtol": "Relative tolerance of numbers.",
    "steps": "Pairs of weight and pause in seconds; a pause of null waits to be told.",
    "tolerance": "How much worse than the baseline's mean it may be.",
}

COMPARISON = Either(
    Text("exact", "numeric"),
    Tagged(
        "kind",
        {
            "exact": {},
            "numeric": {
                "rtol": Field(Number(0), _TEXTS["rtol"], DEFAULT_RTOL),
                "atol": Field(Number(0), _TEXTS["atol"], 0.0),
            },
            "user": {
                "function": Field(
                    Text(),
                    "`module:function` that is called with both answers.",
                    required=True,
                    check=split_import_path,
                )
            },
        },
    ),
)


class _Pairs(Kind):
    """Weights and pauses: what they say themselves is enough."""

    what = "a list of pairs of weight and pause"

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        pair = {
            "type": "array",
            "prefixItems": [{"type": "number"}, {"type": ["number", "null"]}],
            "minItems": 2,
            "maxItems": 2,
        }
        return {"type": "array", "items": pair, "minItems": 1}


def _fields(struct: type[msgspec.Struct]) -> dict[str, Field]:
    """The fields of a strategy or check, by what they hold."""
    fields = {}
    for each in msgspec.structs.fields(struct):
        default = each.default
        kind: Kind
        if each.name == "analysis":
            kind, default = ANALYSIS, msgspec.UNSET
        elif each.name == "compare":
            kind, default = COMPARISON, "exact"
        elif each.name == "steps":
            kind = _Pairs()
        elif each.name in ("name", "better"):
            kind = Text("higher", "lower") if each.name == "better" else Text()
        elif isinstance(default, bool):
            kind = Flag()
        else:
            kind = Number(whole=isinstance(default, int) and each.name == "min_samples")
        required = default is msgspec.NODEFAULT
        fields[each.name] = Field(
            kind,
            _TEXTS[each.name],
            msgspec.UNSET if required else default,
            required=required,
            nullable=default is None or each.name == "max_ratio",
        )
    return fields


ANALYSIS = Items(
    Either(Text(*CHECKS), Tagged("check", {name: _fields(check) for name, check in CHECKS.items()}, "Check"))
)
ROLLOUT = Either(
    Text(*STRATEGIES),
    Tagged("strategy", {name: _fields(strategy) for name, strategy in STRATEGIES.items()}, "Strategy"),
)
STICKY = Either(
    Text(),
    Keys(
        {
            "of": Field(Text("header", "cookie", "query"), "Where the key is.", required=True),
            "name": Field(Text(), "Name of the header, the cookie or the parameter.", required=True),
        }
    ),
)


def declared_rollout(given: Any) -> Strategy | None:
    """The strategy that a configuration names, None for none. Raises OptionError, OptionTypeError, ImportPathError."""
    if given is None:
        return None
    if isinstance(given, Mapping) and "compare" in given:
        given = {**given, "compare": _comparison(given["compare"])}
    return parse_rollout(given)


def _comparison(given: Any) -> Comparison:
    if isinstance(given, Comparison):
        return given
    fields = {"kind": given} if isinstance(given, str) else dict(given)
    if "function" in fields:
        module, name = split_import_path(fields.pop("function"))
        return Comparison(function=ImportedCode(module, name), **fields)
    if fields["kind"] == "numeric":
        fields.setdefault("rtol", DEFAULT_RTOL)
    return Comparison(**fields)


def environment_fields() -> dict[str, Field]:
    """The keys of the `runtime_env` of an application, in which it is built."""
    fields = {
        "env_vars": Field(Table(Text()), "Environment variables of the processes.", {}),
        "working_dir": Field(Text(), "Local directory to work in and to import from first.", check=local_path),
        "py_modules": Field(
            Items(Text()),
            "Local directories of packages to import.",
            [],
            check=lambda paths: [local_path(path) for path in paths],
        ),
        "config": Field(Table(Kind()), "Ray's options of setting up.", no_effect="environments are not built"),
        "excludes": Field(Items(Text()), "Files that are not uploaded.", no_effect="nothing is uploaded"),
    }
    rest = (name for name in RUNTIME_ENV_KEYS if name not in fields)
    return fields | {name: Field(Kind(), f"Ray's {name}.", refused=INSTALL) for name in rest}


def replica_environment_fields() -> dict[str, Field]:
    """The keys of the `runtime_env` of a deployment. All but `env_vars` are Ray's to make something of."""
    own = Field(Table(Text()), "Environment variables of the replicas.", {})
    rest = (name for name in RUNTIME_ENV_KEYS if name != "env_vars")
    return {"env_vars": own} | {name: Field(Kind(), f"Ray's {name}, on a Ray cluster.") for name in rest}


def local_path(given: str) -> PurePosixPath:
    """The path that it is, also as `local://` or `file://`. Raises OptionTypeError, OptionError for one elsewhere."""
    if not isinstance(given, str):
        raise OptionTypeError(f"{given!r} must be the path of a local directory")
    scheme, colon, rest = given.partition("://")
    if not colon:
        return PurePosixPath(given)
    if scheme not in ("local", "file"):
        raise OptionError(f"{given!r} does not work yet: only local directories do, and {scheme!r} is none")
    return PurePosixPath(rest)
