"""docs/cli.md, made of the commands themselves: `python -m porestream.cli.help_pages > docs/cli.md` (`make docs`)."""

import inspect
import re
from collections.abc import Iterator

import click

from porestream.cli.main import ELSEWHERE, main
from porestream.cli.options import REFUSED

_ABOUT = """\
# The command line
Made from the code by `make docs`; a test compares. `porestream COMMAND --help` says the same. Data goes to standard
output, all else to standard error; progress is shown only on a terminal. Times are in seconds, sizes in bytes or like
512M, where a flag does not say otherwise.
"""
_OTHERS = """\
## Flags and commands of other tools
They are refused by name, with what to do instead.

| word | what is said |
| --- | --- |
"""


def reference() -> str:
    """The page, as Markdown."""
    root = click.Context(
        main, info_name="porestream", **main.context_settings
    )  # or click remembers other names of --help
    parts = [_ABOUT, *_description(main.help or "")]
    commands = {name: main.get_command(root, name) for name in main.list_commands(root)}
    parts.append("| command | what |\n| --- | --- |")
    parts[-1] += "".join(f"\n| [`{name}`](#porestream-{name}) | {_short(c)} |" for name, c in commands.items() if c)
    for name, command in commands.items():
        if command is not None:
            parts += _command(command, click.Context(command, parent=root, info_name=name))
    refused = {f"porestream {name}": reason for name, reason in ELSEWHERE.items()} | REFUSED
    parts.append(_OTHERS + "\n".join(f"| `{word}` | {_markdown(reason)} |" for word, reason in refused.items()))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    yield f"## {ctx.command_path}"
    yield f"    {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}"
    yield from _description(command.help or "")
    options = [option for option in command.get_params(ctx) if isinstance(option, click.Option) and not option.hidden]
    yield "\n".join(_option(option, ctx) for option in options)


def _description(text: str) -> Iterator[str]:
    """Paragraphs; those after a \\b, which click does not wrap, as code."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            yield "\n".join(f"    {line}" for line in paragraph.lstrip("\b\n").splitlines())
        else:
            yield _markdown(" ".join(paragraph.split()))


def _option(option: click.Option, ctx: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    record = option.get_help_record(ctx)
    assert record is not None
    metavar = "" if option.is_flag else f" `{option.make_metavar(ctx)}`"
    variable = f" Environment: `{option.envvar}`." if isinstance(option.envvar, str) else ""
    return f"- {names}{metavar}: {_markdown(record[1])}{variable}"


def _short(command: click.Command) -> str:
    return command.get_short_help_str(200)


def _markdown(text: str) -> str:
    """No letter of plain text may be taken for markup."""
    return re.sub(r"([*_<>|])", r"\\\1", text) if "`" not in text else text


if __name__ == "__main__":
    click.echo(reference(), nl=False)
