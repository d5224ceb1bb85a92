import torch

from mmsearch_trl.trainer.trajectory_loss import trajectory_policy_loss


OLD = torch.tensor([[-1.0, -2.0, -0.5], [-0.7, -0.2, -1.5]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
ADVANTAGES = torch.tensor([1.2, -0.8])


def test_an_unchanged_policy_has_minus_the_mean_advantage_as_loss() -> None:
    torch.testing.assert_close(trajectory_policy_loss(OLD, OLD, ADVANTAGES, MASK), -ADVANTAGES.mean())


def test_masked_tokens_have_no_part_in_the_loss_or_its_gradient() -> None:
    log_probs = (OLD + 0.05).requires_grad_()
    wild = torch.where(MASK == 0, torch.tensor(90.0), OLD)
    loss = trajectory_policy_loss(log_probs, wild, ADVANTAGES, MASK)
    torch.testing.assert_close(loss, trajectory_policy_loss(log_probs, OLD, ADVANTAGES, MASK))
    loss.backward()
    assert log_probs.grad is not None
    assert torch.equal(log_probs.grad != 0, MASK == 1)


def test_a_trajectory_past_the_clip_gives_no_gradient() -> None:
    log_probs = (OLD + torch.tensor([[1.0], [-1.0]])).requires_grad_()
    trajectory_policy_loss(log_probs, OLD, ADVANTAGES, MASK).backward()
    assert log_probs.grad is not None
    assert not log_probs.grad.any()


def test_clips_are_asymmetric_where_asked() -> None:
    log_probs = OLD + torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    narrow = trajectory_policy_loss(log_probs, OLD, ADVANTAGES, MASK)
    wide = trajectory_policy_loss(log_probs, OLD, ADVANTAGES, MASK, clip_high=0.28)
    torch.testing.assert_close(narrow - wide, torch.tensor(0.08 * 1.2 / 2))
