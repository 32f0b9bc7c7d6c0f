"""Decisions about failures, for every kind of error that reaches a supervisor."""

import pytest
import ray.exceptions

from cluster.errors import FencedError, PendingTimeoutError, RunCancelledError
from cluster.failure import Action, FaultKind, RetryPolicy, classify, decide
from mos.errors import BadInputError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ray.exceptions.ActorDiedError(), FaultKind.SYSTEM),
        (ray.exceptions.WorkerCrashedError(), FaultKind.SYSTEM),
        (ray.exceptions.OutOfMemoryError("worker used too much"), FaultKind.SYSTEM),
        (ray.exceptions.GetTimeoutError("late"), FaultKind.SYSTEM),
        (ConnectionResetError("gone"), FaultKind.SYSTEM),
        (PendingTimeoutError("no room"), FaultKind.SYSTEM),
        (BadInputError("no pictures"), FaultKind.USER),
        (ZeroDivisionError(), FaultKind.USER),
        (RunCancelledError("asked to"), FaultKind.CANCELLED),
        (FencedError("over"), FaultKind.FENCED),
    ],
)
def test_an_error_is_laid_at_the_right_door(error: BaseException, kind: FaultKind) -> None:
    assert classify(error) is kind
    wrapped = ray.exceptions.RayTaskError("step", "traceback", error)
    assert classify(wrapped) is kind


def test_system_faults_are_retried_so_often_and_no_more() -> None:
    policy = RetryPolicy(max_retries=2, first_wait_s=1.0, longest_wait_s=1.5)
    decisions = [decide(FaultKind.SYSTEM, failures=failures, policy=policy) for failures in (1, 2, 3)]
    assert [decision.action for decision in decisions] == [Action.RETRY, Action.RETRY, Action.RAISE]
    assert [decision.wait_s for decision in decisions[:2]] == [1.0, 1.5]
    assert "the limit is 2 retries" in decisions[2].reason


@pytest.mark.parametrize(
    ("kind", "action"),
    [(FaultKind.USER, Action.RAISE), (FaultKind.CANCELLED, Action.STOP), (FaultKind.FENCED, Action.STOP)],
)
def test_nothing_else_is_ever_retried(kind: FaultKind, action: Action) -> None:
    assert decide(kind, failures=1, policy=RetryPolicy(max_retries=99)).action is action
