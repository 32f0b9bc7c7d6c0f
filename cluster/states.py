"""Every state a run can be in, what it means, and which may follow which."""

from enum import Enum


class RunState(Enum):
    """The life of a run; the value is what people and files see."""

    QUEUED = "queued"
    """Accepted; no worker has it yet."""
    RUNNING = "running"
    """A worker makes progress on it."""
    RETRYING = "retrying"
    """Its worker was lost; it goes on from the last checkpoint."""
    CANCELLING = "cancelling"
    """Somebody asked it to stop; the worker is writing its checkpoint."""
    STAGED = "staged"
    """The result lies, unsigned, in the run's private place; its owner has still to publish it."""
    DONE = "done"
    """The result is where it was asked for: published, or in the output folder."""
    CANCELLED = "cancelled"
    """Stopped on request; `mos jobs retry` goes on from its checkpoint."""
    FAILED = "failed"
    """Stopped by an error; the record says which."""

    @property
    def is_final(self) -> bool:
        """Whether the run will not change by itself any more."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({RunState.DONE, RunState.CANCELLED, RunState.FAILED})

_ENDS = frozenset({RunState.CANCELLED, RunState.FAILED, RunState.DONE})

FOLLOWERS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.RETRYING, RunState.CANCELLING, RunState.STAGED}) | _ENDS,
    RunState.RUNNING: frozenset({RunState.RETRYING, RunState.CANCELLING, RunState.STAGED}) | _ENDS,
    RunState.RETRYING: frozenset({RunState.RUNNING, RunState.CANCELLING, RunState.STAGED}) | _ENDS,
    RunState.CANCELLING: frozenset({RunState.STAGED}) | _ENDS,
    RunState.STAGED: frozenset({RunState.DONE, RunState.FAILED, RunState.QUEUED}),
    RunState.DONE: frozenset(),
    RunState.CANCELLED: frozenset({RunState.QUEUED}),
    RunState.FAILED: frozenset({RunState.QUEUED}),
}
"""State -> the states that may come next; a finished run starts again only by being queued again."""


def may_follow(state: RunState, following: RunState) -> bool:
    """Whether a run in `state` may go to `following`; staying is always allowed."""
    return state is following or following in FOLLOWERS[state]
