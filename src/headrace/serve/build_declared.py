"""The builder process of one declared application: the only one that imports the user's module to deploy it.

In: a DeclaredJob as JSON on standard input. Out: the built application (`wire.report.Built`), or what is served over
gRPC, into the file descriptor that is the only argument; reports on standard output, among whatever is printed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.serve.build import report
from headrace.serve.deployment import Application
from headrace.serve.graph import ByValue, build
from headrace.serve.grpc_options import grpc_service
from headrace.serve.target import UserCodeRaised, check_function, import_from, load_application
from headrace.spec.config_schema import ServeApplicationSchema, with_colon
from headrace.spec.errors import HeadraceError, OptionError
from headrace.spec.options import deployment_options
from headrace.spec.strategy_kinds import local_path
from headrace.wire.report import Built, Failure, Line, encode_built


class DeclaredJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be built: an application of a configuration, as plain data, or with `grpc` what is served over gRPC.

    Relative paths are from `app_dir`, where modules are found first unless the application has a working directory.
    """

    app_dir: str
    application: dict[str, Any] = {}
    grpc: dict[str, Any] | None = None
    target_capacity: float | None = None
    source: str = ""


def build_application(job: DeclaredJob) -> Built:
    """The application as it is declared. Raises HeadraceError; the working directory and the path are changed."""
    schema = ServeApplicationSchema.model_validate(job.application)
    directory = enter(schema.runtime_env, job.app_dir)
    path = with_colon(schema.import_path)
    report(Line(f"importing {path}"))
    app = load_application(path, schema.args, directory)
    compare = schema.rollout.get("compare") if isinstance(schema.rollout, Mapping) else None
    if isinstance(compare, Mapping) and compare.get("function"):
        check_function(compare["function"], "rollout.compare.function")  # or each comparison would fail, unseen
    variables = schema.runtime_env.get("env_vars") or {}
    overrides: dict[str, dict[str, Any]] = {each.name: each.overrides() for each in schema.deployments}
    if variables or job.target_capacity is not None:
        for name, options in code_options(app).items():
            own = overrides.setdefault(name, {})
            if variables:
                own.update(with_variables(own, options.environment, variables))
            if job.target_capacity is not None:
                count = deployment_options(own, options).num_replicas
                own["num_replicas"] = replicas_at(count, job.target_capacity)
    packing = ByValue()
    spec = build(
        app,
        schema.name,
        schema.route_prefix,
        schema.request_timeout_s,
        packing,
        sticky=schema.sticky,
        revision_history_limit=schema.revision_history_limit,
        labels=schema.labels,
        source=job.source or path,
        overrides=overrides,
    )
    return Built(msgspec.structs.replace(spec, config=job.application), packing.packs())


def code_options(app: Application) -> dict[str, Any]:
    """The options that the code says, by deployment."""
    return {deployment.name: deployment.options for deployment in build(app, packing=ByValue()).deployments}


def with_variables(own: Mapping[str, Any], code: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Options with the application's environment variables under those of the deployment."""
    actor = own.get("ray_actor_options")
    if actor is not None and "environment" not in own:
        theirs = actor.get("runtime_env") or {}
        merged = {**variables, **(theirs.get("env_vars") or {})}
        return {"ray_actor_options": {**actor, "runtime_env": {**theirs, "env_vars": merged}}}
    return {"environment": {**variables, **own.get("environment", code)}}


def replicas_at(count: int, capacity: float) -> int:
    """The number of replicas at so many percent of capacity, half a replica rounded up, and at least one."""
    return max(1, math.floor(count * capacity / 100 + 0.5))


def enter(runtime_env: Mapping[str, Any], app_dir: str) -> str:
    """Go to the working directory, and have packages found that the environment names. Raises OptionError."""
    base = Path(app_dir).absolute()
    for each in runtime_env.get("py_modules") or ():
        package = base / local_path(each)
        if not package.is_dir():
            raise OptionError(f"runtime_env: py_modules: there is no directory {str(package)!r}")
        import_from(str(package.parent))
    if runtime_env.get("working_dir") is None:
        return str(base)
    directory = base / local_path(runtime_env["working_dir"])
    if not directory.is_dir():
        raise OptionError(f"runtime_env: working_dir: there is no directory {str(directory)!r}")
    os.chdir(directory)
    return str(directory)


def done(job: DeclaredJob) -> bytes:
    """What the job asks for, as bytes. Raises HeadraceError."""
    if job.grpc is not None:
        import_from(job.app_dir)
        return msgspec.msgpack.encode(grpc_service(job.grpc))
    return encode_built(build_application(job))


def main(values: Sequence[str] | None = None) -> int:
    """Returns 0 when it is built, 1 when it is not; the reason was reported then."""
    (number,) = sys.argv[1:] if values is None else values
    descriptor = int(number)
    os.set_inheritable(descriptor, False)  # what the user's module starts must not keep it
    try:
        job = msgspec.json.decode(sys.stdin.buffer.read(), type=DeclaredJob)
        result = done(job)
    except UserCodeRaised as error:
        report(Failure(str(error), traceback=True))
        return 1
    except HeadraceError as error:
        report(Failure(str(error)))
        return 1
    with open(descriptor, "wb") as file:
        file.write(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
