"""The emulator's C core: the only compiled part. Everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

core = Extension(
    "lowbitvm.runtime.emulator._core",
    sources=sorted(str(path) for path in Path("runtime/emulator/core").glob("*.c")),
    depends=sorted(str(path) for path in Path("runtime/emulator/core").glob("*.h")),
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-std=c11"],
    py_limited_api=True,
)

setup(ext_modules=[core], options={"bdist_wheel": {"py_limited_api": "cp311"}})
