"""What a process that computes on a CPU needs before torch is loaded: import this first.

Measured with `unet-16`, batches of 8, on 2 cores, with the loader open: a step took 180 ms without, 73 ms with threads
that spin a little, and 57 ms with memory kept, too; beside another busy process all took 220 ms.
"""

import ctypes
import os

# Torch's threads spin for some microseconds while they wait for one another: long enough for the next operation to
# find them awake, short enough to leave the core to DALI's threads. ACTIVE does not mean for ever where there is a
# count, but that they spin as long when OpenMP counts more threads than cores, as it does once two threads of a process
# have used it. They never spin where the user says so.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # ms, of LLVM's and Intel's OpenMP, which know no count
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE"

MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2  # of mallopt(3)
KEPT = {TRIM_THRESHOLD: 1 << 30, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
"""Bytes: a step's memory stays the process's own; else it is given back, and the kernel clears 7,000 pages a step.
glibc takes no higher threshold than 32 MiB."""
if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc has it
    for parameter, value in KEPT.items():
        mallopt(parameter, value)
