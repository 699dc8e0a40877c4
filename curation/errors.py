"""The few error types, named by how to react."""


class GradusError(Exception):
    """Base of the errors that Gradus raises on purpose; the command line prints them without a traceback."""


class UserError(GradusError):
    """Fix the recipe or the command: the message says what, where, and what to type."""


class DataError(GradusError):
    """These rows or files cannot be used: the message says which, and what was kept."""


class TransientError(GradusError):
    """Try again later (network, a lock held by another process)."""


class DriftError(GradusError):
    """The same inputs gave other bytes: names the table and the file."""
