"""docs/use/cli.md, and what other tools' words get."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from porestream.cli.help_pages import reference
from porestream.cli.main import ELSEWHERE, main
from porestream.cli.options import REFUSED

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_code() -> None:
    assert (ROOT / "docs/use/cli.md").read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("flag", REFUSED)
@pytest.mark.parametrize("command", ["call", "serve"])
def test_flags_of_other_tools_are_refused_by_name(command: str, flag: str) -> None:
    for words in ([flag, "x"], [f"{flag}=x"]) if flag.startswith("--") else ([flag, "x"],):
        result = CliRunner().invoke(main, [command, *(["a.pod5"] if command == "call" else []), *words])
        assert result.exit_code == 2
        assert result.stderr.endswith(f"Error: {flag} {REFUSED[flag]}\n")


@pytest.mark.parametrize("command", ELSEWHERE)
def test_commands_of_other_tools_are_refused_by_name(command: str) -> None:
    result = CliRunner().invoke(main, [command, "a", "b"])
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: {command} {ELSEWHERE[command]}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell], prog_name="porestream")
    assert result.exit_code == 0
    assert f"_PORESTREAM_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("words", "found"), [("ca", "call"), ("call --res", "--resume-from"), ("call --preset l", "lr:hq")]
)
def test_completion_completes(words: str, found: str) -> None:
    parts = ["porestream", *words.split(" ")]
    environment = {
        "_PORESTREAM_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(parts),
        "COMP_CWORD": str(len(parts) - 1),
    }
    result = CliRunner().invoke(main, [], prog_name="porestream", env=environment)
    assert f"plain,{found}" in result.stdout.splitlines()
