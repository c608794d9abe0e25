import os
import subprocess
import sys

LAUNCHER = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""
RANK = """
import signal
from train.signals import end_with_launcher
signal.signal(signal.SIGTERM, lambda number, frame: print("stopped", flush=True))
end_with_launcher()
print("started", flush=True)
signal.alarm(60)
signal.pause()
"""


def test_a_rank_is_told_to_stop_when_its_launcher_is_killed() -> None:
    command = [sys.executable, "-c", LAUNCHER, RANK]
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "run"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as launcher:
        assert launcher.stdout
        assert launcher.stdout.readline() == "started\n"
        launcher.kill()
        assert launcher.stdout.read() == "stopped\n"
