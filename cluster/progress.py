"""What people see while something runs: one line an event, the same for a terminal, a log and `mos jobs logs`."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Event = Mapping[str, Any]


def event_line(event: Event) -> str:
    """One event as a line for people."""
    at = event.get("at")
    clock = time.strftime("%H:%M:%S ", time.localtime(at)) if at else ""
    subject = event.get("subject") or event.get("run_id", "")
    return f"{clock}{subject}  {_text(event)}".rstrip()


def _text(event: Event) -> str:
    writers: dict[str, Callable[[Event], str]] = {
        "queued": lambda e: "queued" if e.get("attempt", 1) == 1 else f"queued, attempt {e['attempt']}",
        "started": lambda e: f"training on process {e.get('pid')} from step {e.get('step')} of {e.get('steps')}",
        "step": lambda e: (
            f"step {e['step']}/{e['steps']}  loss {e['loss']:.4f}{_norm(e)}  "
            f"{e['step_s']:.2f} s a step  {_left(e)}".rstrip()
        ),
        "checkpoint": lambda e: f"checkpoint at step {e['step']}",
        "faulted": lambda e: f"stopped by {e['error']}",
        "retrying": lambda e: f"trying again: {e['reason']}",
        "cancelling": lambda _: "stopping after this step",
        "cancelled": lambda e: f"cancelled at step {e.get('step', 0)}; `mos jobs retry` goes on from there",
        "grid": lambda e: f"drew {e['name']}",
        "staged": lambda e: f"trained, {e['sha256'][:12]} is staged{_judged(e)}",
        "published": lambda e: f"published as {e['ref']}",
        "failed": lambda e: f"failed: {e['error']}",
        "fenced": lambda _: "given up: a newer attempt has this run",
    }
    writer = writers.get(str(event.get("event")))
    return writer(event) if writer else str(event.get("text") or event.get("event"))


def _judged(event: Event) -> str:
    """Which seed was kept, and the advice on a concept whose words do not carry it."""
    kept = f"; kept seed {event['seed']} of {len(event['seeds'])}" if len(event.get("seeds", ())) > 1 else ""
    return f"{kept}; warning: {event['warning']}" if event.get("warning") else kept


def _norm(event: Event) -> str:
    """Mean norm of the words' embeddings, in units of Stable Diffusion 1.x; they freeze at a bound."""
    return f"  norm {event['embedding_norm']:.2f}" if "embedding_norm" in event else ""


def _left(event: Event) -> str:
    seconds = (event["steps"] - event["step"]) * event["step_s"]
    return f"{seconds:.0f} s left" if seconds >= 1 else ""


class Terminal:
    """Writes events to a stream (stderr by default), at most one step line a run and interval."""

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 2.0) -> None:
        self._stream, self._interval_s = stream or sys.stderr, interval_s
        self._written: dict[str, float] = {}

    def __call__(self, run_id: str, event: Event) -> None:
        """Write one event of a run."""
        if event.get("event") == "checkpoint":
            return
        if event.get("event") == "step":
            now = time.monotonic()
            if now - self._written.get(run_id, 0.0) < self._interval_s:
                return
            self._written[run_id] = now
        print(event_line(event), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """Write a line of one's own."""
        print(text, file=self._stream, flush=True)
