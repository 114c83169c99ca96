"""The tables of a run."""

from benchmarks.report import tables


def test_a_row_for_each_peer_also_if_lorun_is_slower(run):
    head, rows = tables.summary(run)
    assert head[4:] == ["LoRun is faster by", "least-most", "slower in"]
    # Twice as fast and half as fast.
    assert rows[0] == ["an op", "LoRun", "peer", "2", "1 (0.928-1.07)", "0.5-2", "1"]


def test_missing_candidates_are_named_once_with_their_reason(run):
    run.cases[0]["missing"] = dict(run.cases[1]["missing"])
    assert tables.missing(run) == ["- deepinv: ImportError: no deepinv (an op)"]


def test_noise_and_machine(run, machine):
    assert tables.noise_line(run).startswith("Noise: LoRun against itself is 1.010 (1.002-1.018)")
    line = tables.machine_line(run)
    assert "load 0.25 at the end" in line
    run.machine = machine | {"load": None}
    assert "load unknown at the end" in tables.machine_line(run)
    for part in (
        "a processor",
        "2 threads",
        "2000 MHz",
        "torch 2.13.0",
        "gcc 12",
        "commit `abc1234`",
        "full mode",
    ):
        assert part in line


def test_disturbed_rounds_are_counted_if_there_are_some(run):
    assert "disturbed" not in tables.noise_line(run)
    run.cases[0].update(repeated=3, disturbed=None)
    run.cases[1].update(repeated=1, disturbed=2)
    said = "4 rounds were repeated because something else disturbed them; 2 disturbed ones were kept."
    assert tables.noise_line(run).endswith(said)


def test_a_part_of_the_limit_on_each_backend(run, make_candidate):
    names = ("LoRun, triton", "LoRun, reference backend", "LoRun, in place")
    run.cases[0]["candidates"].update({name: make_candidate(True, 0.002) for name in names})
    _, rows = tables.roofline(run)
    # 0.5 MB at 1 GB/s are half a millisecond; LoRun takes one.
    assert rows[0] == ["an op", "1", "LoRun", "0.5", "0.1", "memory", "0.5", "1", "50%"]
    assert rows[1] == ["an op", "1", "LoRun, triton", "0.5", "0.1", "memory", "0.5", "2", "25%"]
    assert len(rows) == len(run.cases) + 1
    assert "a bfloat16 matrix product reaches 1 GFLOP/s" in tables.limits_line(run.limits)


def test_no_text_ends_a_cell():
    assert tables.markdown(["a"], [["x | y"]])[2] == r"| x \| y |"


def test_memory_in_mebibytes(run):
    _, rows = tables.memory(run)
    assert rows[0] == ["stages", "4", "LoRun", "2", "2", "2"]
    assert rows[1] == ["stages", "4", "peer", "4", "4", "4"]
