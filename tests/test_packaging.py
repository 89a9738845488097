import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"lowbitvm": ROOT / "lowbitvm", "lowbitvm.codegen": ROOT / "codegen", "lowbitvm.runtime": ROOT / "runtime"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMPORT_NAMES = {
    "humming-kernels": "humming",
    "cuda-bindings": "cuda",
    "ml-dtypes": "ml_dtypes",
}  # where they differ from the distribution's name
# shared libraries, headers and programs
NOT_IMPORTED = {"nvidia-nvjitlink", "nvidia-cuda-nvdisasm", "nvidia-cuda-cccl", "nvidia-cuda-nvcc"}


def sources() -> dict[str, Path]:
    """Every Python file of the package by its module name."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):  # rglob does not enter the symlinked folders
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


def imports(file: Path) -> Iterator[str]:
    """The absolute name of every import in the file, at the top or not, those for type checking included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def third_party(modules: dict[str, Path]) -> set[str]:
    tops = {name.partition(".")[0] for file in modules.values() for name in imports(file)}
    return tops - sys.stdlib_module_names - {"lowbitvm"}


def import_names(requirements: list[str]) -> set[str]:
    names = [requirement.partition(">=")[0].replace("_", "-").lower() for requirement in requirements]
    return {IMPORT_NAMES.get(name, name) for name in names if name not in NOT_IMPORTED}


def test_every_folder_with_sources_is_a_listed_package() -> None:
    with_sources = {name if file.name == "__init__.py" else name.rpartition(".")[0] for name, file in sources().items()}
    assert with_sources == set(PYPROJECT["tool"]["setuptools"]["packages"])
    for package in with_sources:
        assert sources()[package].name == "__init__.py"


@pytest.mark.parametrize("name", ["codegen", "runtime"])
def test_the_symlinks_are_relative_and_lead_to_the_folders_that_packaging_maps(name: str) -> None:
    link = ROOT / "lowbitvm" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    assert PYPROJECT["tool"]["setuptools"]["package-dir"][f"lowbitvm.{name}"] == name


def test_the_package_says_that_it_is_typed_and_brings_the_driver_of_its_benchmarks() -> None:
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    assert data == {"lowbitvm": ["py.typed", "data/tuned/*.json"], "lowbitvm.bench": ["cutlass_gemm.cu", "libcuda.c"]}
    assert (ROOT / "lowbitvm" / "py.typed").is_file() and (ROOT / "lowbitvm" / "bench" / "libcuda.c").is_file()


def loaded_by(code: str) -> set[str]:
    """The modules of a fresh interpreter in the root of the checkout after it ran the code."""
    code = f"import json, sys; {code}; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_importing_lowbitvm_loads_only_three_packages_and_costs_less_than_they_do() -> None:
    nothing, needed = loaded_by("pass"), loaded_by("import numpy, ml_dtypes, platformdirs")
    ours = loaded_by("import lowbitvm") - needed
    tops = [{name.partition(".")[0] for name in names} for names in (ours, needed)]
    assert tops[0] - tops[1] - sys.stdlib_module_names == {"lowbitvm"}
    assert len(ours) < len(needed - nothing)


def test_a_bare_checkout_is_importable_without_an_installation() -> None:
    code = "import lowbitvm.codegen, lowbitvm.runtime; print(lowbitvm.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).parent == ROOT / "lowbitvm"


def test_only_ops_demo_and_generate_import_torch() -> None:
    with_torch = {name for name, file in sources().items() if "torch" in third_party({name: file})}
    assert with_torch <= {"lowbitvm.ops", "lowbitvm.demo", "lowbitvm.generate", "lowbitvm.bench.humming_source"}


def test_the_emulator_imports_nothing_of_lowbitvm_but_the_errors() -> None:
    emulator = "lowbitvm.runtime.emulator"
    files = [file for name, file in sources().items() if name.startswith(emulator)]
    assert files
    for file in files:
        ours = {name for name in imports(file) if name.partition(".")[0] == "lowbitvm"}
        assert all(name.startswith((emulator, "lowbitvm.errors.")) for name in ours), (file, ours)


def test_declared_dependencies_are_exactly_the_imported_ones() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    used_by_extras = import_names(extras["torch"] + extras["load"] + extras["bench"] + extras["plot"])
    required = import_names(PYPROJECT["project"]["dependencies"])
    assert third_party(sources()) == required | used_by_extras


def test_only_the_assembler_and_the_driver_are_left_out_on_some_systems() -> None:
    marked = [requirement.split(">=") for requirement in PYPROJECT["project"]["dependencies"] if ";" in requirement]
    assert {name for name, _ in marked} == {"cuda-bindings", "nvidia-nvjitlink"}
    assert {rest.partition("; ")[2] for _, rest in marked} == {"sys_platform == 'linux' or sys_platform == 'win32'"}
