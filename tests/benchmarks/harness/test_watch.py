"""What counts as disturbed, and how often it is repeated."""

from benchmarks.harness.watch import Probe, Watch


def test_disturbed_rounds_are_repeated_while_patience_lasts():
    answers = iter([False, True, False, False])  # before, after; before, after
    watch = Watch(lambda: next(answers), patience=10.0)
    played = []
    assert watch.undisturbed(lambda: played.append(1) or len(played)) == 2
    assert (watch.repeated, watch.disturbed) == (1, 0)

    impatient = Watch(lambda: True, patience=0.05)
    assert impatient.undisturbed(lambda: 7) == 7
    assert (impatient.repeated, impatient.disturbed) == (0, 1)


def test_a_probe_is_disturbed_if_it_is_slower_than_at_its_best(monkeypatch):
    probe = Probe()
    now = 1.0
    monkeypatch.setattr("benchmarks.harness.watch._seconds", lambda work: now)
    for work in probe._fastest:
        probe._fastest[work] = 1.0
    assert not probe.disturbed()
    now = 1.5
    assert probe.disturbed()
    now = 0.9
    assert not probe.disturbed()
    now = 1.2
    assert probe.disturbed()  # against the new best
