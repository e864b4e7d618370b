"""Examples of docstrings become blocks of code."""

from docs.tools.doctests import fenced


def test_an_example_and_its_output_are_one_block():
    text = "Says.\n\n>>> 1\n1\n\n>>> 2\n2\n\nMore."
    assert fenced(text) == "Says.\n\n```pycon\n>>> 1\n1\n\n>>> 2\n2\n```\n\nMore."


def test_an_example_at_the_end_is_closed():
    assert fenced("Says.\n\n>>> 1\n1") == "Says.\n\n```pycon\n>>> 1\n1\n```"


def test_text_without_examples_stays():
    assert fenced("Says.\n\nMore >>> text.") == "Says.\n\nMore >>> text."
