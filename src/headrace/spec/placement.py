"""Where a replica may run and what is set aside for it there, beyond CPUs and GPUs: for engines with many nodes.

In: what users write of it in the options of a deployment, under Ray's names. Out: a Placement for the engine, or an
error that names the option, the value, and what would be right; and what of it an engine of one machine cannot do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint
from headrace.spec.values import check_number, check_plain

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
MOST_PER_NODE = 100
MOST_BYTES = 2**60
RUNTIME_ENV_KEYS = (
    "conda",
    "config",
    "container",
    "env_vars",
    "excludes",
    "image_uri",
    "java_jars",
    "mpi",
    "nsight",
    "pip",
    "py_executable",
    "py_modules",
    "rocprof_sys",
    "uv",
    "working_dir",
    "worker_process_setup_hook",
)
_OWN_OPTION = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
_ONE_MACHINE = "the local engine has one machine"
INSTALL = "install what the deployment imports in the environment that runs the instance"

# As Kubernetes has it, and Ray: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_NAME = re.compile(rf"(?:[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{{0,251}}[a-zA-Z0-9])?/)?{_LABEL}")
_LABEL_VALUE = re.compile(rf"!?{_LABEL}|!?(?:in)?\({_LABEL}(?:, ?{_LABEL})*\)|")


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica needs of the node that it is placed on; the names are Ray's (docs/reference/options.md).

    `memory` is in bytes. `resources` are custom ones, by name. Where no node is as `label_selector` wants, the first of
    `fallback_label_selectors` that fits one counts. `runtime_env` is Ray's, without `env_vars`, which every engine
    knows. `bundles` make a placement group of the replica, which runs in the first of them; `strategy` is the group's,
    and `bundle_label_selector` has one for each. `max_per_node` bounds how many of the same `group` (the key of a
    deployment) share a node; 0: no bound.
    """

    resources: dict[str, float] = {}
    memory: int = 0
    accelerator_type: str = ""
    label_selector: dict[str, str] = {}
    fallback_label_selectors: tuple[dict[str, str], ...] = ()
    runtime_env: dict[str, Any] = {}
    bundles: tuple[dict[str, float], ...] = ()
    bundle_label_selector: tuple[dict[str, str], ...] = ()
    strategy: str = "PACK"
    max_per_node: int = 0
    group: str = ""


def local_objections(placement: Placement) -> tuple[dict[str, str], str | None]:
    """What an engine of one machine makes of it: the options that have no effect there and cannot change an answer,
    each with the reason; and why it must be refused, if it must: it has an option that would change one.
    """
    ignored = {
        name: why
        for name, given, why in (
            ("accelerator_type", placement.accelerator_type, _ONE_MACHINE),
            ("fallback_strategy", placement.fallback_label_selectors, _ONE_MACHINE),
            ("label_selector", placement.label_selector, _ONE_MACHINE),
            ("max_replicas_per_node", placement.max_per_node, _ONE_MACHINE),
            ("memory", placement.memory, "the local engine does not account for memory"),
            ("runtime_env['config']", placement.runtime_env.get("config"), "the local engine builds no environments"),
            ("runtime_env['excludes']", placement.runtime_env.get("excludes"), "the local engine uploads nothing"),
        )
        if given
    }
    if placement.resources:
        return ignored, (
            f"resources={placement.resources!r} does not work on the local engine, which knows num_cpus and num_gpus "
            "alone: leave it out, or run on the Ray engine"
        )
    if placement.bundles:
        return ignored, (
            f"placement_group_bundles={list(placement.bundles)!r} does not work on the local engine: name the "
            "resources of a replica by num_cpus and num_gpus, or run on the Ray engine"
        )
    for name, value in placement.runtime_env.items():
        if value and name not in ("config", "excludes"):
            return ignored, (
                f"runtime_env: {name!r} does not work on the local engine, only 'env_vars' do: {INSTALL}, or run on "
                "the Ray engine"
            )
    return ignored, None


def custom_resources(given: Any) -> dict[str, float]:
    """`resources` of Ray: amounts by name."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"resources={given!r} must be a dict of numbers, such as {{'TPU': 1}}")
    for name, amount in given.items():
        if not isinstance(name, str) or not name:
            raise OptionTypeError(f"resources: {name!r} must be the name of a resource, such as 'TPU'")
        if name in _OWN_OPTION:
            raise OptionError(f"resources: {name!r} has an option of its own: {_OWN_OPTION[name]}={amount!r}")
        check_number(f"resources[{name!r}]", amount)
    return {name: float(amount) for name, amount in given.items() if amount}


def memory_bytes(given: Any) -> int:
    """`memory` of Ray: a number of bytes."""
    if given is None:
        return 0
    check_number("memory", given, MOST_BYTES)
    return int(given)


def accelerator(given: Any) -> str:
    """`accelerator_type` of Ray: the name of one."""
    if given is None:
        return ""
    if not isinstance(given, str):
        raise OptionTypeError(f"accelerator_type={given!r} must be a text, such as 'A100'")
    return given


def selector(given: Any, what: str = "label_selector") -> dict[str, str]:
    """A `label_selector` of Ray: what labels of a node have to be."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"{what}={given!r} must be a dict of texts, such as {{'ray.io/market-type': 'spot'}}")
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise OptionTypeError(f"{what}: {name!r}: {value!r} must be a text for a text")
        if not _LABEL_NAME.fullmatch(name):
            raise OptionError(
                f"{what}: {name!r} must be the name of a label: up to 63 letters, digits and -_. after an optional "
                "prefix and '/'"
            )
        if not _LABEL_VALUE.fullmatch(value):
            raise OptionError(
                f"{what}: {name!r}: {value!r} must be a value, '!value', 'in(one, other)' or '!in(one, other)', with "
                "values of up to 63 letters, digits and -_."
            )
    return dict(given)


def fallback(given: Any) -> tuple[dict[str, dict[str, str]], ...]:
    """`fallback_strategy` of Ray: what else would do, the best first."""
    if given is None:
        return ()
    if not _is_list(given) or not all(isinstance(each, Mapping) for each in given):
        raise OptionTypeError(f"fallback_strategy={given!r} must be a list such as [{{'label_selector': {{...}}}}]")
    for each in given:
        if set(each) != {"label_selector"}:
            raise OptionError(f"fallback_strategy: {dict(each)!r} must have 'label_selector', and nothing else")
    return tuple({"label_selector": selector(each["label_selector"], "fallback_strategy")} for each in given)


def environment_of(given: Any) -> dict[str, Any]:
    """`runtime_env` of Ray, as it is given."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"runtime_env={given!r} must be a dict, such as {{'env_vars': {{'A': '1'}}}}")
    for name in given:
        if name not in RUNTIME_ENV_KEYS:
            raise OptionError(f"runtime_env has no {name!r}: {hint(str(name), RUNTIME_ENV_KEYS)}")
    plain = {str(name): value for name, value in given.items() if value is not None}
    check_plain("runtime_env", plain)
    return plain


def bundles(given: Any) -> tuple[dict[str, float], ...]:
    """`placement_group_bundles` of Ray Serve: the resources of each, by Ray's names."""
    if given is None:
        return ()
    example = "such as [{'CPU': 1, 'GPU': 1}, {'CPU': 1}]"
    if not _is_list(given) or not all(isinstance(bundle, Mapping) for bundle in given):
        raise OptionTypeError(f"placement_group_bundles={given!r} must be a list of dicts of numbers, {example}")
    for index, bundle in enumerate(given):
        for name, amount in bundle.items():
            if not isinstance(name, str):
                raise OptionTypeError(f"placement_group_bundles: {name!r} must be the name of a resource, {example}")
            check_number(f"placement_group_bundles[{index}][{name!r}]", amount, MOST_BYTES)
        if not any(bundle.values()):
            raise OptionError(f"placement_group_bundles[{index}]={dict(bundle)!r} must hold something, {example}")
    return tuple({name: float(amount) for name, amount in bundle.items()} for bundle in given)


def bundle_selectors(given: Any, count: int) -> tuple[dict[str, str], ...]:
    """`placement_group_bundle_label_selector` of Ray Serve: one for each of `count` bundles, or one for all."""
    name = "placement_group_bundle_label_selector"
    if given is None or given == () or given == []:
        return ()
    if not _is_list(given):
        raise OptionTypeError(f"{name}={given!r} must be a list of dicts of texts")
    if not count:
        raise OptionError(f"{name}={given!r} has no sense without placement_group_bundles")
    found = tuple(selector(each, name) for each in given)
    if len(found) not in (1, count):
        raise OptionError(f"{name} has {len(found)} selectors for {count} bundles: give one for each, or one for all")
    return found if len(found) == count else found * count


def strategy(given: Any, count: int) -> str | None:
    """`placement_group_strategy` of Ray Serve."""
    if given is None:
        return None
    if not isinstance(given, str):
        raise OptionTypeError(f"placement_group_strategy={given!r} must be one of {', '.join(STRATEGIES)}")
    if given not in STRATEGIES:
        raise OptionError(f"placement_group_strategy={given!r} must be one of {', '.join(STRATEGIES)}")
    if not count:
        raise OptionError(f"placement_group_strategy={given!r} has no sense without placement_group_bundles")
    return given


def check_first_bundle(first: Mapping[str, float], needed: Mapping[str, float]) -> None:
    """The replica runs in the first bundle: it has to hold what the replica itself asks for."""
    for name, amount in needed.items():
        if first.get(name, 0.0) < amount:
            option = _OWN_OPTION.get(name, f"resources[{name!r}]")
            raise OptionError(
                f"{option}={amount:g} is more than the first of placement_group_bundles has, {first.get(name, 0):g} "
                f"{name}: the replica runs in that one"
            )


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)
