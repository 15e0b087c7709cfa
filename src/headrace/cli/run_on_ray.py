"""`headrace run module:app --engine ray`: the application is built here and deployed on a Ray cluster, where it stays.

In: arguments, a screen. Out: an instance, if none ran; the application on it; where it answers on each node, and the
exit code: 0 once it is ready, 1 when it does not come up, 130 after Ctrl-C, upon which what was asked for goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.cli.building import build
from headrace.cli.cluster import cluster
from headrace.cli.exits import DONE, FAILED, INTERRUPTED
from headrace.cli.instance import ask, mean, running_at, whoami
from headrace.cli.shutdown import end_on_ray
from headrace.cli.start import start_instance
from headrace.cli.status import listening
from headrace.engine.directory import InstanceDirectory
from headrace.engine.site import RaySite
from headrace.serve.driver import driver
from headrace.spec.errors import HeadraceError, OptionError
from headrace.spec.status import ServeStatus
from headrace.wire.control import Deploy, Deployed, GetStatus, Status
from headrace.wire.report import Built, Failure, Line, Ready

if TYPE_CHECKING:
    from headrace.cli.run import Screen


def run_on_ray(arguments: argparse.Namespace, meant: RaySite, screen: Screen) -> int:
    """Returns an exit code. Raises OptionError, InstanceError before anything is started."""
    if arguments.reload:
        raise OptionError(
            "--reload has no effect with --engine ray: develop on this machine (--engine local), and deploy what works"
        )
    cluster(arguments, meant)
    mean(meant)
    screen.say(f"headrace {__version__} · {meant}")
    asked = False
    try:
        running = meant.find()
        built = build(arguments, meant.name, lambda line: screen.report(Line(line)))
        screen.report(
            Line("starting the instance" if running is None else "the instance runs already: deploying on it")
        )
        asked = True
        directory = start(arguments, meant, screen)
        deployed = deploy(built, screen)
    except KeyboardInterrupt:
        goes_on = f"what had begun goes on: `headrace status{meant.flags()}` shows it"
        screen.say(f"interrupted: {goes_on if asked else 'nothing was started'}")
        return INTERRUPTED
    except HeadraceError as error:
        screen.release()
        screen.report(Failure(str(error)))
        if asked and running is None:
            give_up(meant, screen, arguments.name)
        return FAILED
    ready(deployed, built, state(directory), meant, screen)
    return DONE


def start(arguments: argparse.Namespace, meant: RaySite, screen: Screen) -> InstanceDirectory:
    """See to it that the instance runs and listens; where it does otherwise than the arguments say, that is told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        start_instance(arguments, meant)
    for warning in told:
        screen.report(Line(str(warning.message)))
    return running_at(meant)


def deploy(built: Built, screen: Screen) -> Deployed:
    """The answer once the application is ready, with progress meanwhile. Raises DeployFailedError, RolledBackError."""
    answer = driver().ask(
        Deploy(built.spec, packs=built.packs, by=whoami(None)), on_progress=lambda line: screen.report(Line(line))
    )
    if not isinstance(answer, Deployed):
        raise HeadraceError(f"the controller answered Deploy with {type(answer).__name__}")
    return answer


def give_up(meant: RaySite, screen: Screen, name: str) -> None:
    """End the instance that was started for an application that does not come up, unless there is another on it."""
    with contextlib.suppress(HeadraceError):
        directory = meant.find()
        if directory is not None and state(directory).applications.keys() <= {name}:
            end_on_ray(meant)
            screen.say("the instance that was started for it has ended")


def ready(deployed: Deployed, built: Built, status: ServeStatus, meant: RaySite, screen: Screen) -> None:
    """Say where it answers, and how to go on: it stays when this command has ended."""
    prefix = built.spec.route_prefix
    places = listening(status) if prefix is not None else []
    screen.report(Ready(deployed.app, deployed.revision, prefix, places[0] if places else ""))
    for place in places[1:]:
        screen.say(f"  {place}{prefix}")
    flags = meant.flags()
    screen.say(f"it goes on from here: `headrace status{flags}` shows it, `headrace shutdown{flags}` ends it")


def state(directory: InstanceDirectory) -> ServeStatus:
    """The state of the instance."""
    answer = ask(directory, GetStatus())
    if not isinstance(answer, Status):
        raise HeadraceError(f"the controller answered GetStatus with {type(answer).__name__}")
    return answer.status
