"""The ways in which a run ends without success."""


class InputError(ValueError):
    """Bad usage, configuration, model or data: the command line prints the message and exits with status 2.

    The message is one or a few lines that name the value, what was expected and the remedy.
    """


class RunError(RuntimeError):
    """A run that started and could not go on: the command line prints the message and exits with status 1."""


class Terminated(BaseException):
    """SIGTERM arrived, as `ray job stop` sends it: the actors are stopped and the status is 143."""
