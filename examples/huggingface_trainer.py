"""A BERT, trained with Hugging Face's Trainer, tracked, and never without a folder to go on from.

    pip install "milepost[transformers]"
    python huggingface_trainer.py

The model is small and the sentences are Python's own manual, so nothing is downloaded when this runs. Kill it at any
moment and run it again: the same run goes on from the newest folder that is whole. Under SLURM or torchrun it runs
unchanged (``torchrun --nproc-per-node 2 huggingface_trainer.py``); after SIGUSR1 it saves and stops.
"""

import os
import pydoc_data.topics
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it then

import torch
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments, set_seed

from milepost.integrations.huggingface import MilepostCallback, MilepostTrainerMixin, newest_checkpoint

WORDS, LENGTH, MASK = 512, 16, 4


class MyTrainer(MilepostTrainerMixin, Trainer):
    """Optimizer, scheduler and random numbers in one checked file; the model stays Hugging Face's safetensors."""


def sentences():
    """The manual as pieces of ``LENGTH`` words; a word is known by a number that its letters give."""
    text = " ".join(pydoc_data.topics.topics.values()).split()
    numbers = torch.tensor([5 + zlib.crc32(word.encode()) % (WORDS - 5) for word in text[:16_000]])
    return [{"words": piece} for piece in numbers.split(LENGTH) if len(piece) == LENGTH]


def mask(batch):
    """Hide every seventh word; the model is to say which it was."""
    labels = torch.stack([sentence["words"] for sentence in batch])
    hidden = torch.rand(labels.shape) < 1 / 7
    return {"input_ids": labels.masked_fill(hidden, MASK), "labels": labels.masked_fill(~hidden, -100)}


def main():
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = BertForMaskedLM(BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **sizes))
    data = sentences()
    args = TrainingArguments(
        "out",
        num_train_epochs=3,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        logging_steps=10,
        save_steps=50,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=50,
        metric_for_best_model="eval_loss",
        load_best_model_at_end=True,
        remove_unused_columns=False,
        report_to="none",
    )
    tracking = MilepostCallback(
        name="bert-lr{learning_rate}", tags=["bert", "mlm"], resume="auto", save_on_signal=("SIGUSR1",)
    )
    trainer = MyTrainer(
        model, args, train_dataset=data[64:], eval_dataset=data[:64], data_collator=mask, callbacks=[tracking]
    )
    trainer.train(resume_from_checkpoint=newest_checkpoint("out"))
    trainer.save_model("out/final")
    print(tracking.run)


if __name__ == "__main__":
    main()
