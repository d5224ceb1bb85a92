"""Teach vision-language models to search only when they must: MMSearch-R1 and LMM-R1 on TRL."""

__version__ = "0.1.0"
