"""The peak of one call, whatever was held before it."""

import json
import subprocess
import sys

import pytest

from benchmarks.fusion_cost import cost_of, reset_peak

MB = 10**6


def hold(megabytes: int) -> int:
    return len(bytearray(b"x") * (megabytes * MB))


def test_a_call_is_charged_its_own_peak_and_not_an_earlier_one() -> None:
    hold(300)
    cost, length = cost_of(lambda: hold(100))
    assert length == 100 * MB
    assert cost.peak_mb == pytest.approx(100, rel=0.1)
    assert cost_of(lambda: None)[0].peak_mb == pytest.approx(0, abs=5)


def test_a_child_does_not_inherit_its_parents_peak() -> None:
    hold(600)
    program = "from benchmarks.fusion_cost import *; reset_peak(); print(peak_mb())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < 200


def test_the_mark_is_set_back_to_what_is_held() -> None:
    kept = bytearray(b"x") * (50 * MB)
    hold(200)
    held = reset_peak()
    assert held is not None
    assert held > len(kept) / MB
