"""Where config files are: `--config=tiny` means the project's own configs/tiny.py, from any
directory, in a clone or installed.

An installed package has them in cai_jax/packaged/configs (pyproject.toml puts them there); in a
clone they are in configs/. Files import each other as `configs.NAME`; so may a copy that a user
keeps elsewhere.
"""

from __future__ import annotations

import difflib
import pathlib
import sys

from cai_jax.errors import UserError

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# Directories that may hold ours as `configs`: the installed one, the clone's.
ROOTS = (PACKAGE / "packaged", PACKAGE.parent)


def own_root() -> pathlib.Path | None:
    """The directory that holds the project's own configs/; None where they were not installed."""
    return next((root for root in ROOTS if (root / "configs" / "default.py").is_file()), None)


def names() -> list[str]:
    """What `--config=NAME` takes without a path: every config of the project."""
    root = own_root()
    folder = root / "configs" if root else None
    paths = folder.rglob("*.py") if folder else ()
    every = (str(path.relative_to(folder).with_suffix("")) for path in paths)
    return sorted(name for name in every if not name.endswith(("__init__", "common", "zoo")))


def locate(name: str) -> pathlib.Path:
    """The file that `--config=NAME` means: that path, else the project's own config of that name.

    `tiny`, `tiny.py`, `configs/tiny.py` and `pods/llama3_8b_v5e_8x8` are all names. Raises
    UserError with the nearest one.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path.absolute()
    root, own = own_root(), pathlib.PurePosixPath(name.removeprefix("configs/"))
    if root and name and not path.is_absolute() and ".." not in own.parts:
        file = root / "configs" / own.with_name(f"{own.name.removesuffix('.py')}.py")
        if file.is_file():
            return file
    close = difflib.get_close_matches(str(own).removesuffix(".py"), names(), n=3)
    what = "is a directory" if path.is_dir() else "no such config file"
    hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(names())}"
    raise UserError(f"{name}: {what}; expected a path, or the name of one of the project's: {hint}")


def importable(file: pathlib.Path) -> None:
    """Lets `file` import its neighbours, and the project's own files, as `configs.NAME`."""
    own = own_root()
    ours = own is not None and own in file.parents
    first = [own] if ours else [pathlib.Path.cwd(), file.parent.parent]
    sys.path[:0] = [str(path) for path in first if str(path) not in sys.path]
    sys.path += [str(path) for path in (own,) if path and str(path) not in sys.path]
