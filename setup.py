"""Builds medsora_ops._C, the native operators. Everything else about the package stands in pyproject.toml.

The extension is optional: without a working C++17 compiler the install goes on and says so, and the plain PyTorch
definitions serve. MEDSORA_REQUIRE_EXT=1 makes a failed build an error.
"""

import os
import subprocess
import sys
from glob import glob
from itertools import takewhile

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

REQUIRED = os.environ.get("MEDSORA_REQUIRE_EXT") == "1"


class OptionalBuild(build_ext):
    """Builds the extension, and turns a failure into a notice unless MEDSORA_REQUIRE_EXT=1."""

    failed = False

    def build_extension(self, ext):
        ext.define_macros.append(("MEDSORA_VERSION", f'"{self.distribution.get_version()}"'))
        if is_gcc(compiler_command(self.compiler)):
            # Compiled with OpenMP but not linked to it: the symbols bind to the runtime that torch brings, so that
            # there is one thread pool. Other compilers call runtimes that torch does not bring: they build serially.
            ext.extra_compile_args.append("-fopenmp")
        try:
            super().build_extension(ext)
        except Exception as error:
            if REQUIRED:
                raise
            self.failed = True
            print(
                f"\n*** medsora_ops._C was not built: {error}\n"
                "*** The install goes on, and plain PyTorch serves the operators. For the native ones install a C++17\n"
                "*** compiler (Debian: apt install g++), then this package again.\n"
                "*** With MEDSORA_REQUIRE_EXT=1 a failed build is an error.\n",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self):
        """The last step of a build in place, which an editable install is too."""
        if not self.failed:
            return super().copy_extensions_to_source()
        for left in glob("medsora_ops/_C.*"):  # an extension of an earlier build must not pass for this one
            os.remove(left)


def compiler_command(compiler):
    """The command that compiles C++ without its options, as a list of words: such as g++, or ccache and g++."""
    words = getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_so
    return list(takewhile(lambda word: not word.startswith("-"), words))


def is_gcc(command):
    """Whether the compiler is GCC itself rather than one that calls itself gcc; False if it does not run."""
    try:
        macros = subprocess.run(
            [*command, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return "__GNUC__" in macros and "__clang__" not in macros


ParallelCompile("MEDSORA_BUILD_JOBS").install()

setup(
    cmdclass={"build_ext": OptionalBuild},
    ext_modules=[
        Pybind11Extension(
            "medsora_ops._C",
            sources=["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
            depends=["setup.py", *sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True))],
            extra_compile_args=["-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"],
            cxx_std=17,
            optional=not REQUIRED,
        )
    ],
)
