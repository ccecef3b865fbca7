import sys
from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments
from milepost.integrations.huggingface import MilepostCallback, MilepostTrainerMixin, newest_checkpoint

class MyTrainer(MilepostTrainerMixin, Trainer):
    """Optimizer, scheduler, RNG and data position go into one milepost file; the model stays Hugging Face's safetensors."""

def main(out: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
    model = AutoModelForMaskedLM.from_pretrained("bert-base-uncased")
    args = TrainingArguments(
        out, num_train_epochs=3, per_device_train_batch_size=16, bf16=True, logging_steps=10,
        save_steps=500, save_total_limit=3, eval_strategy="steps", eval_steps=500,
        metric_for_best_model="eval_loss", load_best_model_at_end=True, report_to="none")
    tracking = MilepostCallback(
        name="bert-mlm-lr{learning_rate}",               # filled from TrainingArguments
        tags=["bert", "mlm"], resume="auto", wandb_project="my-nlp-project",
        save_on_signal=("SIGTERM", "SIGUSR1"))           # sets control.should_save and should_training_stop on all ranks
    trainer = MyTrainer(
        model, args, train_dataset=load("train"), eval_dataset=load("validation"), callbacks=[tracking],
        data_collator=DataCollatorForLanguageModeling(tokenizer))
    trainer.train(resume_from_checkpoint=newest_checkpoint(out))
    trainer.save_model(f"{out}/final")
    print(tracking.run)                                  # id, state, best, checkpoints, where to look

if __name__ == "__main__":
    main(sys.argv[1])
