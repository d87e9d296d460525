"""Which of the repository's files a module stands on, found by reading its imports."""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("models", "vlmflow", "components", "pipelines")
_PLACE = re.compile(r"^((?:models|vlmflow|components)(?:\.\w+)+):\w+$")  # a builder named as text


def file_of(module: str) -> Path | None:
    """The file of one of our modules, or None for a name inside a module and for other people's code."""
    place = ROOT.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.exists():
            return path
    return None


@cache
def imports(path: Path) -> frozenset[str]:
    """Our modules that `path` imports anywhere in it, in a function's body too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (match := _PLACE.match(node.value)):
            found.add(match[1])
    return frozenset(name for name in found if name.split(".")[0] in FLOORS and file_of(name))


def closure(module: str) -> list[Path]:
    """Every file of ours that running `module` can reach, sorted."""

    def walk(name: str, seen: set[Path]) -> Iterator[Path]:
        path = file_of(name)
        if path is None or path in seen:
            return
        seen.add(path)
        yield path
        for imported in imports(path):
            yield from walk(imported, seen)

    return sorted(walk(module, set()))


def code_hash(module: str) -> str:
    """sha256 over the names and contents of `closure(module)` and the lock of what is installed."""
    digest = hashlib.sha256()
    lock = ROOT / "requirements.lock"
    for path in [*closure(module), *([lock] if lock.exists() else [])]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
