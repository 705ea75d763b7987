"""The order of the layers: a package imports only from packages below it, anywhere in a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

import cgw

PACKAGE = Path(cgw.__file__).parent

# A module may import from its own package, and from packages with a lower level; packages of one level do not import
# each other. docs/design.md has the same order.
LEVELS = {
    "__init__": 0,  # the version
    "allocator": 0,
    "clock": 0,
    "event_ids": 0,
    "errors": 1,
    "model": 1,
    "alarm": 1,
    "durations": 1,
    "file_lock": 1,
    "lifetime": 1,
    "config": 2,
    "resolver": 2,
    "wire": 3,
    "telemetry": 4,
    "redis": 5,
    "transport": 5,
    "actors": 6,
    "events": 6,
    "limits": 6,
    "providers": 6,
    "flagging": 7,
    "gateway": 8,
    "control": 9,  # above the gateway, because its ASGI adapter runs the gateway's exchanges
    "service": 10,
    "testing": 10,
    "demo": 11,  # runs the whole service
    "cli": 12,
    "__main__": 13,
}
FORBIDDEN_IN_PACKAGE = {
    "wire": ("trio", "socket", "ssl", "asyncio", "hypercorn", "httpx"),
    "providers": ("trio", "socket", "ssl", "httpx", "h11", "cgw.transport"),
}
ONLY_IN_PACKAGE = {"sentry_sdk": "telemetry", "prometheus_client": "telemetry"}
READS_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
MAY_READ_ENVIRONMENT = {"cli"}


@frozen
class Import:
    """One imported module, by its full name."""

    module: str
    line: int


def package_of(module: str) -> str:
    """Return the package that a module of cgw belongs to: ``cgw.wire.sse`` → ``wire``, ``cgw.model`` → ``model``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def read_imports(tree: ast.AST) -> Iterator[Import]:
    """Yield all imports of a module; ``from cgw import a`` counts as ``cgw.a``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are banned"
            module = node.module or ""
            if module == "cgw":
                yield from (
                    Import("cgw" if alias.name.startswith("__") else f"cgw.{alias.name}", node.lineno)
                    for alias in node.names
                )
            else:
                yield Import(module, node.lineno)


def find_environment_reads(tree: ast.AST) -> Iterator[int]:
    """Yield the lines on which a module uses the environment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in READS_ENVIRONMENT:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in READS_ENVIRONMENT)


def explain_import(package: str, imported: Import) -> str | None:
    """Return the rule that forbids ``package`` an import, or ``None``."""
    top = imported.module.partition(".")[0]
    for forbidden in FORBIDDEN_IN_PACKAGE.get(package, ()):
        if imported.module == forbidden or imported.module.startswith(forbidden + "."):
            return f"{package} must not import {forbidden.removeprefix('cgw.')}"
    if ONLY_IN_PACKAGE.get(top, package) != package:
        return f"only {ONLY_IN_PACKAGE[top]} may import {top}"
    if top != "cgw":
        return None
    other = package_of(imported.module)
    if other not in LEVELS:
        return f"{other} has no level in the order of layers"
    if other != package and LEVELS[other] >= LEVELS[package]:
        return f"{package} must not import {other}"
    return None


def find_violations(root: Path) -> list[str]:
    """Return all violations in the tree at ``root``, as ``file:line: rule``."""
    violations = []
    for path in sorted(root.rglob("*.py")):
        module_path = path.relative_to(root)
        name = module_path.parts[0].removesuffix(".py")
        package = package_of(f"cgw.{name}")
        if package not in LEVELS:
            violations.append(f"{module_path}:1: {package} has no level in the order of layers")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for imported in read_imports(tree):
            why = explain_import(package, imported)
            if why is not None:
                violations.append(f"{module_path}:{imported.line}: {why}")
        if package not in MAY_READ_ENVIRONMENT:
            violations += [
                f"{module_path}:{line}: only cli may read the environment" for line in find_environment_reads(tree)
            ]
    return violations


def test_packages_import_only_from_packages_below() -> None:
    """No module of cgw breaks the order of the layers."""
    assert find_violations(PACKAGE) == []


def test_levels_and_packages_are_the_same() -> None:
    """Each package and module of cgw has a level, and each level belongs to one that exists."""
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert found == LEVELS.keys()


def test_the_command_line_only_passes_the_environment_on() -> None:
    """The command line uses the environment in one place, which gives it to the functions that read settings."""
    tree = ast.parse("\n".join(path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "cli").glob("*.py"))))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("_settings")
    ]
    arguments = {ast.unparse(argument) for call in calls for argument in call.args}
    assert "_read_environ(env_file)" in arguments
    assert len(list(find_environment_reads(tree))) == 1


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("wire/heads.py", "import trio", "wire must not import trio"),
        ("wire/heads.py", "from trio.lowlevel import checkpoint", "wire must not import trio"),
        ("wire/heads.py", "from cgw.transport.relay import relay", "wire must not import transport"),
        ("wire/heads.py", "import cgw.transport.relay", "wire must not import transport"),
        ("limits/a.py", "def f():\n    from cgw.actors import static", "limits must not import actors"),
        ("providers/a.py", "from cgw.transport import upstream", "providers must not import transport"),
        ("gateway/a.py", "from cgw.control.adapter import x", "gateway must not import control"),
        ("gateway/a.py", "from cgw import control", "gateway must not import control"),
        ("config/kinds.py", "from cgw.wire import messages", "config must not import wire"),
        ("model.py", "import cgw.errors", "model must not import errors"),
        ("service/a.py", "from cgw.cli import limits", "service must not import cli"),
        ("redis/a.py", "from cgw.transport import sockets", "redis must not import transport"),
        ("service/a.py", "import sentry_sdk.integrations", "only telemetry may import sentry_sdk"),
        ("gateway/a.py", "from prometheus_client import Gauge", "only telemetry may import prometheus_client"),
        ("gateway/a.py", "import os\nos.environ['A']", "only cli may read the environment"),
        ("events/a.py", "from os import getenv", "only cli may read the environment"),
        ("gateway/a.py", "import cgw.misc", "misc has no level in the order of layers"),
        ("misc/a.py", "", "misc has no level in the order of layers"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, source: str, why: str) -> None:
    """A violation of any form is reported with the rule that it breaks."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    violations = find_violations(tmp_path)
    assert [violation.partition(": ")[2] for violation in violations] == [why]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("telemetry/sentry.py", "import sentry_sdk"),
        ("control/a.py", "from cgw.gateway.exchange import run_exchange"),
        ("transport/a.py", "import trio\nfrom cgw import __version__\nfrom cgw.transport import b"),
        ("cli/process.py", "import os\nos.environ"),
        ("transport/b.py", "from cgw.telemetry import logs"),
    ],
)
def test_allowed_imports_are_not_reported(tmp_path: Path, file: str, source: str) -> None:
    """Imports from below, from the same package, and of vendors' SDKs in their package are allowed."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert find_violations(tmp_path) == []
