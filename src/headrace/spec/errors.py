"""Every error that Headrace raises, in one tree. The HTTP status stands on the class; whose fault it was is its branch.

Every error survives pickling with its arguments, its message and its attributes: an error crosses processes as it is.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """The root of the tree. `status` is the HTTP status that a client gets when this error ends its request."""

    status: int = 500

    @property
    def message(self) -> str:
        """What the error says, as its text."""
        return str(self)


class CallerError(HeadraceError):
    """The caller's fault: the request, the option or the name is wrong, and repeating it will not help."""

    status = 400


class ServingError(HeadraceError):
    """Not the caller's fault: the same call may succeed later or elsewhere."""

    status = 503


class OptionError(CallerError, ValueError):
    """An option or argument is not valid. The message names the option, the value, and what would be right."""


class OptionTypeError(CallerError, TypeError):
    """An option or argument is of the wrong type."""


class ConfigError(OptionError):
    """A configuration is not valid. The message has a line for each of the `problems`."""

    def __init__(self, message: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, problems)
        self.problems = problems

    def __str__(self) -> str:
        return str(self.args[0])


class InputError(CallerError, ValueError):
    """The input of a call is not one that can be answered. The message says what could be."""


class ImportPathError(CallerError):
    """`module:attribute` could not be imported or is not an application. The message says which part and why."""


class GraphError(CallerError, ValueError):
    """Bound deployments do not form an application (two deployments of one name, an unbound deployment, a cycle)."""


class ApplicationNotFound(CallerError, KeyError):
    """No application of this name in the instance."""

    status = 404

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DeploymentNotFound(ApplicationNotFound):
    """The application has no deployment of this name."""


class MethodNotFound(CallerError, AttributeError):
    """The deployment has no method of this name."""

    status = 404


class PayloadError(CallerError, TypeError):
    """Arguments or a result could not be turned into bytes. The message names the value and its type."""


class NotServableError(CallerError, TypeError):
    """A handler returned something that cannot be an HTTP response. The message names the type."""

    status = 500


class ModelLoadError(HeadraceError, RuntimeError):
    """A model was not loaded: its loader waits for itself, was cancelled, or its replica stops."""


class GeneratorError(CallerError, TypeError):
    """A generator method was called without `stream=True`, or a method that is none with it."""


class LoopBlockedError(CallerError, RuntimeError):
    """A blocking call was made on a running event loop, where it would stop the loop that must answer it."""


class BackPressureError(ServingError):
    """Refused: the deployment's queue is full (`max_queued_requests`), or the call would be late.

    Carries `retry_after_s` and the HTTP `status`, 503 or 429 (`backpressure_config`).
    """

    def __init__(
        self, message: str = "too many requests are waiting", retry_after_s: float = 1.0, status: int = 503
    ) -> None:
        super().__init__(message, retry_after_s, status)
        self.retry_after_s = retry_after_s
        self.status = status

    @property
    def status_code(self) -> int:
        """The status, under the name that code for Ray Serve reads."""
        return self.status

    def __str__(self) -> str:
        return str(self.args[0])


class NoSpareCapacityError(BackPressureError):
    """A copy of a request, made for a shadow, would have taken what requests need that somebody waits for."""


class DeploymentUnavailableError(ServingError):
    """The deployment has no replica that could ever take the call: it failed to deploy, or is being deleted."""


class ReplicaDiedError(ServingError):
    """The replica died while it worked on the call, and the call could not be repeated."""

    status = 502


class PoisonousRequestError(ServingError):
    """The call was in flight at two crashes of replicas: it is not tried a third time."""

    status = 500


class RequestTimeoutError(ServingError, TimeoutError):
    """The call was not answered in the time it had."""

    status = 408


class RequestCancelledError(HeadraceError):
    """The caller cancelled the call, or left."""

    status = 499


class BatchError(HeadraceError, RuntimeError):
    """A function of `@serve.batch` gave no sequence with one result for each item, or waits for itself."""


class UserCodeError(HeadraceError):
    """User code raised an error that could not cross processes as itself. Carries `type_name`, `traceback_text`."""

    def __init__(self, message: str, type_name: str = "", traceback_text: str = "") -> None:
        super().__init__(message, type_name, traceback_text)
        self.type_name = type_name
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.args[0]}" if self.type_name else str(self.args[0])


class RemoteTraceback(HeadraceError):
    """The traceback of the process where the error was raised: the `__cause__` of an error that crossed a process."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0]).rstrip()


class DeployFailedError(HeadraceError, RuntimeError):
    """The application did not come up. The message carries the replica's own traceback."""


class ResourcesShortError(DeployFailedError):
    """The machine does not have what the deployment asks for. The message names what is short."""


class RolledBackError(DeployFailedError):
    """The revision came up, and was rolled back: by its analysis, or by somebody. The message says why."""


class RolloutError(CallerError, ValueError):
    """There is no rollout that this could be told, or it cannot be told that now."""

    status = 409


class RevisionConflictError(CallerError, ValueError):
    """Somebody else deployed meanwhile: the newest revision is not the one that was expected."""

    status = 409


class RevisionNotFound(CallerError, KeyError):
    """The application has no revision of this number, or keeps it no more."""

    status = 404

    __str__ = HeadraceError.__str__


class InstanceError(HeadraceError, RuntimeError):
    """The instance is not running, is running already, does not answer, or its directory is not usable."""


class PortBusyError(InstanceError):
    """Another process listens on the port. The message names the port and, where it can be told, the process."""


class ProtocolError(HeadraceError):
    """The other end of a connection sent what the protocol does not allow. The connection is closed."""


class PeerVersionError(ProtocolError):
    """The other end speaks another version of the protocol."""
