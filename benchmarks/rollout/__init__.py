"""The rollout benchmark: TRL's own tool loop, a lockstep loop and ours, on one real vLLM server and the same tokens.

    make bench-rollout K=64 SEED=0

Every scheduler decodes the same tokens: a logits processor inside the server forces them (`forced_tokens.py`), each
after an ordinary forward pass. Tools sleep for the same seeded times. What is left to differ is the scheduling.
"""
