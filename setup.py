"""The extension modules and their two builds: release, and debug (FASTMASQ_DEBUG=1) with every check on."""

import os
import re
import sys
from pathlib import Path

from Cython.Build import Dependencies, cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("FASTMASQ_DEBUG") == "1"
ROOT = Path(__file__).parent
FOLDERS = ["fastmasq", "bench"]
if "--inplace" in sys.argv:
    FOLDERS.append("tests")  # what only tests use is in no package

# Cython 3.3 seeks the names after `from fastmasq.table cimport` at the beginning of a line, and overlooks most modules.
# They stand on the same line or in parentheses: what cimports a module is to be built again when it changes.
Dependencies.dependency_after_from_regex = re.compile(r"[ \t]*(?:\(([^)]*)\)|([^\n#(]*))")

directives = {
    "language_level": "3",
    "embedsignature": True,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": not DEBUG,
}
# The path is many small functions in files of their own: gcc is to put them together, as far as it will go. With its
# own limits there are more calls on a packet's way, which then takes 2 % longer (bench/micro, 1000 flows).
inlining = [
    "max-inline-insns-single=1000",
    "inline-unit-growth=400",
    "large-function-growth=1000",
    "large-unit-insns=100000",
]
compile_args = ["-O3", "-g1", "-fno-strict-aliasing", "-Wno-unused-function", "-Wno-unreachable-code"]
compile_args += [f"--param={limit}" for limit in inlining]
if DEBUG:
    compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-strict-aliasing"]
compile_args += os.environ.get("FASTMASQ_CFLAGS", "").split()
link_args = os.environ.get("FASTMASQ_LDFLAGS", "").split()


def extension(source: Path) -> Extension:
    parts = source.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "bench":
        parts = ("fastmasq_bench", *parts[1:])
    return Extension(
        ".".join(parts),
        [str(source.relative_to(ROOT))],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


class BuildExtensions(build_ext):
    """Makes the C code only when it is compiled: a source distribution has the .pyx files, and takes a moment."""

    def build_extensions(self) -> None:
        translated = cythonize(list(self.extensions), compiler_directives=directives, nthreads=2)
        for mine, made in zip(self.extensions, translated, strict=True):
            mine.sources = made.sources
        super().build_extensions()


sources = sorted(source for folder in FOLDERS for source in (ROOT / folder).rglob("*.pyx"))
setup(ext_modules=[extension(source) for source in sources], cmdclass={"build_ext": BuildExtensions})
