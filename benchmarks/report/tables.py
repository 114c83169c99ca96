"""Tables of a run: Markdown for docs/ and README.md, columns for the terminal."""

from __future__ import annotations

import math

import lorun_kernels as lk
from benchmarks.harness.case import OURS, Work
from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import AGAIN
from benchmarks.harness.ratios import Ratio, geometric_mean
from benchmarks.report.run import Run, by_peer, noise

Rows = list[list[str]]

# Without the reference, which has another name: it is the definition and has no speed to show.
ON_A_BACKEND = {f"{OURS}, {backend}" for backend in lk.available_backends()}

LEGEND = (
    "A speed-up is a peer's time over LoRun's in the same rounds: above 1, LoRun is faster. It is the median "
    "over rounds of random order, with its 95 % bootstrap interval in brackets."
)


def markdown(head: list[str], rows: Rows, words: int = 1) -> list[str]:
    """A Markdown table; the first `words` columns hold text, the others figures."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(map(_escaped, cells))} |" for cells in (head, rule, *rows)] + [""]


def _escaped(cell: str) -> str:
    """The text of an error may contain what ends a cell."""
    return cell.replace("|", r"\|")


def columns(head: list[str], rows: Rows, words: int = 1) -> list[str]:
    """The same for a terminal."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    sides = [str.ljust] * words + [str.rjust] * (len(head) - words)
    cells = (zip(sides, row, widths, strict=True) for row in (head, *rows))
    return ["  ".join(side(cell, width) for side, cell, width in row).rstrip() for row in cells] + [""]


def interval(one: Ratio) -> str:
    return f"{figure(one.median)} ({figure(one.low)}-{figure(one.high)})"


def figure(value: float) -> str:
    """To three digits, without an exponent where it is large."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.3g}"


def machine_line(run: Run) -> str:
    machine = run.machine
    gpu = machine.get("gpu")
    clocks = f"{machine['cpu_mhz']:.0f} MHz" if machine["cpu_mhz"] else "clock unknown"
    load = "unknown" if machine["load"] is None else f"{machine['load']:.2f}"
    where = f"{machine['cpu']}, {clocks}, {machine['cores']} cores, {machine['threads']} threads"
    if gpu:
        where += f"; {gpu['name']}, SM {gpu['clocks.sm']} of {gpu['clocks.max.sm']}"
        where += f", driver {gpu['driver_version']}"
    return (
        f"{where}; torch {machine['torch']}, Python {machine['python']}, {machine['compiler']} "
        f"`{machine['cxx_flags']}`; commit `{run.commit}`, {run.date}, {run.mode} mode, load "
        f"{load} at the end."
    )


def noise_line(run: Run) -> str:
    """How far LoRun is from itself, and what was done about other work on the machine."""
    ratios = noise(run.cases)
    if not ratios:
        return "Noise: not measured."
    mean = geometric_mean([one for _, one in ratios])
    title, worst = max(ratios, key=lambda pair: abs(math.log(pair[1].median)))
    outside = sum(not one.low <= 1 <= one.high for _, one in ratios)
    return (
        f"Noise: LoRun against itself is {mean.median:.3f} ({mean.low:.3f}-{mean.high:.3f}), the geometric "
        f"mean of {len(ratios)} cases; the furthest from 1 is {interval(worst)}, {title}. In {outside} cases "
        "the interval excludes 1; by chance alone that happens in one of twenty." + _disturbed(run)
    )


def _disturbed(run: Run) -> str:
    repeated, stayed = (sum(case.get(key) or 0 for case in run.cases) for key in ("repeated", "disturbed"))
    if not repeated and not stayed:
        return ""
    return (
        f" {repeated} rounds were repeated because something else disturbed them; "
        f"{stayed} disturbed ones were kept."
    )


def limits_line(limits: Limits) -> str:
    sizes = sorted(limits.copy)
    copies = ", ".join(f"{limits.copy[size] / 1e9:.1f} for {_bytes(size)}" for size in (sizes[0], sizes[-1]))
    return (
        f"Limits of this machine, measured in the same run: a copy moves {copies} (GB/s, counting everything "
        f"read and written), and a {limits.dtype} matrix product reaches {limits.flops_per_s / 1e9:.0f} "
        "GFLOP/s."
    )


def _bytes(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"


def case_table(case: dict) -> tuple[list[str], Rows]:
    """Every candidate of a case, and those that are missing."""
    candidates = case["candidates"]
    against = {record["peer"]: record for record in case["ratios"]}
    sized = [
        (title, key)
        for title, key in (
            ("weights MiB", "parameter_bytes"),
            ("kept MiB", "kept_bytes"),
            ("peak MiB", "peak_bytes"),
        )
        if any(one[key] is not None for one in candidates.values())
    ]
    head = ["candidate", "median ms", "quartiles", "per s", "rounds", "speed-up of LoRun"]
    rows = []
    for name, one in candidates.items():
        low, high = map(milliseconds, one["quartiles_s"])
        cells = [
            _title(name, one),
            milliseconds(one["median_s"]),
            f"{low}-{high}",
            f"{one['images_per_s']:.3g}",
        ]
        cells += [str(one["rounds"]), _against(against.get(name))]
        rows.append(cells + [mebibytes(one[key]) for _, key in sized])
    noise = against[AGAIN]
    rows.append(["LoRun again (noise)", "", "", "", str(noise["rounds"]), interval(Ratio.of(noise))])
    rows += [[f"{name}: missing, {why}", *[""] * 5] for name, why in case["missing"].items()]
    head += [title for title, _ in sized]
    return head, [row + [""] * (len(head) - len(row)) for row in rows]


def _title(name: str, candidate: dict) -> str:
    return f"{name} ({candidate['unlike']})" if candidate["unlike"] else name


def _against(record: dict | None) -> str:
    if record is None:
        return ""
    of = "" if record["ours"] == "LoRun" or record["ours"].startswith("LoRun-") else f" of {record['ours']}"
    return interval(Ratio.of(record)) + of


def summary(run: Run) -> tuple[list[str], Rows]:
    """A row for each group and peer: the geometric mean over the cases, and how many of them LoRun loses."""
    head = ["group", "LoRun's", "peer", "cases", "LoRun is faster by", "least-most", "slower in"]
    rows = []
    for group, ours, peer, ratios in by_peer(run):
        medians = [one.median for one in ratios]
        spread = f"{figure(min(medians))}-{figure(max(medians))}" if len(ratios) > 1 else ""
        # Beyond noise: the whole interval is below 1.
        slower = sum(one.high < 1 for one in ratios)
        found = next(case["candidates"] for case in run.groups[group] if peer in case["candidates"])
        cells = [group, ours, _title(peer, found[peer]), str(len(ratios))]
        rows.append([*cells, interval(geometric_mean(ratios)), spread, str(slower or "")])
    return head, rows


def missing(run: Run) -> list[str]:
    """Each missing candidate once, with its reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in run.cases:
        for name, why in case["missing"].items():
            found.setdefault((name, why), []).append(case["group"])
    return [f"- {name}: {why} ({', '.join(dict.fromkeys(groups))})" for (name, why), groups in found.items()]


def out_of_time(run: Run) -> list[str]:
    return [f"Not run, out of time: {', '.join(run.out_of_time)}."] if run.out_of_time else []


def memory(run: Run) -> tuple[list[str], Rows]:
    """Memory in the cases whose peak is measured: weights, what is kept for backward, and the peak."""
    head = ["group", "case", "candidate", "weights MiB", "kept for backward MiB", "peak MiB"]
    keys = ("parameter_bytes", "kept_bytes", "peak_bytes")
    rows = [
        [case["group"], case["title"], name, *(mebibytes(one[key]) for key in keys)]
        for case in run.cases
        for name, one in case["candidates"].items()
        if one["peak_bytes"] is not None
    ]
    return head, rows


def roofline(run: Run) -> tuple[list[str], Rows]:
    """The speed of ours, by default and on each backend, as a fraction of the limit that binds it."""
    head = ["group", "case", "candidate", "MB", "MFLOP", "bound by", "limit ms", "median ms", "of the limit"]
    limited = [case for case in run.cases if case["work"]] if run.limits else []
    return head, [row for case in limited for row in _parts_of_the_limit(case, run.limits)]


def _parts_of_the_limit(case: dict, limits: Limits) -> Rows:
    work = Work(**case["work"])
    least = limits.seconds(work)
    before = [case["group"], case["title"]]
    figures = [f"{work.bytes / 1e6:.3g}", f"{work.flops / 1e6:.3g}", limits.binds(work), milliseconds(least)]
    return [
        [*before, name, *figures, milliseconds(median), f"{least / median:.0%}"]
        for name, median in _on_backends(case).items()
    ]


def _on_backends(case: dict) -> dict[str, float]:
    """Medians of the first of ours and of those on a backend; other forms move other bytes."""
    ours = {name: one["median_s"] for name, one in case["candidates"].items() if one["ours"]}
    first = next(iter(ours))
    return {name: median for name, median in ours.items() if name == first or name in ON_A_BACKEND}
