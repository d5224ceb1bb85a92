"""`mmsearch vllm`: serve a model to rollouts."""

import argparse

from mmsearch_trl.core.versions import check_versions


def add_vllm(vllm: argparse.ArgumentParser) -> None:
    """Declare the options; what it does not know is vLLM's."""
    vllm.add_argument("model", metavar="MODEL", help="name or folder of the model that will be trained")
    vllm.add_argument("--port", type=int, default=8000, help="where it listens")
    vllm.add_argument("--max_lora_rank", type=int, metavar="R", help="take LoRA adapters of up to this rank")
    vllm.set_defaults(action=_vllm, takes_rest=True)


def _vllm(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.engine.vllm_process import become_server

    become_server(options.model, options.rest, port=options.port, max_lora_rank=options.max_lora_rank)
