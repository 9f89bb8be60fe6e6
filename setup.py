"""Builds medsora_ops._C, the native operators. Everything else about the package stands in pyproject.toml.

The extension is optional: without a working C++17 compiler the install goes on and says so, and the plain PyTorch
definitions serve. MEDSORA_REQUIRE_EXT=1 makes a failed build an error.

Its CUDA kernels are compiled where nvcc is found, in CUDA_HOME or on the PATH. No GPU and no driver are needed, neither
to build nor to import. MEDSORA_CUDA=0 leaves them out, MEDSORA_CUDA=1 makes it an error if they cannot be built.
MEDSORA_CUDA_ARCHS="80 90" compiles for other GPUs than those below.
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from itertools import takewhile

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup
from setuptools.modified import newer_group

CUDA_WANTED = os.environ.get("MEDSORA_CUDA", "")
REQUIRED = os.environ.get("MEDSORA_REQUIRE_EXT") == "1" or CUDA_WANTED == "1"
# Ampere, Ada, Hopper and Blackwell, each as data-centre and as consumer GPU; later ones translate the newest's PTX.
CUDA_ARCHITECTURES = "80 86 89 90 100 120"
HEADERS = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True))
KERNELS = sorted(glob("csrc/cuda/*.cu"))


class OptionalBuild(build_ext):
    """Builds the extension, and turns a failure into a notice unless it is required."""

    failed = False

    def build_extension(self, ext):
        ext.define_macros.append(("MEDSORA_VERSION", f'"{self.distribution.get_version()}"'))
        if is_gcc(compiler_command(self.compiler)):
            # Compiled with OpenMP but not linked to it: the symbols bind to the runtime that torch brings, so that
            # there is one thread pool. Other compilers call runtimes that torch does not bring: they build serially.
            ext.extra_compile_args.append("-fopenmp")
        try:
            print(f"medsora_ops._C: {self.build_cuda(ext)}")
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

    def build_cuda(self, ext):
        """Compiles the CUDA kernels and adds them to `ext`, where that is possible. Returns a line on what was done."""
        if CUDA_WANTED == "0":
            return "without CUDA, as MEDSORA_CUDA=0 says"
        try:
            nvcc = Nvcc()
            objects = nvcc.compile(self, KERNELS, ext.depends)
        except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
            if CUDA_WANTED == "1" or (REQUIRED and not isinstance(error, NoNvcc)):
                raise
            return f"without CUDA: {error}"
        ext.define_macros.append(("MEDSORA_CUDA", f'"{nvcc.version}"'))
        ext.define_macros.append(("MEDSORA_CUDA_ARCHITECTURES", ",".join(map(str, nvcc.architectures))))
        # The runtime is linked in and hidden: no library to find at run time, no clash with the one that torch brings.
        ext.extra_objects += [*objects, nvcc.runtime]
        ext.libraries += ["dl", "pthread", "rt"]
        ext.extra_link_args.append("-Wl,--exclude-libs,ALL")
        return f"with CUDA {nvcc.version} for " + ", ".join(f"sm_{number}" for number in nvcc.architectures)

    def copy_extensions_to_source(self):
        """The last step of a build in place, which an editable install is too."""
        if not self.failed:
            return super().copy_extensions_to_source()
        for left in glob("medsora_ops/_C.*"):  # an extension of an earlier build must not pass for this one
            os.remove(left)


class NoNvcc(RuntimeError):
    """There is nothing to compile CUDA with."""


class Nvcc:
    """The CUDA compiler that is here: its version, what it compiles for, and where its runtime library lies."""

    def __init__(self):
        home = os.environ.get("CUDA_HOME", "")
        self.path = (home and shutil.which("nvcc", path=os.path.join(home, "bin"))) or shutil.which("nvcc")
        if not self.path or not sys.platform.startswith("linux"):
            raise NoNvcc("no nvcc in CUDA_HOME or on the PATH")
        (self.version,) = re.findall(r"release (\d+\.\d+)", self.say("--version"))
        listed = re.findall(r"compute_(\d+)\b", self.say("--list-gpu-arch"))
        known = {number for number in map(int, listed) if number >= 80}  # before, there is no bfloat16
        named = os.environ.get("MEDSORA_CUDA_ARCHS", "")
        wanted = re.findall(r"[^\s,;]+", named or CUDA_ARCHITECTURES)
        self.architectures = sorted({number for number in known if str(number) in wanted})
        if not self.architectures or (named and len(self.architectures) < len(set(wanted))):
            every = ", ".join(map(str, sorted(known)))
            raise ValueError(f"MEDSORA_CUDA_ARCHS: got {named!r}, wants numbers out of {every}")
        # What is on the PATH may be a script that calls another: nvcc itself says where it looks for libraries.
        told = self.say("--dryrun", "any.cu")
        folders = re.findall(r'"-L([^"]*)"', told) + [f"{top}/lib64" for top in re.findall(r"TOP=(.*)", told)]
        found = (os.path.join(folder, "libcudart_static.a") for folder in folders)
        self.runtime = next(filter(os.path.exists, found), None)
        if self.runtime is None:
            raise NoNvcc(f"{self.path} comes without libcudart_static.a")

    def say(self, *options):
        done = subprocess.run([self.path, *options], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def compile(self, build, sources, depends):
        """Object files of the sources, in the temporary folder; those newer than what they depend on are kept."""
        targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in self.architectures]
        newest = self.architectures[-1]
        host = shutil.which(compiler_command(build.compiler)[-1])
        command = [
            self.path, "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", f"-ccbin={host}",
            *targets, f"-gencode=arch=compute_{newest},code=compute_{newest}",
            f"--threads={os.environ.get('MEDSORA_BUILD_JOBS') or os.cpu_count()}",
        ]  # fmt: skip
        objects = [os.path.join(build.build_temp, os.path.splitext(source)[0] + ".o") for source in sources]
        for source, target in zip(sources, objects):
            if build.force or newer_group([source, *depends], target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                print(" ".join([*command, "-c", source, "-o", target]))
                if subprocess.run([*command, "-c", source, "-o", target], check=False).returncode:
                    raise RuntimeError(f"nvcc {self.version} with {host} does not compile {source}")
        return objects


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
            sources=[*sorted(glob("csrc/bindings*.cpp")), *sorted(glob("csrc/cpu/*.cpp"))],
            depends=["setup.py", *HEADERS, *glob("csrc/cuda/*.cuh"), *KERNELS],
            extra_compile_args=["-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"],
            cxx_std=17,
            optional=not REQUIRED,
        )
    ],
)
