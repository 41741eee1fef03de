"""The errors that people see, each with its exit code. Nothing is imported here, so that `tagseg --help` is quick."""

from __future__ import annotations


class TagsegError(Exception):
    """An error with a message for people: what was found, what was expected, what to do next."""

    exit_code = 1


class UsageError(TagsegError):
    """A command, setting or config file that cannot be used as given."""

    exit_code = 2


class DataError(TagsegError):
    """Images, tags or masks that cannot be used as they are."""

    exit_code = 3


class EnvironmentFault(TagsegError):
    """Disk, memory, device or missing weights: the machine cannot do what was asked."""

    exit_code = 4


class IntegrityError(TagsegError):
    """Stored work that is not what was written, or training that left the numbers."""

    exit_code = 5


class Interrupted(TagsegError):
    """Ctrl-C or SIGTERM: everything finished is on disk and the same command goes on."""

    exit_code = 130
