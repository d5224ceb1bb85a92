"""What a training step costs on one GPU, and whether its log-probs are right there: `python -m benchmarks.gpu`.

It needs torch, transformers and this project's `src` on `PYTHONPATH`; PEFT, flash-attn, TRL and vLLM are used where
they are installed, and the table says what was left out.
"""
