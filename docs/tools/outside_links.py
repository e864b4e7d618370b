"""Hook of mkdocs: what a page links to outside of docs/ becomes a part of the site.

Pages are read in the repository too, where a record is `../benchmarks/results/...`. On
the site such a file is copied to `repository/...`, and the link leads there.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = "repository"
_LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)")


def outside(page: str, link: str) -> str | None:
    """The path in the repository of a link that leaves docs/.

    Args:
      page: path of the page below docs/, as `deeper/usage.md`.
      link: what the page links to, relative to it.

    Returns:
      The path relative to the root; None where the link stays in docs/.
    """
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if path.startswith(("docs/", "..")):
        return None
    return path


def on_files(files: Any, config: Any) -> Any:
    """Adds every file outside of docs/ that a page links to."""
    # The one import of mkdocs: the functions around it are tested without it.
    from mkdocs.structure.files import File

    found = {
        path
        for page in files.documentation_pages()
        for _, link in _LINK.findall(page.content_string)
        if (path := outside(page.src_uri, link)) and (ROOT / path).is_file()
    }
    for path in sorted(found):
        # mkdocs renders Markdown; a file of the repository is shown as it is.
        if path.endswith(".md"):
            continue
        name = f"{FOLDER}/{path}"
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links that leave docs/ at the copies; wrong ones stay, and are found."""
    here = page.file.src_uri

    def changed(match: re.Match) -> str:
        path = outside(here, match[2])
        if path is None or not (ROOT / path).is_file():
            return match[0]
        start = posixpath.relpath(f"{FOLDER}/{path}", posixpath.dirname(here) or ".")
        return match[1] + start

    return _LINK.sub(changed, markdown)
