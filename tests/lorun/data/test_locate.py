import pytest

from lorun.data.locate import find_data, find_photo_folders, find_training_data
from lorun.errors import ArgumentError, MissingDataError


def test_relative_names_lie_under_the_environments_folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    assert find_training_data(("photos",)) == [tmp_path / "photos"]
    assert find_data((str(tmp_path / "photos"),)) == [tmp_path / "photos"]
    monkeypatch.delenv("LORUN_DATA")
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in find_data(("photos",))] == ["photos"]


def test_what_is_missing_is_named_with_its_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match="none: no such training data; set LORUN_DATA") as caught:
        find_data(("none",), "spectral.mask")
    assert caught.value.argument == "spectral.mask"
    with pytest.raises(ArgumentError, match="data: name at least one folder") as refused:
        find_training_data(())
    assert refused.value.argument == "data"


def test_folders_of_photographs_are_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.png").touch()
    assert find_photo_folders(("photos",)) == [tmp_path / "photos"]
    with pytest.raises(ValueError, match="photo.png: expected a folder of training photographs, got a file"):
        find_photo_folders(("photos", "photo.png"))
