"""What the tests of the readers share: a file to read, and what a refusal says."""

import pytest
import scipy.io


def mat(path, **arrays):
    scipy.io.savemat(path, arrays)
    return path


def refused(words, read, *args, **options):
    """The whole message of a ValueError that matches `words`."""
    with pytest.raises(ValueError, match=words) as caught:
        read(*args, **options)
    return str(caught.value)
