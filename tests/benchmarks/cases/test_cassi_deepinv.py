"""The cases with deepinv's CASSI: in the sizes for which it is right, its model is ours at its step."""

import pytest

from benchmarks.cases import cassi_deepinv
from benchmarks.harness.case import OURS
from benchmarks.peers import deepinv_cassi
from benchmarks.peers.packages import package
from benchmarks.table import entry


class TestDeepinv:
    """deepinv's model, at its step, is ours if its shear is right."""

    OPERATIONS = ["forward", "adjoint", "pgd", "hqs"]

    @pytest.fixture(autouse=True)
    def deepinv(self):
        try:
            package("deepinv")
        except ImportError as error:
            pytest.skip(str(error))

    @pytest.mark.parametrize("height, width, bands", [(5, 7, 3), (3, 4, 4), (1, 8, 2)])
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_odd_sides_are_equal(self, operation, height, width, bands, measured):
        case = cassi_deepinv.operation(operation, "cpu", height, width, batch=2, bands=bands)
        assert set(measured(case)["candidates"]) == {OURS, "deepinv"}

    @pytest.mark.parametrize("height, width", [(6, 7), (5, 8)])
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_even_sides_are_not(self, operation, height, width, measured):
        with pytest.raises(AssertionError, match=r"deepinv, result 0: .* from ours"):
            measured(cassi_deepinv.operation(operation, "cpu", height, width, bands=3))

    def test_more_bands_than_columns_are_missing(self, measured):
        case = cassi_deepinv.operation("forward", "cpu", 5, 3, bands=5)
        assert measured(case)["missing"]["deepinv"].startswith("IndexError")

    def test_its_cases_are_where_it_is_right(self):
        for operation in self.OPERATIONS:
            name = operation.upper() + " step" if len(operation) == 3 else operation
            of = entry(f"CASSI {name}, deepinv's step")
            for one in (*of.quick, *of.full, of.tiny):
                bands = one.get("bands", 28)
                assert one["height"] % 2 and (one["width"] + bands - 1) % 2 and one["width"] >= bands


def test_without_deepinv_it_is_missing(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(deepinv_cassi, "package", absent)
    case = cassi_deepinv.operation("forward", "cpu", 5, 7, bands=3)
    assert list(case.candidates) == [OURS]
    assert case.missing == {"deepinv": "ImportError: No module named 'deepinv'"}
