"""The one exception that a user sees: a single line that says what is wrong and what to do."""


class UserError(Exception):
    """Bad input from outside (a file, a flag, a config field). `main` prints its text on one line and exits with code 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def located(path, line: int | None = None, field: str | None = None) -> str:
    """`file:line: field` as far as they are known, the head of every message about a data file."""
    where = str(path) if line is None else f"{path}:{line}"
    return where if field is None else f"{where}: field '{field}'"
