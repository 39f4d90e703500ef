"""What is tried on a stack: functions of its own source, where a clone is at hand, and what the README prints."""

import ast
import os
import re
from pathlib import Path

import pytest


def clone(variable):
    """Return the folder of a clone, or skip."""
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to a clone, to test with the real code")
    return Path(os.environ[variable])


def function(path, name, **names):
    """Return one function or method of a file, compiled alone, with `names` as what it finds around it."""
    tree = ast.parse(path.read_text())
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    space = dict(names)
    exec(compile(ast.Module([found], []), str(path), "exec"), space)
    return space[name]


def readme(word):
    """Return the README's block of Python in "In your stack" that has a word in it."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text.split("## In your stack")[1].split("\n## ")[0], re.DOTALL)
    return next(block for block in blocks if word in block)
