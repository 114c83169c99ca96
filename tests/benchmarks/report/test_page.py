"""docs/benchmarks.md and the lines at the end of a run."""

from benchmarks.report.page import METHOD, page, terminal_lines


def test_missing_candidates_are_named_with_their_reason(run):
    lines = page({"a": run}, {"a": ()}, "c").splitlines()
    assert any("deepinv: missing, ImportError: no deepinv" in line for line in lines)
    assert "- deepinv: ImportError: no deepinv (an op)" in lines
    assert "- deepinv: ImportError: no deepinv (an op)" in terminal_lines(run)


def test_the_page_says_how_it_was_measured_and_by_what_command(run):
    text = page({"a": run}, {"a": ["speed-ups"]}, "a command")
    assert METHOD in text and "![speed-ups](benchmarks/a-speed-ups.png)" in text
    assert text.endswith("Written by `a command`.\n")
    assert "Backends of the low-rank layers" not in text
    assert "None of the results below are from a GPU." in text


def test_results_of_a_gpu_are_not_denied(layers_run):
    assert "None of the results" not in page({"a": layers_run}, {"a": ()}, "c")


def test_what_was_out_of_time_is_named(run):
    assert not any("out of time" in line for line in (*terminal_lines(run), page({"a": run}, {"a": ()}, "c")))
    run.out_of_time = ["a", "b"]
    said = "Not run, out of time: a, b."
    assert said in terminal_lines(run) and said in page({"a": run}, {"a": ()}, "c").splitlines()
