"""The errors of mos and the exit code each one ends a command with.

    MosError                    1
    |- UsageError               2   the command line contradicts itself
    |- BadInputError            3   a file, picture, prompt or setting cannot be used
    |- NotFoundError            4   a base, concept, run or file does not exist
    |- ConflictError            5   somebody else was first, or the same name means something else
    |- NotAllowedError          6   a licence, a key or a policy forbids it
    |- CheckFailedError         7   a check on data, weights or signatures failed
    |- TryAgainError            8   the outside world failed in a way that may pass
    `- JobFailedError           9   a job ended without its result

Every error takes one positional message that says which thing, what was found, what was expected and what
to do: errors travel between processes by pickling their arguments, which keyword-only constructors do not
survive.
"""


class MosError(Exception):
    """Raised for anything a person can understand and mend; its message is one clear line."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)


class UsageError(MosError):
    """Raised when options contradict each other or one is missing."""

    exit_code = 2


class BadInputError(MosError):
    """Raised when a file, picture, prompt or setting cannot be used as it is."""

    exit_code = 3


class NotFoundError(MosError):
    """Raised when a base, concept, run or file does not exist."""

    exit_code = 4


class ConflictError(MosError):
    """Raised when somebody else was first or a name already means something else."""

    exit_code = 5


class NotAllowedError(MosError):
    """Raised when a licence, a key or a policy forbids the action."""

    exit_code = 6


class CheckFailedError(MosError):
    """Raised when a check on data, weights or signatures fails."""

    exit_code = 7


class TryAgainError(MosError):
    """Raised when the outside world failed in a way that may pass."""

    exit_code = 8


class JobFailedError(MosError):
    """Raised when a job ended without its result."""

    exit_code = 9
