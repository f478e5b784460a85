"""Errors that a user can fix: the command line prints them as one sentence, every other error keeps its traceback."""


class UserError(Exception):
    """What a user can fix; each class below is also the built-in error that Python code would expect."""


class InvalidInput(UserError, ValueError):
    """A parameter, a file or a model is not what it has to be."""


class NoTextInLanguage(InvalidInput):
    """A source of text can be read, and has none in the language."""


class IncompleteText(InvalidInput):
    """A corpus, or a local copy of it, is damaged or lacks text that is needed."""


class TextUnavailable(UserError, RuntimeError):
    """A text exists but cannot be fetched from this machine; the message has the reason and the remedy."""


class MissingLanguage(UserError, KeyError):
    """A file has nothing for a language."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the quoted representation


class MissingPackage(UserError, ModuleNotFoundError):
    """An optional package is not installed; the message has the command that installs it."""


class TrainingDiverged(UserError, FloatingPointError):
    """The loss is no longer a finite number."""


class OutOfMemory(UserError, MemoryError):
    """A training run does not fit the memory; the message has the run's plan and the settings that need less."""
