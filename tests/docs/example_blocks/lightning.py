import lightning as L, torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from milepost.integrations.lightning import MilepostCheckpointIO, MilepostLogger

class Classifier(L.LightningModule):
    def __init__(self, learning_rate: float = 2e-5):
        super().__init__()
        self.save_hyperparameters()                      # reaches the run; Namespace and OmegaConf can be saved too
        self.net = build_bert()

    def training_step(self, batch, _):
        loss = self.net(**batch).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val/loss", self.net(**batch).loss, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)

logger = MilepostLogger(name="bert-lightning", tags=["bert"], resume="auto")       # one run for all ranks
best = ModelCheckpoint(dirpath="out", monitor="val/loss", save_top_k=3, save_last=True, every_n_train_steps=500)
trainer = L.Trainer(max_epochs=3, devices=8, strategy="ddp", logger=logger,
                    callbacks=[best, LearningRateMonitor("step")], plugins=[MilepostCheckpointIO()])
trainer.fit(Classifier(), data, ckpt_path="last")        # newest sound file; says which one it left out, and why
model = Classifier.load_from_checkpoint(best.best_model_path)
logger.run.checkpoints                                   # Lightning's files, with their digests and metrics
