"""What is installed from a wheel, in a directory with a package `training` of the user's own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PACKAGES = ("video_distilled_encoder", "training", "export")
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy, for a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The environment of somebody who has installed it and works in a folder with a package `training`."""
    site, project = (tmp_path_factory.mktemp(name) for name in ("site", "project"))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (project / "training").mkdir()
    (project / "training" / "__init__.py").write_text("raise RuntimeError('the user\\'s own training')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "VDE_CACHE": str(project / "cache")}

    def run(command, *arguments, timeout=120):
        return subprocess.run(
            [sys.executable, command, *map(str, arguments)],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return site, run


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files
    assert {f"{package}/py.typed" for package in PACKAGES} <= held


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_script_runs_beside_a_package_of_that_name(installed, name):
    site, run = installed
    done = run(site / "bin" / name, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_a_run_and_its_processes_take_the_installed_package(installed, clip, make_video, tmp_path):
    site, run = installed
    videos = [clip, make_video("videos/other.mp4")]  # two are extracted by processes of their own
    settings = ["--recipe", "smoke", "--run.steps", "2", "--run.workers", "1", "--clips.in_memory", "false"]
    done = run(site / "bin" / "vde-pretrain", "--data", *videos, "--out", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "encoder" / "config.json").is_file()
    said = run("-c", "import export, video_distilled_encoder as v; print(v.__file__, export.__file__)").stdout
    assert said.count(str(site)) == 2
    own = run("-m", "training.pretrain", "--help")
    assert "the user's own training" in own.stderr
