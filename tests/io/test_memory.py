"""Memory goes back to the system."""

import subprocess
import sys

PROGRAM = """
import torch
from rlaif.io import release_free_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

kept = []
for _ in range(200):  # many blocks of 1 MB, then every second one is freed: holes that the heap keeps
    blocks = [torch.ones(2**18 - 64) for _ in range(2)]
    kept.append(blocks[1])
del blocks
full = resident()
kept = kept[-1:]
before = resident()
release_free_memory()
print(full, before, resident())
"""


def test_freed_tensors_leave_the_process():
    # A fixed threshold keeps the blocks on the heap, as glibc's own does after a while.
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={"MALLOC_MMAP_THRESHOLD_": str(2**24), "MALLOC_TRIM_THRESHOLD_": str(2**40), "PYTHONPATH": "."},
    ).stdout
    full, before, after = map(int, out.split())
    assert before > full - 20 * 2**20, "without the call the process keeps what it has freed"
    assert after < before - 150 * 2**20
