"""The house and the box it is shipped in: imports point down, and what pip installs can speak."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, write_gguf

import pygpt

ROOT = Path(__file__).resolve().parents[1]
MODULES = {  # floors: an import points down, never up or sideways
    "_build": 0,
    "__init__": 0,
    "_core": 0,
    "_lib": 1,
    "merging": 1,
    "split_rules": 1,
    "vocabulary": 2,
    "model": 2,
    "chat_template": 2,
    "anatomy": 3,
    "byte_pairs": 3,
    "sentence_pieces": 3,
    "formulas": 4,
    "tokenizer": 4,
    "explain": 5,
    "generate": 5,
    "calculator": 5,
    "chat": 6,
    "measure": 6,
    "convert": 7,
    "cli": 8,
    "chat_cli": 9,
    "__main__": 9,
}
FOLDERS = {"base": 1, "quant": 2, "kernels": 3, "file": 4, "model": 5, ".": 6}  # an include may also stay on its floor
OWNED = {  # headers, and the files that may include them
    "pthread.h": {"base/pool.c"},
    **dict.fromkeys(("sys/mman.h", "sys/stat.h", "unistd.h", "fcntl.h", "time.h"), {"base/os.c"}),
    **dict.fromkeys(("cpuid.h", "sys/auxv.h", "sys/sysctl.h"), {"base/cpu.c"}),
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it, as names below pygpt; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            below = {f"pygpt.{a.name}" if f"{a.name}" in MODULES else "pygpt.__init__" for a in node.names}
            found |= below if node.module == "pygpt" else {node.module}
    return found


def test_python_imports_point_down():
    for path in [*ROOT.glob("pygpt/*.py"), *ROOT.glob("convert/*.py")]:
        floor = MODULES["convert"] if path.parent.name == "convert" else MODULES[path.stem]
        for name in imports(path):
            if name.startswith("pygpt."):
                below = name.split(".")[1]
                at_home = path.parent.name == "convert" and below == "convert"
                assert at_home or MODULES[below] < floor, f"{path.name} imports {name}"


def test_the_converters_modules_do_not_import_each_other_in_a_circle():
    graph = {}
    for path in ROOT.glob("convert/*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 1]
        graph[path.stem] = {name for n in nodes for name in ([n.module] if n.module else [a.name for a in n.names])}
    assert set(TopologicalSorter(graph).static_order()) >= {"nanogpt", "unpickle"}


def test_only_lib_speaks_cffi_and_nothing_that_ships_imports_torch():
    for path in [*ROOT.glob("pygpt/*.py"), *ROOT.glob("convert/*.py")]:
        tops = {name.split(".")[0] for name in imports(path)}
        asked_for = {"torch"} if path.name == "check.py" else set()  # runs the user's own module, if he wants it
        assert not {"torch", "transformers"} & tops - asked_for, path
        assert "cffi" not in tops or path.name == "_build.py", path
        assert "pygpt._core" not in imports(path) or path.name == "_lib.py", path


def test_c_includes_point_down():
    sources = [p for p in ROOT.glob("csrc/**/*") if p.suffix in (".c", ".h", ".inc")]
    assert len(sources) > 10
    for path in sources:
        home = path.relative_to(ROOT / "csrc")
        floor = FOLDERS[home.parent.as_posix()]
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            if name == "pygpt.h":
                continue
            beside = path.parent / name
            target = beside.relative_to(ROOT / "csrc") if beside.exists() else Path(name)
            assert (ROOT / "csrc" / target).exists(), f"{home} includes {name}, which is not there"
            assert FOLDERS[target.parent.as_posix()] <= floor, f"{home} includes {name}"


def test_only_pool_knows_threads_only_os_the_system_and_only_cpu_the_processor():
    for path in ROOT.glob("csrc/**/*.[ch]"):
        home = path.relative_to(ROOT / "csrc").as_posix()
        for name in re.findall(r"^\s*#\s*include\s+<([^>]+)>", path.read_text(), re.MULTILINE):
            assert home in OWNED.get(name, {home}), f"{home} includes <{name}>"


def test_the_version_is_the_same_everywhere():
    assert f'version = "{pygpt.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_header_is_parsed_as_it_is():
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/pygpt.h").read_text(), flags=re.DOTALL)
    from pygpt._lib import lib

    for name in re.findall(r"\b(gpt_\w+)\(", text):
        assert hasattr(lib, name), name


# ---- building: slow ----


def copied(tmp_path: Path) -> Path:
    """The source tree without what was built in it."""
    names = ["pyproject.toml", "setup.py", "LICENSE", "README.md", "MANIFEST.in", "csrc", "pygpt", "convert"]
    for name in names:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("_core*", "__pycache__", "*.o", "*.so")
            shutil.copytree(source, tmp_path / "src" / name, ignore=ignore)
        elif source.exists():
            (tmp_path / "src").mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / "src" / name)
    return tmp_path / "src"


def build(source: Path, hook: str, out: Path, **environment: str) -> subprocess.CompletedProcess:
    """Calls setuptools as pip would, without the network."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(out)!r}))"
    out.mkdir(exist_ok=True)
    environment = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=600, env=environment
    )


@pytest.mark.slow
def test_the_sdist_builds_a_small_wheel_that_speaks_in_a_fresh_environment(tmp_path):
    pytest.importorskip("setuptools")
    done = build(copied(tmp_path), "build_sdist", tmp_path / "dist")
    assert done.returncode == 0, done.stderr
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    headers = {p.relative_to(ROOT) for p in ROOT.glob("csrc/**/*") if p.suffix in (".c", ".h", ".inc")}
    assert all((unpacked / name).exists() for name in headers)

    done = build(unpacked, "build_wheel", tmp_path / "dist")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "-cp310-abi3-" in wheel.name and wheel.stat().st_size < 8e6
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "pygpt/cli.py",
        "pygpt/convert/__init__.py",
        *(f"pygpt/data/{p.name}" for p in ROOT.glob("pygpt/data/*")),
    ):
        assert name in names
    assert any(name.endswith("LICENSE") for name in names)

    home = tmp_path / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True, timeout=300, capture_output=True)
    (site,) = (home / "lib").glob("python*/site-packages")
    import _cffi_backend

    shutil.copy(_cffi_backend.__file__, site)  # the one dependency that generating characters needs
    model = write_gguf(
        tmp_path / "m.gguf", gpt2_tensors(4, 8, 32, 1, None), gpt2_keys(8, 32, 1) | character_keys("abcd")
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for command in ([home / "bin" / "pygpt"], [python, "-m", "pygpt"]):
        command = [*command, "generate", "a", "-m", model, "-n", "5", "--seed", "1"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=clean)
        assert done.returncode == 0 and len(done.stdout) == 5, done.stderr


@pytest.mark.slow
def test_a_missing_c_compiler_is_said_in_a_sentence(tmp_path):
    pytest.importorskip("setuptools")
    done = build(copied(tmp_path), "build_wheel", tmp_path / "dist", CC="no-such-compiler")
    assert done.returncode != 0
    assert "pygpt needs a C compiler to build, and 'no-such-compiler' was not found" in done.stderr


def test_a_source_tree_without_its_core_says_what_to_do(tmp_path):
    source = copied(tmp_path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import pygpt; pygpt.Model('x')"], cwd=source, capture_output=True, text=True
    )
    assert "pip install" in done.stderr
