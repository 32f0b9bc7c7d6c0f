"""What to do about a failure: pure decisions, whose effects are elsewhere.

A *system* fault (a lost worker, node or object, a full queue, an unreachable store) may pass and is retried
a bounded number of times. A *user* error would come again and is raised at once.
"""

from dataclasses import dataclass
from enum import Enum

from cluster.errors import FencedError, RunCancelledError
from mos.errors import MosError, TryAgainError


class FaultKind(Enum):
    """Who must act on a failure."""

    SYSTEM = "system"
    """The machine room: trying again may help."""
    USER = "user"
    """Whoever wrote the spec, the data or the code: the same would happen again."""
    CANCELLED = "cancelled"
    """Nobody: it was asked for."""
    FENCED = "fenced"
    """Nobody: a newer attempt has the run."""


class Action(Enum):
    """What the supervisor does next."""

    RETRY = "retry"
    RAISE = "raise"
    STOP = "stop"


SYSTEM_ERRORS = frozenset(
    {
        "ActorDiedError",
        "ActorUnavailableError",
        "ActorUnschedulableError",
        "GetTimeoutError",
        "LocalRayletDiedError",
        "NodeDiedError",
        "ObjectFetchTimedOutError",
        "ObjectLostError",
        "ObjectReconstructionFailedError",
        "ObjectStoreFullError",
        "OutOfDiskError",
        "OutOfMemoryError",
        "OwnerDiedError",
        "RayActorError",
        "RaySystemError",
        "ReferenceCountingAssertionError",
        "RpcError",
        "WorkerCrashedError",
    }
)
"""Names of Ray's errors that speak of the machine room; by name, so that deciding needs no Ray."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how fast a run is tried again.

    Attributes:
        max_retries: Attempts after the first.
        first_wait_s: Pause before the first retry; it doubles with each further one.
        longest_wait_s: The pause never exceeds this.
    """

    max_retries: int = 3
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_retries < 0 or self.first_wait_s < 0 or self.longest_wait_s < self.first_wait_s:
            raise ValueError(f"not a retry policy: {self}")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The action, the pause before it in seconds, and a sentence for the log."""

    action: Action
    wait_s: float
    reason: str


def root_cause(error: BaseException) -> BaseException:
    """The error a worker raised, out of the wrapping that Ray puts around it."""
    cause = getattr(error, "cause", None)
    return root_cause(cause) if isinstance(cause, BaseException) else error


def classify(error: BaseException) -> FaultKind:
    """Say whose failure `error` is."""
    cause = root_cause(error)
    if isinstance(cause, RunCancelledError) or type(cause).__name__ == "TaskCancelledError":
        return FaultKind.CANCELLED
    if isinstance(cause, FencedError):
        return FaultKind.FENCED
    if isinstance(cause, MosError):
        return FaultKind.SYSTEM if isinstance(cause, TryAgainError) else FaultKind.USER
    names = {kind.__name__ for kind in type(cause).__mro__}
    return FaultKind.SYSTEM if names & SYSTEM_ERRORS or isinstance(cause, ConnectionError) else FaultKind.USER


def decide(kind: FaultKind, *, failures: int, policy: RetryPolicy) -> Decision:
    """Choose what follows the `failures`-th failure of one run, the present one included."""
    if kind is FaultKind.USER:
        return Decision(action=Action.RAISE, wait_s=0.0, reason="the same would happen again")
    if kind is not FaultKind.SYSTEM:
        return Decision(action=Action.STOP, wait_s=0.0, reason=kind.value)
    if failures > policy.max_retries:
        reason = f"failed {failures} times; the limit is {policy.max_retries} retries"
        return Decision(action=Action.RAISE, wait_s=0.0, reason=reason)
    wait_s = min(policy.first_wait_s * 2 ** (failures - 1), policy.longest_wait_s)
    return Decision(action=Action.RETRY, wait_s=wait_s, reason=f"retry {failures} of {policy.max_retries}")
