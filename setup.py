"""The compiled parts: the emulator's C core, the launcher. All else about the package is in pyproject.toml."""

from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

STABLE: dict[str, Any] = {"define_macros": [("Py_LIMITED_API", "0x030B0000")], "py_limited_api": True}
core = Extension(
    "lowbitvm.runtime.emulator._core",
    sources=sorted(str(path) for path in Path("runtime/emulator/core").glob("*.c")),
    depends=sorted(str(path) for path in Path("runtime/emulator/core").glob("*.h")),
    extra_compile_args=[
        *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c11"),
        *("-fvisibility=hidden", "-pthread"),
    ],
    extra_link_args=["-pthread"],
    **STABLE,
)
launcher = Extension(
    "lowbitvm.runtime._launcher",
    sources=["runtime/launcher.c"],
    extra_compile_args=["-O2", "-std=c11", "-fvisibility=hidden"],
    **STABLE,
)


class BuildCore(build_ext):
    """Says what is missing when C cannot be compiled; the compiler's own message does not."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except (CompileError, PlatformError):
            raise SystemExit(
                "lowbitvm: the compiled parts could not be built, for the reason above. They need a C compiler\n"
                "and Python's headers (Debian: apt-get install gcc python3-dev). CC names another compiler."
            ) from None


setup(
    ext_modules=[core, launcher],
    cmdclass={"build_ext": BuildCore},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
