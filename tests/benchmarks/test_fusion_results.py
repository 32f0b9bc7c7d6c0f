"""Measuring a part again keeps the other rows and says where they come from."""

import json
from pathlib import Path

import pytest

from benchmarks import fusion


def test_rows_not_measured_again_name_their_commit_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "RESULTS", tmp_path)
    assert fusion.kept_rows(set()) == []
    rows = [
        {"name": name, "value": 1.0, "unit": "MB", "goal": "<= 2", "how": how, "holds": True}
        for name, how in (("new", "x"), ("kept", "y"), ("older", "z; measured at abc"))
    ]
    (tmp_path / "fusion.json").write_text(json.dumps({"commit": "def", "rows": rows}))
    kept = fusion.kept_rows({"new"})
    assert [(row.name, row.how) for row in kept] == [("kept", "y; measured at def"), ("older", "z; measured at abc")]
    assert kept[0].holds is True
