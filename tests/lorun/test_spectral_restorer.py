import lorun
from lorun import spectral_restorer
from lorun.tasks.cassi import restorer as home


def test_it_is_importable_from_where_it_was():
    for name in ("SpectralRestorer",):
        assert getattr(lorun, name) is getattr(spectral_restorer, name) is getattr(home, name)
