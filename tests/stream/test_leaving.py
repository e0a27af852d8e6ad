"""A process that ends while a flow runs in a daemon thread."""

import subprocess
import sys

import pytest

PROGRAM = """
import threading
import dspy_stream as ds

began = threading.Event()

def told(row):
    if row.n > 300:
        began.set()
    return row

def endless():
    while True:
        rows = ds.Stream.from_iterable([{"n": n} for n in range(20_000)]).map(told)
        rows.write(ds.stream.sinks.MemorySink()).run(state=STATE, quiet=True, workers=WORKERS, fresh=True)

threading.Thread(target=endless, daemon=True).start()
assert began.wait(60)
print("ends")
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kept", [False, True])
def test_it_ends_as_if_nothing_ran(workers, kept, tmp_path):
    state = str(tmp_path / "state") if kept else None
    program = PROGRAM.replace("STATE", repr(state)).replace("WORKERS", str(workers))
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (made.returncode, made.stdout, made.stderr) == (0, "ends\n", "")
