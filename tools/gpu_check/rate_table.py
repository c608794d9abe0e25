"""What the part `rate` found, as its table, its sentences and what is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.benchmark.table import quartiles

Found = dict[str, Any]
"""What was measured of a case, as JSON has it; or "error", why it was not."""
COLUMNS = ("sets/s (quartiles)", "% of FLOP/s", "% of bytes/s", "peak GiB", "kernels", "busy %", "first step s")


def cells(measured: Found) -> list[str]:
    """A row of the table."""
    if "error" in measured:
        return [measured["error"], *["-"] * (len(COLUMNS) - 1)]
    shares = (measured[name] for name in ("flops_share", "bytes_share_estimate"))
    peak, busy = measured["peak_bytes"], measured["busy_share"]
    return [
        quartiles(measured["sets_per_sec"]),
        *("-" if share is None else f"{share:.1%}".rstrip("%") for share in shares),
        "-" if peak is None else f"{peak / 2**30:.1f}",
        f"{measured['profile']['kernels']:,.0f}",
        "-" if busy is None else f"{100 * busy:.0f}",
        f"{measured['first_step_sec']:.1f}",
    ]


def notes(found: Mapping[str, Found], late: Sequence[str]) -> Iterator[str]:
    """What each network's fastest case spends its time with, and what the columns mean."""
    whole = {name: measured for name, measured in found.items() if "error" not in measured}
    models = dict.fromkeys(name.split(",")[0] for name in whole)
    for model in models:
        of_model = {name: measured for name, measured in whole.items() if name.split(",")[0] == model}
        best = max(of_model, key=lambda name: of_model[name]["sets_per_sec"]["median"])
        profile = of_model[best]["profile"]
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in profile["kinds"].items())
        dearest = "; ".join(f"`{kernel['name'][:50]}` {kernel['share']:.0%}" for kernel in profile["dearest"][:3])
        yield f"{best}: {kinds}; the dearest: {dearest}"
    yield (
        "% of FLOP/s: those of the convolutions, forward and backward, of the fastest matrix product measured; "
        "% of bytes/s: AN ESTIMATE, every operator's inputs and outputs moved once, of a copy's rate; it is not known "
        "of compiled steps; busy: the time of all kernels of that of a step"
    )
    if late:
        how = "remove parts/rate.json and start again, which keeps what is measured"
        yield f"not measured for lack of time ({how}): {'; '.join(late)}"


def failures(found: Mapping[str, Found]) -> Iterator[str]:
    """A step must not wait for the device nor round what it keeps in float32, and has to compile."""
    for name, measured in found.items():
        if "error" not in measured and measured["profile"]["tf32"]:
            yield f"{name}: kernels round to TF32, {measured['profile']['tf32']:.1%} of their time; SSIM needs float32"
        if measured.get("waits_a_step"):
            yield f"{name}: a step waits {measured['waits_a_step']} times for the device"
        if measured.get("error", "out of memory") != "out of memory":
            yield f"{name}: {measured['error']}"
