"""What the README shows runs as it is shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from riemann_unlearn.cli.commands import given
from riemann_unlearn.cli.parser import build_parser
from riemann_unlearn.config import EvaluateConfig, RunConfig, TrainConfig

README = Path(__file__).parent.parent / "README.md"


def test_the_loop_in_the_readme_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    found = re.fullmatch(r"forgotten pairs (\S+) apart, retained (\S+)\n", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) > 2 * float(found[2])


def commands() -> list[str]:
    """The command lines that the README and the docs show, but for those with an ellipsis."""
    shown: list[str] = []
    for path in (README, *(README.parent / "docs").rglob("*.md")):
        blocks = re.split(r"^```.*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for prose, block in zip(blocks[::2], [*blocks[1::2], ""], strict=True):
            shown += re.findall(r"`(?:time )?riemann-unlearn (\w[^`]*)`", prose)
            shown += re.findall(r"riemann-unlearn (\w[^\n#|]*)", block)
    return sorted({" ".join(line.split()) for line in shown if "…" not in line})


@pytest.mark.parametrize("command", commands())
def test_every_command_that_is_shown_is_one(command: str) -> None:
    arguments = shlex.split(command)
    if "--help" in arguments:
        return
    options = build_parser().parse_args(arguments)
    for name, config in (("run", RunConfig), ("train", TrainConfig), ("evaluate", EvaluateConfig)):
        if arguments[0] == name:
            given(options, config)


def test_every_link_in_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if "://" not in link and not (README.parent / link).exists()]
