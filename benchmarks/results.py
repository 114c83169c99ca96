"""The short form of a results file, which is the one to commit.

    python -m benchmarks.results FILE SHORT

leaves out the seconds of every round and what pytest-benchmark adds; medians and intervals stay.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.report.run import load


def shorten(content: dict) -> dict:
    """The short form of a results file's content."""
    commit = content["commit_info"]
    return {
        "machine_info": content["machine_info"],
        "commit_info": {"id": commit.get("id"), "dirty": commit.get("dirty")},
        "datetime": content["datetime"],
        "out_of_time": content.get("out_of_time", []),
        "benchmarks": [{"extra_info": _without_seconds(one["extra_info"])} for one in content["benchmarks"]],
    }


def _without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    return value


def write_short(content: dict, path: Path) -> None:
    """One benchmark per line, so that a diff shows which ones have changed."""
    *head, (_, benchmarks) = shorten(content).items()
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head]
    rows = ",\n".join(json.dumps(one) for one in benchmarks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + "\n".join(lines) + f'\n"benchmarks": [\n{rows}\n]\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest benchmarks --benchmark-json has written")
    parser.add_argument("short", type=Path, help="the file to write, such as benchmarks/results/MACHINE.json")
    args = parser.parse_args()
    try:
        load(args.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_short(json.loads(args.results.read_text()), args.short)


if __name__ == "__main__":
    main()
