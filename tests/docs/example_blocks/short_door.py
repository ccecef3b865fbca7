import milepost
from torchdata.stateful_dataloader import StatefulDataLoader

model, optimizer, scheduler = build()
loader = StatefulDataLoader(train_set, batch_size=16, shuffle=True)
with milepost.start("bert-fine-tuning", hyperparameters=hp, resume="auto") as run:       # + resume=
    at = run.resume(model, optimizer, scheduler, loader=loader)                          # + fresh run: step 0
    step = at.step
    for epoch in range(at.epoch, hp["epochs"]):
        for batch in loader:                                                             # goes on inside the epoch
            run.log({"train/loss": train_step(model, optimizer, scheduler, batch)}, step, epoch=epoch)
            if run.should_save(step):
                run.save_checkpoint(step=step, epoch=epoch)                              # + what resume() was given
            step += 1
