"""What may a training be watched for? The rules for ``ExperimentConfig(rules=[...])``.

::

    from milepost.rules import NotFinite, Spike

    rules = [NotFinite("train/*", mark="diverged", pin=True, stop=True), Spike("train/loss")]
"""

from milepost.core.rules import Alert, ExplodingGradients, NoProgress, NotFinite, Plateau, Rule, Spike, Threshold

__all__ = ["Alert", "ExplodingGradients", "NoProgress", "NotFinite", "Plateau", "Rule", "Spike", "Threshold"]
