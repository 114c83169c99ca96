"""Errors that know which argument they are about, so that the command line can name its flag."""


class ArgumentError(ValueError):
    """A wrong argument. The message names it, and says what was expected, what came and what to do.

    Attributes:
        argument: its name in Python; the command line adds the flag that sets it.
    """

    def __init__(self, argument: str, message: str):
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.argument, str(self))


class MissingDataError(FileNotFoundError):
    """A file or folder of training data that does not exist; `argument` names the setting that lists it."""

    def __init__(self, argument: str, message: str):
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.argument, str(self))
