"""Jobs in another process, so that 3D Slicer never imports torch and any job can be stopped.

The messages are in :mod:`.protocol`, the client's side without a process in :mod:`.conversation`,
with one in :mod:`.process`, the worker itself in :mod:`.server` and :mod:`.tasks`. Importing this
package imports neither torch nor slicer nor qt.
"""

from ..volume import Volume
from .conversation import (
    Conversation,
    Done,
    Event,
    Failed,
    Kill,
    Progress,
    Ready,
    Stopped,
    Waiting,
)
from .jobs import JobFolder, Result, read_result
from .launch import Launch, clean_environment, launch
from .models import NotTrustedError
from .process import Worker
from .protocol import (
    PROTOCOL,
    Evaluate,
    Explain,
    ExplainLayers,
    Hello,
    Layers,
    Load,
    ModelSource,
    Predict,
    Question,
    Report,
    Request,
    Trust,
)

__all__ = [
    "PROTOCOL",
    "Conversation",
    "Done",
    "Evaluate",
    "Event",
    "Explain",
    "ExplainLayers",
    "Failed",
    "Hello",
    "JobFolder",
    "Kill",
    "Launch",
    "Layers",
    "Load",
    "ModelSource",
    "NotTrustedError",
    "Predict",
    "Progress",
    "Question",
    "Ready",
    "Report",
    "Request",
    "Result",
    "Stopped",
    "Trust",
    "Volume",
    "Waiting",
    "Worker",
    "clean_environment",
    "launch",
    "read_result",
]
