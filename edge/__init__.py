"""The model leaves the fleet: torch module -> integer graph -> artifact for one device target.

>>> import edge
>>> saved = edge.export_model(model, calibration, "model.tflite")  # doctest: +SKIP
>>> edge.open_artifact("model.tflite").predict(images)  # doctest: +SKIP

Each name is imported when it is first used, so that `import edge` takes no time.
"""

from fedkit.core import lazy, moved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edge.api import (
        check_artifact,
        export_model,
        float_graph,
        int8_graph,
        open_artifact,
        rewrite,
    )
    from edge.artifact import Artifact
    from edge.targets.tflite.runner import Runner
    from fedkit.graph.ir import Graph
else:
    __getattr__, __dir__ = lazy.offer(
        __name__,
        {
            "Artifact": "edge.artifact",
            "Graph": "fedkit.graph.ir",
            "Runner": "edge.targets.tflite.runner",
            "check_artifact": "edge.api",
            "export_model": "edge.api",
            "float_graph": "edge.api",
            "int8_graph": "edge.api",
            "open_artifact": "edge.api",
            "rewrite": "edge.api",
        },
    )

__all__ = [
    "Artifact",
    "Graph",
    "Runner",
    "check_artifact",
    "export_model",
    "float_graph",
    "int8_graph",
    "open_artifact",
    "rewrite",
]

moved.install()
