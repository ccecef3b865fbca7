import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from milepost.integrations.lightning import MilepostLogger, MilepostCheckpointIO

trainer = L.Trainer(max_epochs=3, logger=MilepostLogger(name="bert", resume="auto"), plugins=[MilepostCheckpointIO()],
                    callbacks=[ModelCheckpoint(monitor="val/loss", save_top_k=3, save_last=True)])
trainer.fit(module, data, ckpt_path="last")                           # falls back to the newest sound one, and says so
Module.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)   # must still work: it calls torch.load
