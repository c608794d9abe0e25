"""Words for a user."""


def plural(count: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 set", "2,000 sets"; `many` where it is not `one` and an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
