from transformers import Trainer, TrainingArguments
from milepost.integrations.huggingface import MilepostCallback, newest_checkpoint        # + newest_checkpoint

args = TrainingArguments("out", save_steps=500, save_total_limit=3, report_to="none",
                         eval_strategy="steps", eval_steps=500, metric_for_best_model="eval_loss")
trainer = Trainer(model, args, train_dataset=train_set, eval_dataset=val_set,
                  callbacks=[MilepostCallback(name="bert-fine-tuning", resume="auto")])
trainer.train(resume_from_checkpoint=newest_checkpoint("out"))        # newest folder that is whole and verified, or None
AutoModel.from_pretrained("out/checkpoint-1000")                      # must still work: the folder stays Hugging Face's
