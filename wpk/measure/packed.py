"""Packed constants as files: configs that pack alike share them, for packing a large matrix takes longer than timing a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock

import numpy as np

from wpk.core.result import Config, config_key
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.measure.inputs import Folder
from wpk.providers.protocol import Provider

#: Bytes of packed constants kept for configs to come.
_KEEP = 2 << 30

Files = tuple[tuple[str, ...], int]  # paths, and their bytes together
_Key = tuple[str, str, str]


def packing_key(provider: Provider, config: Config) -> str:
    """Equal for configs whose constants ``provider`` packs alike: by the knobs it names in ``packing``, else by all."""
    names = getattr(provider, "packing", None)
    return config_key(config if names is None else {k: config[k] for k in names})


class Packs:
    """Packs constants into files of a folder, each packing once."""

    def __init__(self, folder: Folder, target: Target) -> None:
        self._folder, self._target = folder, target
        self._lock = Lock()
        self._kept: dict[_Key, Future[Files]] = {}

    def of(self, workload: Workload, provider: Provider, config: Config, constants: Sequence[np.ndarray]) -> Files:
        """The files of one config, made now or before. Safe to call from several threads. Raises what ``pack`` raises."""
        key = (workload.key, provider.name, packing_key(provider, config))
        with self._lock:
            known = self._kept.get(key)
            made: Future[Files] = known or self._kept.setdefault(key, Future())
        if known is None:
            try:
                packed = provider.pack(workload, config, constants, self._target)
                made.set_result((tuple(self._folder.save(a) for a in packed), sum(a.nbytes for a in packed)))
            except BaseException as error:
                made.set_exception(error)
                with self._lock:
                    del self._kept[key]
        return made.result()

    def make_room(self) -> None:
        """Forget the oldest while too much is kept. Only while no candidate is using the files."""
        sizes = {key: made.result()[1] for key, made in self._kept.items()}
        while sizes and sum(sizes.values()) > _KEEP:
            oldest = next(iter(sizes))
            del sizes[oldest]
            self._folder.forget(self._kept.pop(oldest).result()[0])
