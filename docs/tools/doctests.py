"""Examples in docstrings become code on the page of the API.

Our docstrings end with bare doctests (`>>> ...`), which Markdown reads as quotations.
"""


def fenced(text: str) -> str:
    """Puts every paragraph that begins with `>>>` between fences.

    Args:
      text: a docstring without its common indentation.

    Returns:
      The same text; an example and what it prints are one block of `pycon`, up to the
      next empty line that no further example follows.
    """
    done: list[str] = []
    inside = False
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if not inside and line.startswith(">>>"):
            done.append("```pycon")
            inside = True
        if inside and not line.strip() and not _goes_on(lines[index:]):
            done.append("```")
            inside = False
        done.append(line)
    return "\n".join([*done, "```"] if inside else done)


def _goes_on(lines: list[str]) -> bool:
    """Whether the next line that is not empty is an example again."""
    return next((line for line in lines if line.strip()), "").startswith(">>>")
