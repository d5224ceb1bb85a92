"""Writes docs/recipes.md, the reference of every recipe key, from the dataclasses that read the keys.

    python tools/write_recipe_reference.py

`tests/test_docs.py` fails when the file is not what this script would write. Help texts that this project inherits are
cut after their first sentence and belong to the installed TRL and transformers, so the file names their versions.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, SFTConfig

from mmsearch_trl.data.columns import Columns
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.recipe.model_config import RecipeModelConfig
from mmsearch_trl.recipe.model_keys import OF_NO_RECIPE
from mmsearch_trl.recipe.tools import TOOLS
from mmsearch_trl.rewards.direct import DirectRewardConfig
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.overlong import OverlongConfig
from mmsearch_trl.rewards.remote import RemoteConfig
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig
from mmsearch_trl.rewards.sources import RewardSources
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.calls.section import BackendConfig, ImageConfig, TextConfig
from mmsearch_trl.search.config import ImageSection, SearchConfig, TextSection
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig
from mmsearch_trl.trainer.options import REPLACED, REPLACED_SUPERVISED


PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"

INTRODUCTION = """\
# Recipe reference

<!-- Written by tools/write_recipe_reference.py; change the dataclasses and run it again. -->

A recipe is one YAML file that says everything about a run. Keys of model, data and trainer stand flat at the top of
the file; the mappings `search:`, `rollout:`, `reward:`, `estimator:` and `critic:` hold the rest. `search.image` and
`search.text` say with `backend` what answers, and hold its keys:

```yaml
model_name_or_path: Qwen/Qwen2.5-VL-3B-Instruct
train_files: [data/questions.jsonl]
learning_rate: 2.0e-6
rollout:
  max_turns: 3
search:
  image: {backend: index, path: indexes/pages, top_k: 5}
  text: {backend: bm25, path: indexes/passages, top_k: 3}
  timeout_s: 20
```

`extends: other.yaml` (relative to the file's own folder) takes everything from another recipe, which may extend a
third, and changes what the file names: mappings are merged key by key, lists and plain values replaced. A section
whose `backend` becomes another starts empty. What a run folder records is the result.

Any key can be overridden on the command line in the same way, nested ones with a dot. Values are read as YAML; several
values after one key are a list, and none is `true`; `null` takes a section out:

```bash
mmsearch train --config world/grpo --learning_rate 1e-4 --rollout.max_turns 2 --log_completions
mmsearch train --config world/grpo --search.text.backend ddgs --search.text.top_k 2
```

An unknown key, a value of the wrong type, a missing file, a `num_generations` that does not divide the batch, or a
prompt that offers a search that the limits forbid is an error before any work is done, and names the key. Paths start
at the working directory.

A supervised recipe (`mmsearch sft`) has the keys of model, data, `transformers.TrainingArguments`,
`trl.SFTConfig`, `freeze_vision`, `freeze_prefix` and `overwrite_output_dir`, and no `search:`, `rollout:` and
`reward:`.

`resume_from_checkpoint` is a checkpoint's folder; `true`, also with no value behind `--resume_from_checkpoint`, the
newest complete one in `output_dir`; `auto` the same, and the first step where a run was ended before it saved one.
"""

INHERITED = """\
## Inherited keys

The keys below are those of TRL and transformers, with the first sentence of their help texts (trl {trl},
transformers {transformers}, both Apache-2.0); their documentation has the rest. None is ignored: a key of something
that this project does in its own way (generation, TRL's tool loop, the evaluation of labels) is refused and not
listed, and so is one that does nothing beside the others, such as `delta` under `loss_type: cispo` or `lora_r` without
`use_peft`; the error says why. Only keys whose name says what they belong to (`vllm_*`, `lr_sigmoid_*`) may stay where
that is switched off. `max_completion_length` divides the loss under `loss_type: dr_grpo`, where it follows
`rollout.max_response_tokens`, and limits nothing.
"""


_HEADING = "| key | default | meaning |\n|---|---|---|"


def own_part() -> str:
    """The page up to the inherited keys: what this project alone decides."""
    trainer = [field for field in fields(MMSearchGRPOConfig) if field.name not in _names(GRPOConfig)]
    own_model = [field for field in fields(RecipeModelConfig) if field.name not in _names(ModelConfig)]
    return "\n".join(
        [
            INTRODUCTION,
            _table("Model: what TRL lacks", "At the top level.", map(_row, own_model)),
            _table("Data", "At the top level.", (_row(each) for each in fields(DataConfig) if each.name != "columns")),
            _table("Columns", "In the mapping `columns:`.", (_row(field, "columns.") for field in fields(Columns))),
            _table("Trainer: what a search trainer adds", "At the top level.", map(_row, trainer)),
            _table(
                "Estimator",
                "In the mapping `estimator:`, and in `kl:` within it.",
                [
                    *(_row(field, "estimator.") for field in fields(EstimatorConfig) if field.name != "kl"),
                    *(_row(field, "estimator.kl.") for field in fields(KLConfig)),
                ],
            ),
            _table("Critic", "In the mapping `critic:`.", (_row(field, "critic.") for field in fields(CriticConfig))),
            _table("Rollout", "In the mapping `rollout:`.", (_row(field, "rollout.") for field in fields(Limits))),
            _table("Search", "In the mapping `search:`.", (_row(field, "search.") for field in fields(SearchConfig))),
            *_backends("Image search", ImageConfig, ImageSection),
            *_backends("Text search", TextConfig, TextSection),
            *_tools(),
            _table(
                "Rewards beside the rule",
                "In the mapping `reward:`, under every protocol. `reward_weights` has a weight of each reward, in the "
                "order of rule, functions, models, servers, length; without it each counts once.",
                [
                    *(_row(field, "reward.") for field in fields(RewardSources)),
                    *(_row(field, "reward.remote.") for field in fields(RemoteConfig)),
                    *(_row(field, "reward.overlong.") for field in fields(OverlongConfig)),
                ],
            ),
            _table("Reward", "In the mapping `reward:`.", _reward(RewardConfig)),
            _table(
                "Reward of Search-R1",
                "In the mapping `reward:`, under `protocol: search_r1`.",
                _reward(SearchR1RewardConfig),
            ),
            _table(
                "Reward without tools",
                "In the mapping `reward:`, under `protocol: direct`.",
                _reward(DirectRewardConfig),
            ),
        ]
    )


def _reward(section: type) -> Iterator[str]:
    """The keys of a protocol's own rule."""
    return (_row(field, "reward.") for field in fields(section) if field.name not in _names(RewardSources))


def _backends(title: str, base: type[BackendConfig], union: Any) -> Iterator[str]:
    """The keys that every backend of a tool has, and then each one's own."""
    prefix = f"{base.section}."
    shared = [field for field in fields(base) if field.name != "backend"]
    rows = [
        f"| `{prefix}backend` | required | What answers: one of those below. |",
        *(_row(f, prefix) for f in shared),
    ]
    yield _table(title, f"In the mapping `{base.section}:`.", rows)
    for section in get_args(union):
        backend, *own = [field for field in fields(section) if field.name not in {field.name for field in shared}]
        name = getattr(section, "backend", "package.module:Name")
        yield f"`{prefix}backend: {name}`: {_escaped(backend.metadata['help'])}\n"
        rows = [_row(field, prefix) for field in own if not field.metadata.get("other_keys")]
        if rows:
            yield "\n".join([_HEADING, *rows, ""])


def _tools() -> Iterator[str]:
    """The keys of every tool that comes with the package."""
    rows = ["| `tools` | none | What the model may call besides the two searches: a list, each item with `tool`. |"]
    yield _table("Tools", "At the top level, under `protocol: mmsearch_r1`; docs/tools.md has an example.", rows)
    for name, tool in TOOLS.items():
        yield f"`{{tool: {name}}}`, and in the same item:\n"
        yield "\n".join([_HEADING, *(_row(field) for field in fields(tool)), ""])
    yield "`{tool: package.module:Name}`: a class of yours; all other keys are passed to it.\n"


def inherited_part() -> str:
    """The keys of TRL and transformers, which depend on the installed versions."""
    both = _names(TrainingArguments)
    no_grpo, no_sft = REPLACED.keys() | OF_NO_RECIPE.keys(), REPLACED_SUPERVISED.keys() | OF_NO_RECIPE.keys()
    grpo = [field for field in fields(MMSearchGRPOConfig) if field.name in _names(GRPOConfig) - both - no_grpo]
    sft = [field for field in fields(SFTConfig) if field.name not in both | no_sft]
    shared = both - (no_grpo & no_sft)
    return "\n".join(
        [
            INHERITED.format(trl=version("trl"), transformers=version("transformers")),
            _table("Model", "At the top level; `trl.ModelConfig`.", map(_brief, fields(ModelConfig))),
            _table("Trainer: GRPO", "At the top level; `trl.GRPOConfig`.", map(_brief, grpo)),
            _table("Trainer: supervised", "At the top level; `trl.SFTConfig`.", map(_brief, sft)),
            _table("Trainer: both", "At the top level; `transformers.TrainingArguments`.", _shared_rows(shared)),
        ]
    )


def page() -> str:
    return f"{own_part()}\n{inherited_part()}"


def _names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


def _table(title: str, where: str, rows: Iterable[str]) -> str:
    return "\n".join([f"## {title}\n\n{where}\n", _HEADING, *filter(None, rows), ""])


def _row(field: Field[Any], prefix: str = "", *, whole: bool = True, default: str | None = None) -> str:
    """One line of a table, empty for a field that no recipe can set; `whole` keeps the help text uncut."""
    if not field.init:
        return ""
    text = " ".join(str(field.metadata.get("help", "")).split())
    meaning = _escaped(text if whole else _first_sentence(text))
    return f"| `{prefix}{field.name}` | {default or _default(field)} | {meaning} |"


def _brief(field: Field[Any]) -> str:
    return _row(field, whole=False)


def _shared_rows(names: Collection[str]) -> Iterator[str]:
    """Keys of both kinds of recipe, whose defaults TRL sets for each."""
    supervised = {field.name: field for field in fields(SFTConfig)}
    for field in fields(MMSearchGRPOConfig):
        if field.name in names:
            default, other = _default(field), _default(supervised[field.name])
            both = default if default == other else f"{default}; supervised {other}"
            kinds = {" (supervised)": REPLACED, " (GRPO)": REPLACED_SUPERVISED}
            only = next((kind for kind, refused in kinds.items() if field.name in refused), "")
            yield _row(field, whole=False, default=both + only)


def _default(field: Field[Any]) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if isinstance(value, Enum):
        value = value.value
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{_escaped(str(value))}`"


def _first_sentence(text: str) -> str:
    """Up to the first full stop that a capital letter, a quote or code follows, and that no abbreviation ends with."""
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<!vs)\.(?= [A-Z`\"'])", text)
    return text[: end.end()] if end else text


def _escaped(text: str) -> str:
    """Text that neither ends a table cell nor reads as HTML; code between backticks shows `<` as it is."""
    pieces = text.replace("|", "\\|").split("`")
    return "`".join(piece if i % 2 else piece.replace("<", "&lt;") for i, piece in enumerate(pieces))


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
