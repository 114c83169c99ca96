import pytest

from lorun.files import check_not_input, check_target, write_in_one_step


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a.txt"
    write_in_one_step(path, lambda part: part.write_text("old"))

    def fails(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_in_one_step(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, error, words in (
        ("a.jpg", ValueError, "expected a name that ends in .png or .tif"),
        ("none/a.png", FileNotFoundError, "no such folder to write a.png into"),
        ("folder.png", IsADirectoryError, "is a folder; name a file"),
    ):
        with pytest.raises(error, match=words):
            check_target(tmp_path / name, ".png", ".tif")
    check_target(tmp_path / "A.PNG", ".png")


def test_an_input_is_never_the_target(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("")
    (tmp_path / "link.png").symlink_to(path)
    for same in (path, tmp_path / "link.png"):
        with pytest.raises(ValueError, match="is the input"):
            check_not_input(same, tmp_path / "other.png", None, path)
    check_not_input(tmp_path / "new.png", path)
