"""The package's public face."""

import subprocess
import sys

import mmsearch_trl


def test_every_public_name_is_there() -> None:
    for name in mmsearch_trl.__all__:
        assert getattr(mmsearch_trl, name).__name__ == name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mmsearch_trl; print(sorted({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_rollout_protocol_search_and_rewards_never_import_trl() -> None:
    modules = [
        "rollout.loop",
        "rollout.upstream_limits",
        "protocol.mmsearch",
        "protocol.search_r1",
        "search.config",
        "search.index_build",
        "rewards.mmsearch",
        "rewards.search_r1",
    ]
    code = f"import sys; [__import__('mmsearch_trl.' + m) for m in {modules}]; print('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
