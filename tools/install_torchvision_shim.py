"""Let `import torchvision` work where its compiled operators cannot load.

The torchvision wheels of the public index are linked against CUDA. Beside a CPU build of torch their operators do not
load, and `torchvision._meta_registrations` then fails at import, because it registers fake kernels for two operators
that nobody declared. Transforms, all that image and video processors need, do not use those operators.

Run with the Python of the environment to repair; it writes two files into that environment's site-packages: a module
that declares the two schemas just before `torchvision._meta_registrations` is imported, and a `.pth` file that puts
the module's hook in place at every start of the interpreter, so that spawned processes (vLLM workers, data loaders)
have it as well. Where the operators load, as on a machine with CUDA, the hook does nothing. Running it again rewrites
the same two files. Box operators (`torchvision.ops`) stay unusable and still say so.
"""

import sys
import sysconfig
from pathlib import Path


MODULE = "_mmsearch_torchvision_shim"

SOURCE = '''\
"""Written by tools/install_torchvision_shim.py of mmsearch-trl; delete this file and its .pth to undo."""

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


def install(site_packages: Path) -> list[Path]:
    """Write the module and its `.pth` into `site_packages`; returns the two paths."""
    module, pth = site_packages / f"{MODULE}.py", site_packages / f"{MODULE}.pth"
    module.write_text(SOURCE, encoding="utf-8")
    pth.write_text(f"import {MODULE}; {MODULE}.install()\n", encoding="utf-8")
    return [module, pth]


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("install_torchvision_shim: run me with the Python of a virtual environment, not the system's")
    for path in install(Path(sysconfig.get_paths()["purelib"])):
        sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
