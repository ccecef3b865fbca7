"""What does a training with Lightning import from milepost?

::

    from milepost.integrations.lightning import MilepostCheckpointIO, MilepostLogger

    trainer = L.Trainer(logger=MilepostLogger(name="bert", resume="auto"), plugins=[MilepostCheckpointIO()])
    trainer.fit(module, data, ckpt_path="last")
"""

from milepost.integrations.lightning_files import MilepostCheckpointIO
from milepost.integrations.lightning_logger import MilepostLogger

__all__ = ["MilepostCheckpointIO", "MilepostLogger"]
