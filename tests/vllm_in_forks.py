"""vLLM's server with its engine and its worker as forks, as vLLM starts them itself where a GPU computes.

On a CPU it starts them anew, for the sake of the threads of each, and each imports for seconds what is here already.
"""

import os
import runpy

from vllm.platforms import current_platform


if __name__ == "__main__":
    settle = type(current_platform).check_and_update_config

    def settle_on_forks(config: object) -> None:
        settle(config)  # pyright: ignore[reportArgumentType]
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    type(current_platform).check_and_update_config = staticmethod(settle_on_forks)  # pyright: ignore
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
