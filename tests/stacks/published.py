"""Functions of other projects' own source, where a copy of it is at hand: a clone, named by an environment variable."""

import ast
import os
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
