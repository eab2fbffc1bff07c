"""The plugin registry: there are no plugins here, and it says so."""

from __future__ import annotations

import ctypes

from tests.standins.nvinfer.bridge import Native


class PluginRegistry(Native):
    """`IPluginRegistry` without creators."""

    kind = "PluginRegistry"

    def __init__(self) -> None:
        super().__init__(0, ParentSearchEnabled=False, ErrorRecorder=None)

    def isParentSearchEnabled(self) -> bool:
        return False

    def getPluginCreatorList(self, count: int) -> None:
        ctypes.c_int32.from_address(count).value = 0

    def getAllCreators(self, count: int) -> None:
        ctypes.c_int32.from_address(count).value = 0

    def getPluginCreator(self, name: str, version: str, space: str) -> None:
        return None

    def getCreator(self, name: str, version: str, space: str) -> None:
        return None
