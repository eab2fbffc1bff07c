"""The plugin registry: the plugins of libnvinfer_plugin, once they are registered; no creator of any is handed out."""

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


_registry: list[PluginRegistry] = []
_registered: list[PluginRegistry] = []


def registry() -> PluginRegistry:
    """Return the one registry."""
    if not _registry:
        _registry.append(PluginRegistry())
    return _registry[0]


def register(*_: object) -> PluginRegistry:
    """Answer `initLibNvInferPlugins` (NvInferPlugin.h): from now on, plugins are found."""
    _registered[:] = [registry()]
    return registry()


def are_registered() -> bool:
    """Tell whether the library's plugins are registered."""
    return bool(_registered)


def forget() -> None:
    """Be a process that has registered nothing."""
    _registered.clear()
