"""The extension modules and their two builds: release, and debug (FASTMASQ_DEBUG=1) with every check on.

And the program that carries flows in the kernel, where there is a compiler for it.
"""

import os
import re
import shutil
import subprocess
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
# Code for Linux 5.1 and newer: for older ones gcc 12 forgets to clear the upper half of registers.
program_args = ["-c", "-O2", "-mcpu=v3", "-std=gnu11", "-ffreestanding", "-Wall", "-Wextra", "-Werror"]
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


PROGRAM = Path("fastmasq", "offload", "flow.bpf.c")
MADE = PROGRAM.with_suffix(".o")
# Where the rows are declared that the program reads, each after what it needs; some names get a prefix.
ROWS = {
    "wire/numbers": "",
    "wire/ethernet": "ETHERNET_",
    "wire/tcp": "",
    "table/bucket": "",
    "table/siphash": "",
    "table/index": "",
    "table/rows": "",
    "table/tcp_state": "",
    "path/links": "",
    "path/carrier": "",
}


def declarations(module: str, prefix: str) -> str:
    """Return the enumerations and structs of a .pxd file in C."""
    text = re.sub(r" *#.*", "", (ROOT / "fastmasq" / f"{module}.pxd").read_text())
    text = text.replace("ethernet.", "ETHERNET_").replace("numbers.", "")
    found = []
    for kind, name, body in re.findall(r"^cdef (enum|struct) ?(\w*):\n((?: +.*\n|\n(?= ))+)", text, re.MULTILINE):
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        if kind == "enum":
            found += [
                f"#define {prefix}{constant} ({value})" for constant, value in (line.split(" = ") for line in lines)
            ]
        else:
            found.append(f"typedef struct {name} {{ {' '.join(f'{line};' for line in lines)} }} {name};")
    return "\n".join(found)


class BuildExtensions(build_ext):
    """Makes the C code only when it is compiled: a source distribution has the .pyx files, and takes a moment."""

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), str(PROGRAM)]

    def build_extensions(self) -> None:
        translated = cythonize(list(self.extensions), compiler_directives=directives, nthreads=2)
        for mine, made in zip(self.extensions, translated, strict=True):
            mine.sources = made.sources
        super().build_extensions()
        self.build_program()

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        (ROOT / MADE).unlink(missing_ok=True)
        if (made := Path(self.build_lib, MADE)).exists():
            shutil.copy(made, ROOT / MADE)

    def build_program(self) -> None:
        """Compile what the kernel is to run, by Debian's gcc-bpf; without it, the kernel carries no flows."""
        made = Path(self.build_lib, MADE)
        compiler = shutil.which("bpf-gcc")
        if compiler is None:
            print("bpf-gcc is not installed (Debian's gcc-bpf): the kernel will carry no flows", file=sys.stderr)
            made.unlink(missing_ok=True)
            return
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        (folder / "rows.h").write_text("\n".join(declarations(*each) for each in ROWS.items()) + "\n")
        subprocess.run([compiler, *program_args, f"-I{folder}", "-o", made, ROOT / PROGRAM], check=True)


sources = sorted(source for folder in FOLDERS for source in (ROOT / folder).rglob("*.pyx"))
setup(ext_modules=[extension(source) for source in sources], cmdclass={"build_ext": BuildExtensions})
