"""What of ``TrainingArguments`` describes a run?"""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from milepost.integrations.huggingface_arguments import hyperparameters_of, metric_names, model_facts
from tests.contract.huggingface_training import tiny_model


def test_defaults_are_left_out_but_for_those_that_one_compares(tmp_path: Path) -> None:
    kept = hyperparameters_of(TrainingArguments(str(tmp_path), report_to="none"))
    assert kept.keys() == {
        *("output_dir", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed", "weight_decay"),
        *("gradient_accumulation_steps", "lr_scheduler_type", "optim", "max_grad_norm"),
    }


def test_what_differs_and_what_the_name_asks_for_is_kept_as_plain_values_without_tokens(tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path), warmup_steps=7, lr_scheduler_type="cosine", hub_token="hf_secret", report_to="none"
    )
    kept = hyperparameters_of(args, "bert-{adam_beta1:.1f}")
    assert kept["warmup_steps"] == 7
    assert kept["lr_scheduler_type"] == "cosine"
    assert kept["adam_beta1"] == 0.9
    assert "hf_secret" not in str(kept)


def test_two_attempts_of_one_script_have_the_same_hyperparameters(tmp_path: Path) -> None:
    one, other = (hyperparameters_of(TrainingArguments(str(tmp_path), bf16=True, use_cpu=True)) for _ in range(2))
    assert one == other
    assert one["bf16"] is True


def test_metrics_are_called_as_in_weights_and_biases() -> None:
    logs = {"loss": 1.0, "eval_loss": 2.0, "test_f1": 3.0, "train_loss": 4.0, "epoch": 0.5, "learning_rate": 5.0}
    assert metric_names(logs) == {
        "train/loss": 1.0,
        "eval/loss": 2.0,
        "test/f1": 3.0,
        "train_loss": 4.0,
        "train/learning_rate": 5.0,
    }


def test_a_model_with_a_thousand_labels_is_described_without_them() -> None:
    model = tiny_model()
    model.config.id2label = {number: f"label-{number}" for number in range(1000)}
    facts = model_facts(model)
    assert facts["class"] == "BertForSequenceClassification"
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert "id2label" not in facts
