"""The build backend: setuptools, building against the torch of the environment LoRun is installed into.

pip hides that environment while it builds. Its folders are put back at the end of the path, so that what pip
installed for the build still comes first, and torch is required only if no supported one is found.
"""

import site
import sys
from importlib import metadata

from setuptools.build_meta import *  # noqa: F403

MINIMUM_TORCH = (2, 11)

sys.path += [folder for folder in site.getsitepackages() if folder not in sys.path]


def installed_torch():
    """The torch version to build against, without its local label; None if no supported one is found."""
    try:
        version = metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
    major, minor = version.split(".")[:2]
    return version if (int(major), int(minor)) >= MINIMUM_TORCH else None


def get_requires_for_build_wheel(config_settings=None):
    return [] if installed_torch() else ["torch>={}.{}".format(*MINIMUM_TORCH)]


get_requires_for_build_editable = get_requires_for_build_wheel
