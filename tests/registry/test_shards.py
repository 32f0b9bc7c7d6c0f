"""Catalogue files are read by the caller's thread alone: a pool of Arrow's can abort a command that just ended."""

import subprocess
import sys

SCRIPT = """
import os
import pyarrow as pa
from mos.concept import ConceptRef
from registry.shards import EMBEDDING_SCHEMA, encode, owners_in, read_concept, read_owner, read_table

keys = [(f"owner-{number // 100:03d}", f"concept-{number:05d}", 1) for number in range(20_000)]
blank = {"dim": 0, "scales": [], "codes": b""}
records = [dict(zip(("owner", "concept", "version"), key, strict=True), **blank) for key in keys]
data = encode(pa.Table.from_pylist(records, schema=EMBEDDING_SCHEMA))
before = len(os.listdir("/proc/self/task"))
assert read_table(data).num_rows == 20_000
assert [one["concept"] for one in read_concept(data, ConceptRef("owner-100", "concept-10042"))] == ["concept-10042"]
assert [one["concept"] for one in read_owner(data, "owner-199")] == [f"concept-{n}" for n in range(19_900, 20_000)]
assert read_owner(data, "nobody") == []
assert len(owners_in(data)) == 200
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_a_catalogue_starts_no_threads_and_finds_what_is_there():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
