"""Results of the last runs as the worker wrote them: a map on the network's grid is in no scene."""

import contextlib
import shutil
from pathlib import Path

from SaliencyExplainLib import errors, worker

#: A whole-body scan takes a gigabyte.
_MOST = 4


class Kept:
    """Folders of results by the map that was published from them; the oldest go first."""

    def __init__(self, most=_MOST):
        self._most = most
        self._folder = None
        self._found = {}

    def keep(self, volume, output):
        """Take over the folder of a result; without space for it, it is made again when needed."""
        with contextlib.suppress(OSError, errors.WorkerError):
            if self._folder is None:
                self._folder = worker.JobFolder()
            path = shutil.move(output, self._folder.output())
            self._found[volume.GetID()] = (str(path), _value(volume))
        for key in list(self._found)[: -self._most]:
            shutil.rmtree(self._found.pop(key)[0], ignore_errors=True)

    def of(self, volume):
        """Folder of the result that a map shows; "" for none."""
        path, value = self._found.get(volume.GetID(), ("", None))
        # Browsing a sequence puts another frame's map into the same node.
        return path if path and value == _value(volume) and Path(path).is_dir() else ""

    def close(self):
        """Forget and remove all."""
        if self._folder is not None:
            self._folder.remove()
        self._folder, self._found = None, {}


def _value(volume):
    return volume.GetAttribute("SaliencyExplain.value")
