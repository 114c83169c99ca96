from pathlib import Path

import pytest
import tyro

from lorun.tasks.cassi.options import CASSIEval, CASSIRestore


def test_flags_are_the_fields_of_the_files_too():
    given = "--meas a.mat --mask b.mat --mask-layout hwc --range 4095 --wavelengths 400 700 --scale real"
    options = tyro.cli(CASSIRestore, args=given.split())
    assert (options.meas, options.scale) == (Path("a.mat"), "real")
    files = options.files
    assert (files.mask, files.mask_layout, files.range) == (Path("b.mat"), "hwc", 4095)
    assert files.wavelengths == (400, 700)


def test_a_protocol_is_one_of_the_fields():
    assert tyro.cli(CASSIEval, args=["--protocol", "cassi-float"]).protocol == "cassi-float"
    with pytest.raises(SystemExit):
        tyro.cli(CASSIEval, args=["--protocol", "cs"])
