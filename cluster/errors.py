"""What can go wrong on a cluster.

    MosError
    |- BadInputError
    |  `- UnsatisfiableError     resources are asked for that no node has
    |- ConflictError
    |  `- FencedError            a newer attempt of the same run has taken over
    |- NotFoundError
    |  `- RunNotFoundError       no run of that name is known
    |- TryAgainError
    |  |- RayUnavailableError    Ray does not start or does not answer
    |  |- WorkerSilentError      a worker does not answer any more
    |  `- PendingTimeoutError    resources exist but nobody released them in time
    `- JobFailedError
       |- RunCancelledError      somebody asked the run to stop
       `- WorkerLostError        workers died more often than the retry limit allows

Each takes one positional message, because Ray moves errors between processes by pickling their arguments.
"""

from mos.errors import BadInputError, ConflictError, JobFailedError, NotFoundError, TryAgainError


class UnsatisfiableError(BadInputError):
    """Raised when no node of the cluster could ever hold what is asked for."""


class FencedError(ConflictError):
    """Raised when a newer attempt of the same run has written a checkpoint meanwhile."""


class RunNotFoundError(NotFoundError):
    """Raised when no run of that name is known here."""


class RayUnavailableError(TryAgainError):
    """Raised when Ray does not start or does not answer at its address."""


class PendingTimeoutError(TryAgainError):
    """Raised when an actor waited longer for free resources than the pending timeout."""


class WorkerSilentError(TryAgainError):
    """Raised when a worker has not answered for longer than the heartbeat timeout."""


class RunCancelledError(JobFailedError):
    """Raised when a run stopped because somebody cancelled it."""


class WorkerLostError(JobFailedError):
    """Raised when a run's workers died more often than its retry limit allows."""
