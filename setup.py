"""The emulator's C core: the only compiled part. Everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

core = Extension(
    "lowbitvm.runtime.emulator._core",
    sources=sorted(str(path) for path in Path("runtime/emulator/core").glob("*.c")),
    depends=sorted(str(path) for path in Path("runtime/emulator/core").glob("*.h")),
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=[
        *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c11"),
        *("-fvisibility=hidden", "-pthread"),
    ],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)


class BuildCore(build_ext):
    """Says what is missing when the C core cannot be built; the compiler's own message does not."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except (CompileError, PlatformError):
            raise SystemExit(
                "lowbitvm: the emulator's C core could not be compiled, for the reason above. It needs a C compiler\n"
                "and Python's headers (Debian: apt-get install gcc python3-dev). CC names another compiler."
            ) from None


setup(ext_modules=[core], cmdclass={"build_ext": BuildCore}, options={"bdist_wheel": {"py_limited_api": "cp311"}})
