"""Writes docs/command-line.md from the parsers: `python -m docs.tools.command_line`."""

import argparse
import html
from itertools import groupby
from pathlib import Path

from sixbit_jax.cli import COMMANDS, build_parser

PAGE = Path(__file__).parents[1] / "command-line.md"
_HEAD = """\
# Command line

Made from the parsers by `python -m docs.tools.command_line`; not edited by hand.
`sixbit COMMAND --help` says the same. An error is one message on standard error and
exit status 2 and leaves no partial output ([Troubleshooting](troubleshooting.md)).

| command | does |
| --- | --- |
"""


def render() -> str:
    """The whole page."""
    rows = [
        f"| [`sixbit {n}`](#sixbit-{n}) | {_cell(s)} |" for n, s in COMMANDS.items()
    ]
    sections = [_command(name) for name in COMMANDS]
    return _HEAD + "\n".join(rows) + "\n\n" + "\n\n".join(sections) + "\n"


def _command(name: str) -> str:
    """The section of one command."""
    parser = parser_of(name)
    given = [action for action in parser._actions if not action.option_strings]
    words = " ".join(["sixbit", name, *(_metavar(action) for action in given)])
    parts = [f"## sixbit {name}", f"```\n{words} [options]\n```"]
    parts += [_paragraph(text) for text in (parser.description or "").split("\n\n")]
    for group in parser._action_groups:
        rows = [
            f"| {name_of(action)} | {help_of(parser, action)} |"
            for action in group._group_actions
            if action.help is not argparse.SUPPRESS
            and not isinstance(action, argparse._HelpAction)
        ]
        if rows:
            title = (group.title or "options").capitalize()
            parts.append("\n".join([f"| {title} | |", "| --- | --- |", *rows]))
    parts += [_paragraph(text) for text in (parser.epilog or "").split("\n\n")]
    return "\n\n".join(parts)


def parser_of(name: str) -> argparse.ArgumentParser:
    commands = build_parser([name])._subparsers
    assert commands is not None
    (action,) = commands._group_actions
    assert isinstance(action, argparse._SubParsersAction)
    return action.choices[name]


def _paragraph(text: str) -> str:
    """Text as text, and what stands indented in it as code."""
    parts = []
    lines = text.strip("\n").split("\n")
    for indented, run in groupby(lines, key=lambda line: line.startswith(" ")):
        if indented:
            parts.append(f"```\n{_outdented(list(run))}\n```")
        else:
            words = " ".join(run)
            parts.append(_escaped(words[:1].upper() + words[1:]))
    return "\n\n".join(parts)


def _outdented(lines: list[str]) -> str:
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[indent:] for line in lines)


def name_of(action: argparse.Action) -> str:
    """How an argument is written, with its value, in the cell of a table."""
    value = "" if action.nargs == 0 else _metavar(action)
    if not action.option_strings:
        return _code(value)
    words = ", ".join(f"{option} {value}".strip() for option in action.option_strings)
    return _code(words) + (", required" if action.required else "")


def _code(words: str) -> str:
    """Code in the cell of a table, where a bar in backticks would end the cell."""
    if "|" not in words:
        return f"`{words}`"
    return f"<code>{html.escape(words, quote=False).replace('|', '&#124;')}</code>"


def _metavar(action: argparse.Action) -> str:
    """The value of an argument, as the usage line of --help has it."""
    if action.metavar is not None:
        word = str(action.metavar)
    elif action.choices is not None:
        word = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        word = action.dest.upper()
    many = {"+": f"{word} [{word} ...]", "*": f"[{word} ...]", "?": f"[{word}]"}
    if isinstance(action.nargs, int):
        return " ".join([word] * action.nargs)
    return many.get(action.nargs or "", word)


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    return _cell(formatter._expand_help(action)) if action.help else ""


def _cell(text: str) -> str:
    """One line that breaks no table."""
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text whose signs mean themselves, but for what stands in backticks."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        for sign in "\\*_[]<":
            parts[index] = parts[index].replace(sign, "\\" + sign)
    return "`".join(parts)


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
