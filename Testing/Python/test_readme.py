"""What the README promises is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import SaliencyExplainLib as sx

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_that_of_the_declarations() -> None:
    script = ROOT / "Testing" / "Data" / "update_readme.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, "--check"], env=environment, check=False)
    assert done.returncode == 0, "run python Testing/Data/update_readme.py"


def test_every_linked_file_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_public_name_in_the_examples_exists() -> None:
    used = set(re.findall(r"\bsx\.(\w+)", README))
    assert used
    assert used <= set(sx.__all__)


def test_every_command_and_option_in_the_shell_examples_exists() -> None:
    from SaliencyExplainLib.cli.arguments import make_parser

    text = make_parser().format_help()
    for command in set(re.findall(r"^saliency-explain (\w+)", README, re.MULTILINE)):
        assert command in text
