"""The text of a model card, a Jinja template; `model_card.py` fills it.

It is a module and not a data file, so that no way of packaging can leave it behind: a card is written at the end of a
training run, which is no time to find that out.
"""

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{% if direct -%}
A model that answers {{ "questions about images and texts" if images else "questions" }} in one turn. It was trained
from {{ base }} with reinforcement learning (GRPO{{ ", a LoRA adapter" if adapter }}, optimizer steps: {{ steps }}).
{% elif search_r1 -%}
A model that searches when it must. It reasons about a question, asks a search engine (`<search>query</search>`), reads
what was found without ending its turn, and answers. It was trained from {{ base }}
with reinforcement learning (GRPO{{ ", a LoRA adapter" if adapter }}, optimizer steps: {{ steps }}) that rewards right
answers, after [Search-R1](https://arxiv.org/abs/2503.09516).
{% else -%}
A vision-language model that searches when it must. It looks at an image and a question, reasons, and then answers,
looks the image up (`<search><img></search>`), or searches text (`<text_search>query</text_search>`); what a search
finds is shown to it before it goes on. It was trained from {{ base }}
with reinforcement learning (GRPO{{ ", a LoRA adapter" if adapter }}, optimizer steps: {{ steps }}) that rewards right
answers and charges a little for searching, after [MMSearch-R1](https://arxiv.org/abs/2506.20670).
{% endif %}
## Quick start

{% if direct -%}
Install `mmsearch-trl`{{ ", put an image `photo.jpg` beside this code," if images }} and run it: it asks as in
training and prints what the model writes. Where the training data began with a system message, give it the same.
{% else -%}
Install `mmsearch-trl`, put {{ "an image `photo.jpg` and " if images }}your search {{
"index" if search_r1 else "indexes" }} beside this code, and run it: it carries out the search loop of training and
prints every turn, then the answer.
{% endif %}
```python
{{ code }}
```

## {{ "How it answers" if direct else "How it searches" }}

| setting | value | meaning |
|---|---|---|
{% for setting, value, meaning in settings -%}
| `{{ setting }}` | {{ value }} | {{ meaning }} |
{% endfor %}
## What it was rewarded for

{% for reward in rewards -%}
- {{ reward }}
{% endfor %}
{% if evaluation -%}
## Evaluation

{{ evaluation }}

{% if not direct -%}
Accuracy leaves the search penalty out; `search ratio` is the share of questions for which it searched at all.

{% endif -%}
{% endif -%}
## Made with

{{ versions }}

## Cite

```bibtex
{% if direct -%}
{%- elif search_r1 -%}
@article{jin2025searchr1,
  title   = {Search-R1: Training LLMs to Reason and Leverage Search Engines with Reinforcement Learning},
  author  = {Jin, Bowen and Zeng, Hansi and Yue, Zhenrui and others},
  journal = {arXiv preprint arXiv:2503.09516},
  year    = {2025}
}
{%- else -%}
@article{wu2025mmsearchr1,
  title   = {MMSearch-R1: Incentivizing LMMs to Search},
  author  = {Wu, Jinming and Deng, Zihao and Li, Wei and others},
  journal = {arXiv preprint arXiv:2506.20670},
  year    = {2025}
}
{% endif %}
@article{shao2024deepseekmath,
  title   = {DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author  = {Shao, Zhihong and others},
  journal = {arXiv preprint arXiv:2402.03300},
  year    = {2024}
}
```
"""
