"""The tools of a rollout: the protocol's own, each by its name, and behind them the searches."""

import time
from collections.abc import Sequence
from dataclasses import replace

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.protocol.tool import Tool
from mmsearch_trl.rollout.loop import Tools
from mmsearch_trl.search.calls.record import CallRecord


class Toolbox:
    """Answers calls of `tools`; all else is for `search`, whose records and connections are also the toolbox's."""

    def __init__(self, search: Tools, tools: Sequence[Tool]) -> None:
        self._search = search
        self._tools = {tool.name: tool for tool in tools}

    async def answer(self, action: Action, trajectory: Trajectory) -> Observation:
        if action.kind is not ActionKind.TOOL:
            return await self._search.answer(action, trajectory)
        started, tool = time.perf_counter(), self._tools[action.tool]
        try:
            observation = await tool.run(action, trajectory)
        except SearchError as error:
            observation = Observation(tool=tool.name, failure=error.failure)
        return replace(observation, tool=tool.name, seconds=time.perf_counter() - started)

    def drain_records(self) -> list[CallRecord]:
        return self._search.drain_records()

    async def disconnect(self) -> None:
        await self._search.disconnect()
