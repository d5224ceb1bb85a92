"""Sharded weights, where accelerate would share none out."""

from pathlib import Path

import pytest
from accelerate import DistributedType, PartialState
from runs import DIRECT

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.distributed.sharding import check_sharded
from mmsearch_trl.recipe.recipe import load_recipe


def test_processes_on_cpus_are_not_launched_with_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(DIRECT)
    recipe = load_recipe(tmp_path / "r.yaml")
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.MULTI_CPU)
    recipe.validate(check_files=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"^accelerate shards .* between GPUs alone, .*\(--accelerate ddp\)$"):
        recipe.validate(check_files=False)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.MULTI_GPU)
    check_sharded()
