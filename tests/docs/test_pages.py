"""What the pages name exists: files, pages, parts of pages, and commands."""

import re
from pathlib import Path

import pytest

from docs.tools.outside_links import outside
from sixbit_jax.cli import COMMANDS

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
