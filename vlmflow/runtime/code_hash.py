"""A hash of the code that a module depends on, found by reading its imports."""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("models", "vlmflow", "components", "pipelines")
_BUILDER = re.compile(r"^((?:models|vlmflow|components)(?:\.\w+)+):\w+$")  # a builder given as a string


def module_file(module: str) -> Path | None:
    """Return the file of one of our modules; None for a name inside a module and for third-party code."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Return our modules that a file imports, at the top or in a function's body."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (match := _BUILDER.match(node.value)):
            found.add(match[1])
    return frozenset(name for name in found if name.split(".")[0] in LAYERS and module_file(name))


def import_closure(module: str) -> list[Path]:
    """Return all our files that `module` imports, directly or indirectly, sorted."""

    def walk(name: str, seen: set[Path]) -> Iterator[Path]:
        path = module_file(name)
        if path is None or path in seen:
            return
        seen.add(path)
        yield path
        for imported in imported_modules(path):
            yield from walk(imported, seen)

    return sorted(walk(module, set()))


def code_hash(module: str) -> str:
    """Return the SHA-256 of the names and contents of `import_closure(module)` and of requirements.lock."""
    digest = hashlib.sha256()
    lock = ROOT / "requirements.lock"
    for path in [*import_closure(module), *([lock] if lock.exists() else [])]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
