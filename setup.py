"""The compiled extension; everything else is in pyproject.toml.

FAIRKERN_BUILD=auto  try to compile; without a working compiler install the reference backend and say so
FAIRKERN_BUILD=cpu   compile, or fail
FAIRKERN_BUILD=none  do not compile
"""

import os
import sys
from pathlib import Path

from setuptools import setup

CHOICES = ("auto", "cpu", "none")
BANNER = """
**********************************************************************
fairkern: the compiled extension could not be built:
  {error}
The installation goes on without it: every operator runs on its
reference backend, which is correct and slower. `fairkern info` shows
what is there. FAIRKERN_BUILD=cpu turns this into an error.
**********************************************************************
"""


def choice() -> str:
    asked = os.environ.get("FAIRKERN_BUILD", "auto")
    if asked == "cuda":
        raise SystemExit("FAIRKERN_BUILD=cuda: this version has no CUDA extension; use one of " + ", ".join(CHOICES))
    if asked not in CHOICES:
        raise SystemExit(f"FAIRKERN_BUILD={asked}: expected one of " + ", ".join(CHOICES))
    if asked == "auto" and sys.platform == "win32":
        return "none"
    return asked


def extension_arguments(optional: bool) -> dict:
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext

    class LoudBuild(build_ext):
        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as error:
                if optional:
                    print(BANNER.format(error=error), file=sys.stderr, flush=True)
                raise

    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    extension = Pybind11Extension(
        "fairkern._native",
        sorted(path.as_posix() for path in Path("csrc").rglob("*.cpp")),
        depends=sorted(path.as_posix() for path in Path("csrc").rglob("*.h")),
        include_dirs=["csrc"],
        cxx_std=17,
        # No contraction: a result may not depend on the instruction set that was dispatched to.
        extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wno-psabi", *openmp],
        extra_link_args=openmp,
        optional=optional,
    )
    ParallelCompile(default=2).install()
    return {"ext_modules": [extension], "cmdclass": {"build_ext": LoudBuild}}


build = choice()
setup(**(extension_arguments(optional=build == "auto") if build != "none" else {}))
