"""The documents are true: names and links exist, and generated pages are up to date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cgw.cli.main import cli
from cgw.config.declare import list_group_classes, list_variables, match_template
from cgw.config.describe import describe_settings
from cgw.service.reference_settings import REFERENCE_SETTINGS
from cgw.service.settings import Settings
from docs import generate_metrics
from docs.generate_settings import PAGE, build_page

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NOT_SETTINGS = {*REFERENCE_SETTINGS, "CODY_GATEWAY_PORT"}
"""Names that the documents mention, and that cgw does not read."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read_prose(page: Path) -> str:
    """Return ``page`` without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def read_code(page: Path) -> Iterator[str]:
    """Yield every piece of inline code, and every line of indented blocks and of blocks fenced as shell."""
    prose = read_prose(page)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))
    yield from (line.strip() for line in prose.splitlines() if line.startswith("    "))
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language == "sh":
            yield from block.splitlines()


def slugs_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_settings_page_is_up_to_date() -> None:
    """``docs/settings.md`` matches the declared settings; ``python -m docs.generate_settings`` rewrites it."""
    assert PAGE.read_text("utf-8") == build_page(), "run: python -m docs.generate_settings"


def test_the_metrics_page_is_up_to_date() -> None:
    """``docs/metrics.md`` matches the declared metrics; ``python -m docs.generate_metrics`` rewrites it."""
    page = generate_metrics.PAGE.read_text("utf-8")
    assert page == generate_metrics.build_page(), "run: python -m docs.generate_metrics"


def test_every_setting_is_on_the_settings_page() -> None:
    """The generated page lists every setting."""
    listed = re.findall(r"^\| `([\w<>]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert listed == [row.name for row in describe_settings(Settings())]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link leads to an existing file, and to one of its headings."""
    for target in LINK.findall(read_prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in slugs_of(linked), f"{page.name} links to {target}"


@each_page
def test_commands_exist(page: Path) -> None:
    """Each ``cgw …`` in a document is an existing command with existing options."""
    for code in read_code(page):
        if not code.startswith("cgw ") or not code[4:5].islower():
            continue
        command: click.Command = cli
        words = code.partition("#")[0].split()[1:]
        while isinstance(command, click.Group):
            assert words, f"{page.name}: {code} is an incomplete command"
            name = words.pop(0)
            assert name in command.commands, f"{page.name}: {code}"
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        named = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert named <= known | {"--help"}, f"{page.name}: {code}"


@each_page
def test_make_targets_exist(page: Path) -> None:
    """Each ``make …`` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for code in read_code(page):
        if code.startswith("make "):
            named = [word for word in code.split()[1:] if re.fullmatch(r"[a-z][a-z-]*", word)]
            assert set(named[:1]) <= targets, f"{page.name}: {code}"


@each_page
def test_settings_exist(page: Path) -> None:
    """Each environment variable that a document names is a setting of cgw, or known not to be one."""
    variables = [variable for group in list_group_classes(Settings) for _, variable in list_variables(group)]
    known = {name for variable in variables for name in (variable.name, variable.alias)} | NOT_SETTINGS
    named = set(re.findall(r"CODY_GATEWAY_[A-Z0-9_<>]*[A-Z0-9]", page.read_text("utf-8")))
    assert not [name for name in named - known if not any(match_template(variable, name) for variable in variables)]


@each_page
def test_files_and_tests_exist(page: Path) -> None:
    """Each repository path that a document names exists, and each test in it."""
    for code in read_code(page):
        match = re.fullmatch(r"((?:cgw|tests|docs)/[\w./-]+)(?:::(\w+))?", code)
        if match is None:
            continue
        path = ROOT / match[1]
        assert path.exists(), f"{page.name}: {code}"
        if match[2] is not None:
            assert re.search(rf"^(async )?def {match[2]}\(", path.read_text("utf-8"), re.MULTILINE), code


def test_the_patterns_match_the_readme() -> None:
    """The patterns above find the README's commands, tests and links."""
    code = list(read_code(ROOT / "README.md"))
    assert 'cgw token new --id acme --name "Acme Inc." >> actors.toml' in code
    assert sum("::test_" in piece for piece in code) >= 5
    assert len(LINK.findall(read_prose(ROOT / "README.md"))) >= 5
