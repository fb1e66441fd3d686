"""The compiled extensions; everything else is in pyproject.toml.

FAIRKERN_BUILD=auto  try to compile, the CUDA extension where nvcc is found; what cannot be built is left out, and said
FAIRKERN_BUILD=cpu   compile the CPU extension, or fail
FAIRKERN_BUILD=cuda  compile both, or fail
FAIRKERN_BUILD=none  do not compile

FAIRKERN_CUDA_ARCHITECTURES="90"  code for these GPUs alone (numbers as nvcc's sm_90), where one knows where it will run
FAIRKERN_JOBS=16                  compilers at a time; 2 where nothing is said
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

CPU, CUDA = "fairkern.ops._extension_cpu", "fairkern.ops._extension_cuda"
CHOICES = ("auto", "cpu", "cuda", "none")
# Those that nvcc knows are built, each row from one PTX: assembled from PTX of its own each comes out the same to the
# bit, since the device code does not tell them apart. The last row's PTX is kept too.
ARCHITECTURES = ((80, 90), (100, 120))
BANNER = """
**********************************************************************
fairkern: {name} could not be built:
  {error}
The installation goes on without it, on the other backends. `fairkern
info` shows what is there. FAIRKERN_BUILD={build} turns this into an error.
**********************************************************************
"""


def choice() -> str:
    asked = os.environ.get("FAIRKERN_BUILD", "auto")
    if asked not in CHOICES:
        raise SystemExit(f"FAIRKERN_BUILD={asked}: expected one of " + ", ".join(CHOICES))
    if asked == "cuda" and nvcc() is None:
        raise SystemExit("FAIRKERN_BUILD=cuda: nvcc was not found; put it on PATH or set CUDA_HOME")
    if asked == "auto" and sys.platform == "win32":
        return "none"
    return asked


def nvcc() -> "str | None":
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))


def architectures(known: "set[int]") -> "tuple[list[tuple[int, ...]], bool]":
    """Rows of those to build, each with one PTX, and whether the last row's PTX is kept too."""
    asked = os.environ.get("FAIRKERN_CUDA_ARCHITECTURES", "")
    if not re.fullmatch(r"[\d\s,;]*", asked):
        raise SystemExit(f"FAIRKERN_CUDA_ARCHITECTURES={asked}: expected numbers as in 80 90")
    alone = sorted({int(number) for number in re.findall(r"\d+", asked)})
    unknown = [number for number in alone if number not in known]
    if unknown:
        raise SystemExit(f"FAIRKERN_CUDA_ARCHITECTURES={asked}: this nvcc does not know {unknown}, but {sorted(known)}")
    if alone:
        return [(number,) for number in alone], False
    rows = [tuple(number for number in row if number in known) for row in ARCHITECTURES]
    return [row for row in rows if row], True


def output_of(*command: str) -> str:
    from setuptools.errors import CompileError

    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise CompileError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def compile_cuda(ext, folder: Path) -> None:
    """The device code, and where its libraries are; what nvcc does not know among the architectures is left out."""
    from setuptools.errors import CompileError

    compiler = nvcc()
    known = {int(number) for number in re.findall(r"sm_(\d+)", output_of(compiler, "--list-gpu-code"))}
    wanted, keep_ptx = architectures(known)
    if not wanted:
        raise CompileError(f"{compiler} knows none of the architectures {ARCHITECTURES}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "gather.o"
    code = [f"-gencode=arch=compute_{row[0]},code=sm_{number}" for row in wanted for number in row]
    if keep_ptx:
        code.append(f"-gencode=arch=compute_{wanted[-1][0]},code=compute_{wanted[-1][0]}")
    flags = ["-std=c++17", "-O3", "-Icsrc", "-Xcompiler", "-fPIC", "--threads", "0", *code]
    output_of(compiler, *flags, "-c", "csrc/cuda/gather.cu", "-o", str(target))
    dry = output_of(compiler, "--dryrun", "-c", "csrc/cuda/gather.cu", "-o", str(target))
    ext.library_dirs = re.findall(r'"?-L([^"\s]+)"?', dry)  # where its own libraries are, wherever nvcc itself is
    ext.extra_objects = [str(target)]
    built = " ".join(f"sm_{number}" for row in wanted for number in row)
    ext.define_macros = [("FAIRKERN_ARCHITECTURES", f'"{built}"')]


def extension_arguments(build: str) -> dict:
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext

    class LoudBuild(build_ext):
        def finalize_options(self):
            super().finalize_options()
            self.parallel = self.parallel or 2  # nvcc beside the C++ compiler

        def build_extension(self, ext):
            try:
                if ext.name == CUDA:
                    compile_cuda(ext, Path(self.build_temp))
                super().build_extension(ext)
            except Exception as error:
                if ext.optional:
                    asked = "cuda" if ext.name == CUDA else "cpu"
                    print(BANNER.format(name=ext.name, error=error, build=asked), file=sys.stderr, flush=True)
                raise

    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    shared = {
        "depends": sorted(path.as_posix() for ending in ("*.h", "*.cu") for path in Path("csrc").rglob(ending)),
        "include_dirs": ["csrc"],
        "cxx_std": 17,
        "optional": build == "auto",
    }
    extensions = [
        Pybind11Extension(
            CPU,
            ["csrc/bindings.cpp", *sorted(path.as_posix() for path in Path("csrc/cpu").glob("*.cpp"))],
            # No contraction: a result may not depend on the instruction set that was dispatched to. What is fused is
            # said to be (inner/vectors.h).
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wno-psabi", *openmp],
            extra_link_args=openmp,
            **shared,
        )
    ]
    if build == "cuda" or (build == "auto" and sys.platform == "linux" and nvcc()):
        cuda = Pybind11Extension(CUDA, ["csrc/cuda/bindings.cpp"], extra_compile_args=["-O1"], **shared)
        cuda.libraries = ["cudart_static", "rt", "pthread", "dl"]
        extensions.append(cuda)
    ParallelCompile("FAIRKERN_JOBS", default=2).install()
    return {"ext_modules": extensions, "cmdclass": {"build_ext": LoudBuild}}


build = choice()
setup(**(extension_arguments(build) if build != "none" else {}))
