"""`porestream completion`."""

import click
from click.shell_completion import get_completion_class

_HOW = {
    "bash": 'eval "$(porestream completion bash)"    # in ~/.bashrc; bash 4.4 or newer',
    "zsh": 'eval "$(porestream completion zsh)"     # in ~/.zshrc, after compinit',
    "fish": "porestream completion fish | source     # in ~/.config/fish/config.fish",
}


@click.command(
    short_help="Print a shell's completion script.",
    help="Print the script with which a shell completes porestream's commands, flags and files.\n\n\b\n"
    + "\n".join(_HOW.values()),
)
@click.argument("shell", type=click.Choice(list(_HOW)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """See the help text above."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "porestream", "_PORESTREAM_COMPLETE").source())
