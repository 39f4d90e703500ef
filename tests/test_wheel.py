"""What is installed from a wheel, for somebody who works in a folder with packages of the same names."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("video_distilled_encoder", "training", "export")
# not by find_spec: to look for pip as a module switches off, in this process, what setuptools has done for distutils
missing = {"pip", "setuptools"} - {found.metadata["Name"] for found in metadata.distributions()}
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(sorted(missing))} cannot be run by this Python")


def project_files():
    """Return the files a wheel is built from, as git tells them, or where it cannot, as they lie there."""
    names = [*PACKAGES, "pyproject.toml", "README.md", "LICENSE"]
    if shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z", *names], cwd=ROOT, capture_output=True, text=True)
        if listed.returncode == 0:
            return listed.stdout.split("\0")[:-1]
    below = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
    return [str(path.relative_to(ROOT)) for path in [*below, *(ROOT / name for name in names)] if path.is_file()]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy, for a build leaves folders behind."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in project_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The folder it is installed in."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def run(site, tmp_path_factory):
    """Run Python where `training` and `export` are packages of the user's own, which nobody may import."""
    project = tmp_path_factory.mktemp("project")
    for name in ("training", "export"):
        (project / name).mkdir()
        (project / name / "__init__.py").write_text('raise RuntimeError("the user\'s own")\n')
    # the checkout leaves the path, and the wheel comes before an editable install
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def start(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)

    return start


def test_a_wheel_holds_every_file_of_the_packages(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {name for name in project_files() if name.startswith(PACKAGES)}
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert {"training/recipes/cpu.yaml", "training/studies/methods.yaml", "training/reporting/page.html"} <= held


SCRIPTS = """
import contextlib, io, os, runpy, sys
for script in sys.argv[1:]:
    sys.argv, sys.path[0], said = [script, "--help"], os.path.dirname(script), io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
        status = "did not end"
    except SystemExit as end:
        status = end.code
    print(os.path.basename(script), status or "ran" if "usage:" in said.getvalue() else f"said {said.getvalue()!r}")
"""
"""Runs scripts as Python runs each of them, but all in one process: to start takes them longer than all else."""


def test_every_script_runs_beside_packages_of_these_names(site, run):
    (distribution,) = metadata.distributions(path=[str(site)])
    scripts = {entry.name: site / "bin" / entry.name for entry in distribution.entry_points}
    assert {"vde-encode", "vde-export", "vde-pretrain"} <= set(scripts)
    done = run("-c", SCRIPTS, *scripts.values())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} ran" for name in scripts]


def test_python_m_takes_the_users_own(run):
    done = run("-m", "training.pretrain", "--help")
    assert done.returncode == 1
    assert "RuntimeError: the user's own" in done.stderr


def test_processes_of_a_training_run_take_what_is_installed(site, run, clip, make_video, tmp_path):
    videos = [clip, make_video()]  # two, of which each is extracted by a process
    places = ["--out", tmp_path / "run", "--frames", tmp_path / "frames"]
    settings = ["--recipe", "smoke", "--run.steps", "2", "--run.workers", "1"]
    done = run(site / "bin" / "vde-pretrain", "--data", *videos, *places, *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()


def test_what_is_imported_is_what_is_installed_by_the_processes_of_a_benchmark_too(site, run):
    code = """
import sys
del sys.path[0]  # the current folder, which a script has not
import export, training, video_distilled_encoder
from export.benchmark.process import ask
print(video_distilled_encoder.__file__, training.__file__, export.__file__)
print(ask("matmul_rate", 1, precision="fp32", device="cpu", seconds=0.01))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    *files, rate = done.stdout.split()
    assert files == [str(site / package / "__init__.py") for package in PACKAGES]
    assert float(rate) > 0
