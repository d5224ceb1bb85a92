"""Let `import torchvision` work beside a CPU build of torch, where its compiled operators cannot load.

The torchvision wheels of the public index are linked against CUDA. Beside a CPU build of torch their operators do not
load, and `torchvision._meta_registrations` then fails at import, because it registers fake kernels for two operators
that nobody declared. Transforms, all that image and video processors need, do not use those operators.

    .venv/bin/python tools/torchvision_shim.py            install it where it is needed, else take it out
    .venv/bin/python tools/torchvision_shim.py --remove   take it out

The shim is two files in the environment's site-packages: a module that declares the two schemas just before
`torchvision._meta_registrations` is imported, and a `.pth` file that puts the module's hook in place at every start of
the interpreter, so that spawned processes (vLLM workers, data loaders) have it as well. Box operators
(`torchvision.ops`) stay unusable and still say so.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path


MODULE = "_mmsearch_torchvision_shim"

# Started with -S, which leaves `.pth` files out: torchvision as it is without the shim.
_PROBE = """
import sys
sys.path[1:1] = sys.argv[1:]
import torch
if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
    sys.exit("torch is a GPU build")
try:
    import torchvision
except RuntimeError as error:
    sys.exit("needed" if "torchvision::nms does not exist" in str(error) else f"{type(error).__name__}: {error}")
except ImportError as error:
    sys.exit(f"torchvision cannot be imported: {error}")
sys.exit("torchvision loads by itself")
"""

SOURCE = '''\
"""Written by tools/torchvision_shim.py of mmsearch-trl; `make clean` takes it out, with its .pth."""

import sys

_TARGET = "torchvision._meta_registrations"
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries = []  # a torch Library takes its declarations with it when it is collected


def _declare_missing_schemas():
    import torch

    if sys.modules["torchvision.extension"]._has_ops():
        return
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        _libraries.append(library)


class _Hook:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == _TARGET and "torchvision.extension" in sys.modules:
            _declare_missing_schemas()
        return None  # the ordinary finders import the module itself


def install():
    if not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())
'''


def why_not(site_packages: Path) -> str | None:
    """Why the environment that runs this needs no shim; None where it needs one."""
    command = [sys.executable, "-S", "-c", _PROBE, str(site_packages), sysconfig.get_paths()["platlib"]]
    lines = subprocess.run(command, capture_output=True, text=True).stderr.split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "torchvision could not be tried")
    return None if said == "needed" else said


def install(site_packages: Path) -> list[Path]:
    """Write the module and its `.pth` into `site_packages`; returns the two paths."""
    module, pth = _files(site_packages)
    module.write_text(SOURCE, encoding="utf-8")
    pth.write_text(f"import {MODULE}; {MODULE}.install()\n", encoding="utf-8")
    return [module, pth]


def remove(site_packages: Path) -> list[Path]:
    """Delete what `install` wrote; returns what there was. The `.pth` goes first: alone it would be an error."""
    there = [path for path in reversed(_files(site_packages)) if path.exists()]
    for path in there:
        path.unlink()
    return there


def _files(site_packages: Path) -> tuple[Path, Path]:
    return site_packages / f"{MODULE}.py", site_packages / f"{MODULE}.pth"


def main(arguments: list[str]) -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("torchvision shim: run me with the Python of a virtual environment, not the system's")
    site_packages = Path(sysconfig.get_paths()["purelib"])
    reason = "it was asked for" if "--remove" in arguments else why_not(site_packages)
    if reason is None:
        install(site_packages)
        said = f"installed in {site_packages} (torch is a CPU build, torchvision is not; `make clean` takes it out)"
    elif remove(site_packages):
        said = f"taken out of {site_packages} ({reason})"
    else:
        said = f"not installed ({reason})"
    sys.stdout.write(f"torchvision shim: {said}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
