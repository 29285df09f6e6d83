"""What the README shows runs as it is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_loop_in_the_readme_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    found = re.fullmatch(r"forgotten pairs (\S+) apart, retained (\S+)\n", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) > 2 * float(found[2])


def test_every_link_in_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if "://" not in link and not (README.parent / link).exists()]
