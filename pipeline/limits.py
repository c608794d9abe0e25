"""The largest values of settings that several commands have: far above any use, below what ends in an overflow."""

MOST_SEED = 2**63 - 1
"""PyTorch's and NumPy's generators take as much."""
MOST_COUNT = 10**12
"""Of sets, steps and whatever else is counted."""
MOST_BATCH = 65_536
"""Sets a batch."""
MOST_EDGE = 4_096
"""Height and width of what is loaded, trained and made, pixels."""
MOST_WORKERS = 1_024
"""Threads or processes."""
MOST_PREFETCH = 1_024
"""Batches under way."""
