"""Build time only: cffi reads csrc/pygpt.h as it is and compiles the C core into pygpt._core (abi3).

Run by setup.py, in the project's root. Nothing is declared twice: preprocessor lines are dropped, the rest is parsed.
"""

import re
import shlex
import shutil
import sys
import sysconfig
from glob import glob
from os import environ
from os.path import exists, join

from cffi import FFI

COMPILE = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-g0", "-ffp-contract=off", "-pthread", "-fvisibility=hidden"]
COMPILING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}


def need_compiler() -> None:
    """Ends with a sentence where the long story of a failed build would only hide it."""
    compiler = shlex.split(environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    header = join(sysconfig.get_path("include"), "Python.h")
    if not shutil.which(compiler):
        sys.exit(
            f"pygpt needs a C compiler to build, and {compiler!r} was not found. "
            "Install one (Debian, Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install) "
            "or name yours in the environment variable CC."
        )
    if not exists(header):
        sys.exit(
            f"pygpt needs Python's C headers to build, and {header} was not found. "
            "Install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )


if COMPILING & set(sys.argv):
    need_compiler()

with open("csrc/pygpt.h", encoding="utf-8") as file:
    declarations = re.sub(r"^[ \t]*#.*$", "", file.read(), flags=re.MULTILINE)

ffi = FFI()
ffi.cdef(declarations)
ffi.set_source(
    "pygpt._core",
    '#include "pygpt.h"',
    sources=sorted(glob("csrc/*.c") + glob("csrc/*/*.c")),
    depends=sorted(glob("csrc/*.h") + glob("csrc/*/*.h") + glob("csrc/*/*.inc")),
    include_dirs=["csrc"],
    extra_compile_args=COMPILE,
    extra_link_args=["-pthread"],
    libraries=["m"],
)
