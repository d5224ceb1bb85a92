"""The stages of a training: one recipe after the other, by their names or in one file.

output_dir: runs/lmm_r1            # where it is recorded what was done
stages:
  - {name: fre, recipe: lmm_r1/fre_text}
  - name: mgt
    recipe: mine/mgt.yaml          # a file beside this one, or a recipe that is shipped
    learning_rate: 1.0e-6          # keys of the recipe, which it replaces
    accelerate: zero3              # and how the stage is launched: num_processes, accelerate, kind (sft or grpo)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean
from mmsearch_trl.protocol.yaml_text import read_yaml
from mmsearch_trl.recipe.layers import Layers, kind_of
from mmsearch_trl.recipe.shipped import find_accelerate_config, find_recipe, shipped_recipes
from mmsearch_trl.recipe.written import Kind


STAGES = "stages"
_OWN = ("name", "recipe", "kind", "num_processes", "accelerate")
_OF_THE_RUNNER: Mapping[str, str] = {
    "overwrite_output_dir": "a stage that was begun goes on; remove its folder to begin it anew",
    "resume_from_checkpoint": "each stage goes on from its newest checkpoint (auto) by itself",
}
_STARTS = ("model_name_or_path", "model_revision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """
    Attributes:
        recipe: A file, or the name of a recipe that is shipped.
        keys: That replace the recipe's, nested.
        values: Those of the recipe with all of this.
    """

    name: str
    recipe: str
    kind: Kind
    keys: Mapping[str, Any]
    values: Mapping[str, Any]
    num_processes: int | None = None
    accelerate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The stages in their order, and the folder in which what was done is recorded."""

    folder: Path
    stages: tuple[Stage, ...]


def read_stages(files: Sequence[Path], overrides: Mapping[str, Any]) -> Stages:
    """
    Args:
        files: Recipes, or one file with `stages`.
        overrides: Keys of one stage by `STAGE.key`, and `output_dir`.

    Raises:
        UserError: a file or a key of it is none, or stages contradict each other.
    """
    listed = _listed(files[0]) if len(files) == 1 else None
    if listed is None:
        entries: list[Any] = [{"name": _name_of(Path(file)), "recipe": str(file)} for file in files]
        where, folder = "command line", "runs/" + "-".join(entry["name"] for entry in entries)
    else:
        where, entries = str(files[0]), listed["stages"]
        folder = listed.get("output_dir") or f"runs/{files[0].stem}"
    stages = [_stage(entry, number, Path(where).parent, where) for number, entry in enumerate(entries, start=1)]
    names = [stage["name"] for stage in stages]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two stages have one name ({', '.join(names)}): give each its own `name` in a file")
    for key, value in overrides.items():
        name, dot, rest = key.partition(".")
        if key == "output_dir":
            folder = value
        elif not dot or name not in names:
            raise UserError(
                f"command line (--{key}): a key of one stage is written --STAGE.key, and the stages are "
                f"{', '.join(names)}{did_you_mean(name, names) if dot else ''}"
            )
        else:
            stages[names.index(name)]["keys"][rest] = value
    built = [_built(stage, number, where) for number, stage in enumerate(stages, start=1)]
    _check_apart(built, Path(str(folder)), where)
    return Stages(folder=Path(str(folder)), stages=tuple(built))


def output_of(stage: Stage, folder: Path) -> Path:
    """The folder of a stage's run: the recipe's own, else one in the stages' folder."""
    return Path(str(stage.values.get("output_dir") or folder / stage.name))


def _listed(file: Path) -> dict[str, Any] | None:
    """What a file with `stages` holds; None for a recipe."""
    path = find_recipe(file)
    with reading(path):
        values = read_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict) or STAGES not in values:
        return None
    unknown = [key for key in values if key not in (STAGES, "output_dir")]
    if unknown:
        raise UserError(f"{path}: unknown key `{unknown[0]}`: beside `stages` there is `output_dir` alone")
    if not isinstance(values[STAGES], list) or not values[STAGES]:
        raise UserError(f"{path}: `stages` must be a list of at least one stage, got {values[STAGES]!r}")
    return values


def _name_of(recipe: Path) -> str:
    """Of a stage that has no other: its recipe's, without the dots that divide keys."""
    return recipe.name.removesuffix(".yaml").replace(".", "-")


def _stage(entry: Any, number: int, beside: Path, where: str) -> dict[str, Any]:
    place = f"{where}: stage {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("recipe"), str):
        raise UserError(f"{place}: a stage is a mapping with `recipe`, a file or the name of a shipped recipe")
    recipe = entry["recipe"]
    try:
        file = beside / recipe if (beside / recipe).is_file() else find_recipe(recipe)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    shipped = {path: name for name, path in shipped_recipes().items()}
    name = str(entry.get("name") or _name_of(file))
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{place}: `name` is a word of letters, digits, - and _, got {name!r}")
    keys = {key: value for key, value in entry.items() if key not in _OWN}
    own = {key: entry[key] for key in _OWN if key in entry}
    return own | {"name": name, "recipe": shipped.get(file, str(file.resolve())), "keys": keys}


def _built(stage: Mapping[str, Any], number: int, where: str) -> Stage:
    place = f"{where}: stage {number}, {stage['name']}"
    for key, reason in _OF_THE_RUNNER.items():
        if key in stage["keys"] and stage["keys"][key] not in (None, False, "auto"):
            raise UserError(f"{place}: {key}: {reason}")
    if number > 1 and (given := [key for key in _STARTS if key in stage["keys"]]):
        raise UserError(f"{place}: {given[0]}: it starts from what the former stage exported; take the key out")
    keys, layers = Layers(), Layers()
    keys.add_keys({key: value for key, value in stage["keys"].items() if key not in _OF_THE_RUNNER})
    layers.add_file(Path(stage["recipe"]))
    layers.add(place, keys.values)
    kind = stage.get("kind") or kind_of(Path(stage["recipe"]), stage["keys"])
    if kind not in get_args(Kind):
        raise UserError(f"{place}: `kind` must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    processes, accelerate = stage.get("num_processes"), stage.get("accelerate")
    if processes is not None and (not isinstance(processes, int) or isinstance(processes, bool) or processes < 1):
        raise UserError(f"{place}: `num_processes` must be a whole number of at least 1, got {processes!r}")
    if accelerate is not None:
        find_accelerate_config(str(accelerate))
    return Stage(
        name=stage["name"],
        recipe=stage["recipe"],
        kind=kind,
        keys=keys.values,
        values=layers.values,
        num_processes=processes,
        accelerate=accelerate,
    )


def _check_apart(stages: Sequence[Stage], folder: Path, where: str) -> None:
    """Each run has a folder of its own."""
    places: dict[Path, str] = {folder.resolve(): "the stages' own records"}
    for stage in stages:
        out = output_of(stage, folder)
        if (other := places.get(out.resolve())) is not None:
            raise UserError(
                f"{where}: stage {stage.name}: its output_dir {out} is that of {other}, too: give it one of its own "
                f"(--{stage.name}.output_dir DIR)"
            )
        places[out.resolve()] = f"stage {stage.name}"
