"""Whether the sampler's weights are still the policy's."""

from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.distributed.ranks import Ranks


class WeightVersion:
    """The version of the weights that were sent last.

    Attributes:
        count: Syncs so far.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sent: int | None = None
        self.count = 0

    def changed(self, policy: Policy, *, also: bool = False) -> bool:
        """Whether any rank's weights were written to since they were sent; a collective call.

        Args:
            also: This rank needs them for another reason.
        """
        return self._ranks.any(also or self._sent is None or self._sent != policy.version)

    def sent(self, policy: Policy) -> None:
        self._sent = policy.version
        self.count += 1
