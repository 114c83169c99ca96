"""What it takes to switch the adapters of a network, and to load it: time and peak memory.

python -m benchmarks.studies.switching
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import lorun
from lorun.adapters import add_adapters, get_adapters
from lorun.checkpoint import save_network
from lorun.networks import build_network, network_config

MODEL = "cs25-unet-lorun9"
ROUNDS = 50

# A network in which tensors, not Python objects, are what takes memory.
WIDE = network_config("cs", width=112, variant="lorun")

# Run in a process of its own. The pages of the file that is read are the system's, and not counted.
LOAD = """
import pathlib, sys, threading
import torch
import lorun
from lorun.checkpoint import load_network

def now():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    global most
    while not done.wait(0.0005):
        most = max(most, now())

lorun.create_model("cs25-unet-lorun9")
done, most = threading.Event(), 0
before = now()
watcher = threading.Thread(target=watch)
watcher.start()
net, _, _ = load_network(sys.argv[1])
done.set()
watcher.join()
print(max(most, now()) - before, sum(p.numel() * p.element_size() for p in net.parameters()))
"""


def switch_times() -> list[float]:
    """Milliseconds of each switch between two sets of adapters."""
    net = lorun.create_model(MODEL)
    other = get_adapters(net)
    add_adapters(net, "other", other)
    times = []
    for round in range(ROUNDS):
        started = time.perf_counter()
        lorun.set_adapters(net, "other" if round % 2 == 0 else "default")
        times.append(1e3 * (time.perf_counter() - started))
    return times


def sizes_on_disk() -> tuple[int, int]:
    """Bytes of a directory with base and adapters, and of the parameters in it."""
    net = lorun.create_model(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        lorun.save_adapters(net, folder, base=True)
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
    return written, sum(p.numel() * p.element_size() for p in net.parameters())


def loading_memory() -> tuple[int, int]:
    """The most bytes that loading a network takes, sampled every 0.5 ms, and those of its parameters."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.safetensors"
        save_network(build_network(WIDE), WIDE, path)
        said = subprocess.run(
            [sys.executable, "-c", LOAD, str(path)], check=True, capture_output=True, text=True
        ).stdout
    most, parameters = map(int, said.split())
    return 1024 * most, parameters


def main() -> None:
    torch.set_num_threads(1)
    times = switch_times()
    low, _, high = statistics.quantiles(times, n=4)
    print(f"switching {MODEL}: {statistics.median(times):.2f} ms (quartiles {low:.2f}-{high:.2f})")
    written, held = sizes_on_disk()
    print(f"on disk with its base: {written:,} bytes, {written / held:.3f} times its parameters")
    added, parameters = loading_memory()
    print(f"loading one of width 112: at most {added:,} bytes, {added / parameters:.3f} times its parameters")


if __name__ == "__main__":
    main()
