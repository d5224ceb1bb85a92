"""A critic alone, on made-up batches of a small language model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_lm
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.critic import Critic, Valued, value_loss
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.log_probs import ScoredBatch
from mmsearch_trl.trainer.value_model import ValueModel, value_model


PROMPT, COMPLETION = 3, 6
TOKENIZER = small_lm.build_tokenizer()
QUICK: dict[str, Any] = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}


def policy(*, adapted: bool = False) -> Any:
    model = small_lm.build_model(TOKENIZER)
    if not adapted:
        return model
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def critic(model: ValueModel | None = None, *, updates: int = 50, rows: int = 2, **options: Any) -> Critic:
    model = model or value_model(policy(), "full", seed=0, checkpointing=None)
    made = Critic(model, CriticConfig(**(QUICK | options)), Accelerator(cpu=True), rows=rows, update=4, seed=1)
    made.schedule(updates)
    return made


def scored(rows: int = 8, seed: int = 0) -> ScoredBatch:
    """Rows of different lengths, left-padded prompts and right-padded completions with a reply in the middle."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 200, (rows, PROMPT + COMPLETION), generator=generator)
    ids[:, PROMPT] %= 10
    attention, score = torch.ones_like(ids), torch.ones(rows, COMPLETION, dtype=torch.long)
    for row in range(rows):
        attention[row, : row % PROMPT] = 0
        attention[row, PROMPT + COMPLETION - row % 3 :] = 0
        score[row, 2:4] = 0
    score *= attention[:, PROMPT:]
    vision = dict.fromkeys(("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids"))
    return ScoredBatch(input_ids=ids, attention_mask=attention, score_mask=score, **vision)  # pyright: ignore[reportArgumentType]


def valued(made: Critic, batch: ScoredBatch) -> Valued:
    """Returns that depend on the first completion token alone."""
    returns = (batch.input_ids[:, PROMPT] % 2).float()[:, None].expand(-1, COMPLETION) * batch.score_mask
    return Valued(batch=batch, values=made.values(batch), returns=returns, mask=batch.score_mask)


def test_a_value_is_what_the_model_alone_expects_before_the_token() -> None:
    model, batch = value_model(policy(), "full", seed=0, checkpointing=None), scored()
    found = critic(model, rows=3).values(batch)
    model.eval()
    for row in range(len(found)):
        kept = batch.attention_mask[row].bool()
        alone = torch.zeros(PROMPT + COMPLETION)
        with torch.no_grad():
            hidden = model.backbone(input_ids=batch.input_ids[row][kept][None]).last_hidden_state[0]
        alone[kept.nonzero().flatten()[1:]] = model.head(hidden)[:-1, 0].detach()
        torch.testing.assert_close(found[row], alone[PROMPT:] * batch.score_mask[row], atol=1e-6, rtol=1e-5)
    assert found[batch.score_mask.bool()].std() > 1e-4


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_loss_is_half_the_greater_squared_error_of_value_and_clipped_value(clip: float | None) -> None:
    rng = np.random.default_rng(0)
    values, old, returns = rng.normal(size=(3, 5, 7))
    clipped = values if clip is None else old + np.clip(values - old, -clip, clip)
    expected = 0.5 * np.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    found = value_loss(torch.tensor(values), torch.tensor(old), torch.tensor(returns), clip)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("rows, epochs", [(1, 1), (3, 2), (8, 1)])
def test_an_update_is_a_step_on_the_mean_over_all_tokens_however_they_are_forwarded(rows: int, epochs: int) -> None:
    """Against one forward pass over each update's rows in plain PyTorch."""
    batch = scored()
    made = critic(rows=rows, epochs=epochs, max_grad_norm=0.5, weight_decay=0.1, batch_size=8)
    given = valued(made, batch)
    metrics = [made.fit(given, "0"), made.fit(given, "1")]
    plain = value_model(policy(), "full", seed=0, checkpointing=None)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for _ in range(2 * epochs):
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        values = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions)
        values = values[:, PROMPT - 1 : -1, 0]
        error = value_loss(values, given.values, given.returns, 0.2) * given.mask
        loss = error.sum() / given.mask.sum()
        losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    expected = [sum(losses[i : i + epochs]) / epochs for i in (0, epochs)]
    assert [each["critic/loss"] for each in metrics] == pytest.approx(expected, rel=1e-4)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(made._trained[name], parameter, atol=2e-5, rtol=1e-4)


def test_the_loss_halves_within_thirty_batches_and_the_variance_is_explained() -> None:
    made = critic(updates=60, lr_scheduler_type="cosine_with_min_lr", warmup_steps=0.03, learning_rate=3e-3)
    metrics = []
    for number in range(30):
        given = valued(made, scored(seed=number))
        metrics.append(made.fit(given, str(number)))
    losses, explained = ([each[f"critic/{name}"] for each in metrics] for name in ("loss", "explained_variance"))
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
    # Before the first token nobody can tell: that is a third of all tokens.
    assert sum(explained[-5:]) / 5 > 0.3 > 0.1 > explained[0]
    rates = [each["critic/learning_rate"] for each in metrics]
    assert max(rates) == pytest.approx(3e-3, rel=0.01) and rates[-1] == pytest.approx(3e-4)


def test_rows_that_count_for_nothing_teach_nothing() -> None:
    made, batch = critic(batch_size=8), scored()
    given = valued(made, batch)
    mask = given.mask.clone()
    mask[::2] = 0
    spoilt = given.returns.clone()
    spoilt[::2] = 1e6
    found = made.fit(Valued(batch=batch, values=given.values, returns=spoilt, mask=mask), "0")
    assert found["critic/loss"] < 1
    nothing = Valued(batch=batch, values=given.values, returns=spoilt, mask=torch.zeros_like(mask))
    assert critic().fit(nothing, "0")["critic/loss"] == 0
    weights = {name: p.clone() for name, p in made._trained.items()}
    assert all(p.isfinite().all() for p in weights.values())


def test_a_critic_that_was_saved_and_loaded_goes_on_to_the_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr_scheduler_type": "cosine_with_min_lr", "warmup_steps": 2, "learning_rate": 1e-3}
    whole = critic(updates=8, **options)
    whole.save(tmp_path / "unfitted")
    for number in range(4):
        if number == 2:
            whole.save(tmp_path)
        whole.fit(valued(whole, scored(seed=number)), str(number))
    resumed = critic(value_model(policy(), "full", seed=9, checkpointing=None), updates=8, **options)
    resumed.load(tmp_path)
    for number in (2, 3):
        resumed.fit(valued(resumed, scored(seed=number)), str(number))
    for name, parameter in whole._trained.items():
        assert torch.equal(resumed._trained[name], parameter), name
        for kept, value in whole._optimizer.state[parameter].items():
            assert torch.equal(resumed._optimizer.state[resumed._trained[name]][kept], value), (name, kept)
    assert resumed._optimizer.param_groups[0]["lr"] == whole._optimizer.param_groups[0]["lr"]
    anew = critic(updates=8, **options)
    anew.load(tmp_path / "unfitted")
    for number in range(4):
        anew.fit(valued(anew, scored(seed=number)), str(number))
    assert all(torch.equal(anew._trained[name], parameter) for name, parameter in whole._trained.items())


def test_a_checkpoint_without_its_critic_or_with_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no critic of such a run \(critic/critic\.pt\)"):
        critic().load(tmp_path)
    critic().save(tmp_path)
    (tmp_path / "cut" / "critic").mkdir(parents=True)
    (tmp_path / "cut" / "critic" / "critic.pt").write_bytes((tmp_path / "critic" / "critic.pt").read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"the critic in .* cannot be loaded"):
        critic().load(tmp_path / "cut")
    wider = value_model(small_lm.build_model(TOKENIZER, hidden=32), "full", seed=0, checkpointing=None)
    with pytest.raises(UserError, match=r"the critic in .* cannot be loaded"):
        critic(wider).load(tmp_path)
    adapter = value_model(policy(adapted=True), "adapter", seed=0, checkpointing=None)
    with pytest.raises(UserError, match=r"the critic in .* cannot be loaded"):
        critic(adapter).load(tmp_path)


@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}], ids=["", "checkpointed"])
def test_fitting_leaves_the_policy_as_it_is(kind: Any, checkpointing: dict[str, Any] | None) -> None:
    model = policy(adapted=True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    names = [name for name, _ in model.named_modules()]
    torch.manual_seed(3)
    made = critic(value_model(model, kind, seed=0, checkpointing=checkpointing))
    assert torch.equal(torch.rand(1), torch.manual_seed(3) and torch.rand(1)), "it drew the run's random numbers"
    given = valued(made, scored())
    first = made.fit(given, "0")["critic/loss"]
    later = [made.fit(given, str(number))["critic/loss"] for number in range(10)]
    assert later[-1] < 0.9 * first
    assert [name for name, _ in model.named_modules()] == names
    assert isinstance(model, PeftModel) and list(model.peft_config) == ["default"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name
        assert parameter.requires_grad == ("lora" in name)


def test_a_critic_begins_where_an_adapted_policy_is_and_an_adapter_shares_its_frozen_weights() -> None:
    model, batch = policy(adapted=True), scored()
    full, shared = (value_model(model, kind, seed=0, checkpointing=None) for kind in ("full", "adapter"))
    with torch.no_grad():
        hidden, bare = (
            each.base_model(input_ids=batch.input_ids).last_hidden_state for each in (model.get_base_model(), policy())
        )
        for made in (full, shared):
            torch.testing.assert_close(made.backbone(input_ids=batch.input_ids).last_hidden_state, hidden)
    assert (hidden - bare).abs().max() > 0.01
    assert torch.equal(full.head.weight, shared.head.weight)
    frozen = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in shared.parameters() if not p.requires_grad} <= frozen
    trained = {name: p for name, p in shared.named_parameters() if p.requires_grad}
    assert len(trained) == 10 and all(".lora_" in name or name.startswith("head.") for name in trained)
    assert not {p.data_ptr() for p in trained.values()} & {p.data_ptr() for p in model.parameters()}
    assert all(p.requires_grad and "lora" not in name for name, p in full.named_parameters())


def test_what_a_critic_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="set use_peft"):
        value_model(policy(), "adapter", seed=0, checkpointing=None)
    quantized = policy()
    quantized.is_quantized = True
    with pytest.raises(UserError, match=r"quantized: set it to adapter"):
        value_model(quantized, "full", seed=0, checkpointing=None)
    with pytest.raises(UserError, match=r"critic\.batch_size: 3 does not divide a batch of 8"):
        critic(batch_size=3).updates(8)
    with pytest.raises(UserError, match=r"critic\.batch_size: 16 does not divide a batch of 8"):
        critic(batch_size=16).updates(8)
    assert [critic(epochs=3, batch_size=size).updates(8) for size in (8, 2, None)] == [3, 12, 6]
    assert critic().updates(2) == 1
    with pytest.raises(UserError, match=r"critic\.lr_scheduler_type: cosin "):
        critic(lr_scheduler_type="cosin")
    with pytest.raises(UserError, match="reduce_lr_on_plateau follows a metric"):
        critic(lr_scheduler_type="reduce_lr_on_plateau")
    for options, words in (
        ({"model": "half"}, "critic.model must be full or adapter"),
        ({"epochs": 0}, "critic.epochs must be at least 1"),
        ({"learning_rate": -1.0}, "critic.learning_rate must be at least 0"),
        ({"value_clip": 0.0}, "critic.value_clip must be above 0"),
        ({"adam_beta2": 1.0}, "critic.adam_beta2 must be from 0 to below 1"),
        ({"warmup_batches": -1}, "critic.warmup_batches must be at least 0"),
    ):
        with pytest.raises(UserError, match=words):
            CriticConfig(**options)  # pyright: ignore[reportArgumentType]
