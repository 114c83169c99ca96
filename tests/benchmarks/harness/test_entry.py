"""Which cases of an entry run."""

from benchmarks.harness.case import Case
from benchmarks.harness.entry import Entry


def test_a_device_and_a_mode_have_their_cases():
    quick, full, cuda = ({"size": 1},), ({"size": 2},), ({"size": 3},)
    entry = Entry("an op", lambda device, size: Case(str(size)), quick, full, cuda)
    assert entry.arguments("cpu", full=False) == quick
    assert entry.arguments("cpu", full=True) == quick + full
    assert entry.arguments("cuda", full=False) == entry.arguments("cuda", full=True) == cuda
