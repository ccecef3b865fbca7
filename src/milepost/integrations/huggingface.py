"""What does a training with Hugging Face's Trainer need to be tracked, and to survive being killed?

A callback, a function that finds the folder to go on from, and, for those who want folders that are never torn, a
mixin for Trainer. ``docs/frameworks.md`` shows them.
"""

from __future__ import annotations

from milepost.core.errors import MissingDependencyError
from milepost.integrations.huggingface_folders import newest_checkpoint

try:
    from milepost.integrations.huggingface_callback import MilepostCallback
    from milepost.integrations.huggingface_fast_saves import MilepostTrainerMixin
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in {"transformers", "torch", "accelerate"}:
        raise
    raise MissingDependencyError(
        f"Hugging Face's Trainer is not available: no module {error.name!r}",
        cure='pip install "milepost[transformers]"',
    ) from error

__all__ = ["MilepostCallback", "MilepostTrainerMixin", "newest_checkpoint"]
