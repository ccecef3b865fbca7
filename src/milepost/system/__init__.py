"""The mission's front door, and the only place that wires the parts of a run together."""

from milepost.system.facade import ExperimentTrackingSystem, start
from milepost.system.tracker import ExperimentTracker

__all__ = ["ExperimentTracker", "ExperimentTrackingSystem", "start"]
