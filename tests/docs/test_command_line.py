"""The page of the command line is what the parsers say."""

import argparse
import re

from docs.tools import command_line
from sixbit_jax.cli import COMMANDS


def test_the_page_in_the_repository_is_current():
    found = command_line.PAGE.read_text(encoding="utf-8")
    assert found == command_line.render(), "run `python -m docs.tools.command_line`"


def test_every_option_of_every_command_stands_in_its_section():
    sections = command_line.render().split("\n## sixbit ")[1:]
    assert [section.split("\n")[0] for section in sections] == list(COMMANDS)
    for name, section in zip(COMMANDS, sections, strict=True):
        for action in command_line.parser_of(name)._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            if action.help is argparse.SUPPRESS:
                assert not any(f"{o}`" in section for o in action.option_strings)
                continue
            for option in action.option_strings:
                assert re.search(rf"^\| (`|<code>){option}\b", section, re.M) or (
                    f", {option}" in section
                ), option


def test_signs_of_tables_and_markup_mean_themselves():
    parser = argparse.ArgumentParser()
    action = parser.add_argument(
        "--a", metavar="X|Y", help="a_b | `c_d` of <e> (%(default)s)", default=3
    )
    assert command_line.name_of(action) == "<code>--a X&#124;Y</code>"
    assert command_line.help_of(parser, action) == r"a\_b \| `c_d` of \<e> (3)"
