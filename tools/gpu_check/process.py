"""A part in a process of its own: what crashes or hangs there takes nothing else along."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

try:
    import psutil
except ImportError:
    raise SystemExit("gpu_check needs psutil, which is not installed: pip install 'fgbg[bench]'") from None

from pipeline.devices import torch_device
from tools.gpu_check.context import GRACE_SEC, Context, Result
from tools.gpu_check.parts import Part
from tools.gpu_check.report import (
    DONE,
    FAILED,
    UNFINISHED,
    Record,
    circumstances,
    load_record,
    record_path,
    save_record,
)

NOTHING = Result({}, [], {}, [], [])


def run_part(part: Part, work: Path, shards: Path, planes: Path, device: str, limit_sec: float) -> Record:
    """Let a part run for so long at most; return what it found, which is kept in `work` as well.

    Its output goes to WORK/logs/NAME.log. A part that raises, crashes or is not done in time has failed; one that goes
    on where it was stopped is unfinished. Whatever it has started ends with it, and when we are interrupted.
    """
    record_path(work, part.name).unlink(missing_ok=True)
    log = work / "logs" / f"{part.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [part.module, work, shards, planes, device, limit_sec]
    started_sec, in_time = time.perf_counter(), True
    # What is compiled once serves all parts, and the next start.
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(work.resolve() / "compiled"), **os.environ}
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in a terminal reaches us alone, and the part once, from us.
        child = subprocess.Popen(
            [sys.executable, "-m", "tools.gpu_check.process", *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            child.wait(limit_sec)
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            _end(child)
    seconds = round(time.perf_counter() - started_sec, 1)
    record = load_record(work, part.name)
    if record is None:
        why = f"{_ending(child.returncode)}: {last_line(log)}" if in_time else f"stopped after {limit_sec:,.0f} s"
        status = UNFINISHED if part.resumable and not in_time else FAILED
        failures = [f"{why} (all of its output: {log})"] if status == FAILED else []
        found = {**NOTHING._asdict(), "failures": failures, **circumstances(shards, planes)}
        record = {"name": part.name, "status": status, **found}
    record["seconds"] = seconds
    save_record(work, record)
    return record


def last_line(log: Path) -> str:
    """The last line of a file that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a part and all that it has started; nothing is left to do where it has ended by itself."""
    family = []
    with suppress(psutil.Error):
        family = psutil.Process(child.pid).children(recursive=True)  # torchrun's ranks have sessions of their own
    try:
        if child.poll() is None:
            _signal(child, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SEC)
    finally:  # of a second Ctrl-C, too
        _signal(child, signal.SIGKILL)
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        child.wait()


def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(child.pid, number)


def measure(
    function: Callable[[Context], Result],
    name: str,
    work: Path,
    shards: Path,
    planes: Path,
    device: str,
    seconds: float,
) -> Record:
    """What a part finds, with the circumstances; of one that raises, that it did."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(folder, shards, planes, torch_device(device), seconds, lambda line: print(line, flush=True))
    try:
        result = function(context)
    except (Exception, SystemExit) as error:  # a package that is missing may end the process
        traceback.print_exc()
        said = str(error).strip().splitlines()
        result = NOTHING._replace(failures=[f"{type(error).__name__}: {said[-1] if said else 'no message'}"])
    status = FAILED if result.failures else DONE
    return {"name": name, "status": status, **result._asdict(), **circumstances(shards, planes)}


def main() -> None:
    """One part, with the words of `run_part`."""
    # Of what a shell starts in the background this signal is ignored, and that is inherited: by parts, too, which it
    # shall stop, and by their commands, which it tells to save their work.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, work, shards, planes, device, seconds = sys.argv[1:]
    name = module.rpartition(".")[2]

    def imported(context: Context) -> Result:
        found: Result = import_module(module).measure(context)
        return found

    save_record(Path(work), measure(imported, name, Path(work), Path(shards), Path(planes), device, float(seconds)))


if __name__ == "__main__":
    main()
