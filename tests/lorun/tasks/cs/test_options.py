import tyro

from lorun.tasks.cs.options import CSEval, CSRestore


def test_flags_are_the_fields():
    assert tyro.cli(CSRestore, args=["--ratio", "0.1"]).ratio == 0.1
    assert tyro.cli(CSEval, args=[]).protocol == "cs"
