"""Messages on the page of troubleshooting are those of the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# The first cell of a row, where it is a message.
MESSAGES = re.findall(r"^\| `(.+?)` \| ", PAGE, re.M)


def strings() -> str:
    """What all files of the packages say in strings, with a mark for every value."""
    found = []
    for package in ("sixbit_jax", "pallas_kernels", "convert"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (
                        part.value if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    )
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


STRINGS = strings()


def test_there_are_messages():
    assert len(MESSAGES) > 20


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: text[:40])
def test_a_message_is_one_that_the_code_has(message):
    parts = [part.strip() for part in message.split("…")]
    missing = [part for part in parts if len(part) > 3 and part not in STRINGS]
    assert missing == []
    assert sum(map(len, parts)) > 15, "nothing in it that only this message says"
