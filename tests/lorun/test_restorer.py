import lorun
from lorun import restorer
from lorun.tasks.cs import restorer as home


def test_it_is_importable_from_where_it_was():
    for name in ("Measurement", "Restorer"):
        assert getattr(lorun, name) is getattr(restorer, name) is getattr(home, name)
