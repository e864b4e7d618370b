"""What the pages name exists: files, pages, parts of pages, and commands."""

import re
import shlex
from pathlib import Path

import pytest

from docs.tools.outside_links import outside
from sixbit_jax.cli import COMMANDS, build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FOLDERS = ("sixbit_jax", "pallas_kernels", "convert", "benchmarks", "tests", "docs")
# A path in backticks, with a folder of the repository in front; `*` and `<x>` are not.
_PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor of a heading, as the table of contents makes it."""
    words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def test_every_page_is_in_the_navigation():
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(named) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_a_page_names_exist(page):
    missing = [path for path in _PATH.findall(text_of(page)) if not exists(path)]
    assert missing == []


def exists(path: str) -> bool:
    return (ROOT / path).exists()


def test_the_design_names_paths_and_only_some_that_exist():
    named = set(_PATH.findall(text_of("design.md")))
    assert len(named) > 30
    # The reading path goes from the public entry to the kernel.
    steps = re.findall(r"^\d\. `([\w./]+)`", text_of("design.md"), re.M)
    assert steps[0] == "sixbit_jax/sampling/api.py"
    assert steps[-1].startswith("pallas_kernels/")
    assert len(steps) == 9


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_their_parts(page):
    wrong = []
    for link in _LINK.findall(text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, part = link.partition("#")
        target = outside(page, path) if path else None
        place = ROOT / target if target else (DOCS / page).parent / path
        place = place if path else DOCS / page
        if not place.is_file():
            wrong.append(link)
        elif part and place.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", place.read_text(), re.M)
            wrong += [] if part in map(slug, headings) else [link]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_names_exist(page):
    named = re.findall(r"^sixbit ([a-z]\w*)", text_of(page), re.M)
    named += re.findall(r"`sixbit ([a-z]\w*)", text_of(page))
    assert set(named) <= set(COMMANDS)


def command_lines(page: str) -> list[str]:
    """Lines of code on a page that call `sixbit`, continued ones joined."""
    blocks = re.findall(r"^```\n(.*?)^```", text_of(page), re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [
        line
        for line in lines
        if line.startswith("sixbit ") and not line.endswith("[options]")
    ]


def test_there_are_command_lines():
    assert sum(len(command_lines(page)) for page in PAGES) > 30


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_command_lines_on_a_page_are_understood(page, capsys):
    wrong = []
    for line in command_lines(page):
        argv = shlex.split(line, comments=True)[1:]
        try:
            build_parser(argv).parse_args(argv)
        except SystemExit:
            wrong.append(f"{line}\n{capsys.readouterr().err}")
    assert wrong == []


def test_the_quickstart_has_the_example_of_the_readme():
    """Which a test of the README runs."""
    (code,) = re.findall(r"```python\n(.*?)```", text_of("index.md"), re.S)
    assert f"```python\n{code}```" in (ROOT / "README.md").read_text()
