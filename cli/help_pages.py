"""Generate docs/use/cli.md from the commands: `python -m porestream.cli.help_pages > docs/use/cli.md` (`make docs`)."""

import inspect
import re
from collections.abc import Iterator

import click

from porestream.cli.main import ELSEWHERE, main
from porestream.cli.options import REFUSED

_ABOUT = """\
# The command line
`make docs` generates this page from the code, and a test compares them; `porestream COMMAND --help` says the same. Data
goes to standard output, everything else to standard error; progress bars appear only on a terminal. Unless a flag says
otherwise, times are in seconds, and sizes are in bytes or like 512M.
"""
_OTHERS = """\
## Flags and commands of other tools
porestream refuses them by name and says what to do instead.

| word | message |
| --- | --- |
"""


def reference() -> str:
    """Return the page as Markdown."""
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
    """Yield paragraphs; those after a \\b, which click does not wrap, as code."""
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
    """Escape plain text, so that none of it is taken for markup."""
    return re.sub(r"([*_<>|])", r"\\\1", text) if "`" not in text else text


if __name__ == "__main__":
    click.echo(reference(), nl=False)
