import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torchdata.stateful_dataloader import StatefulDataLoader
from experiment_tracking_checkpointing_system import ExperimentTrackingSystem, ExperimentConfig

dist.init_process_group()
config = ExperimentConfig(
    checkpoint_dir="/scratch/me/checkpoints", save_frequency=500, max_checkpoints=3, wandb_project="my-nlp-project",
    best_metric="val/loss", best_mode="min",                    # +
    save_on_signal=("SIGTERM", "SIGUSR1"))                      # + sets a flag; the next should_save() is True
tracking_system = ExperimentTrackingSystem(config)              # every rank builds one; all join rank 0's run

model, optimizer, scheduler = build()
model = DDP(torch.compile(model.cuda()))                        # module. and _orig_mod. never reach the file
scaler = torch.amp.GradScaler()
loader = StatefulDataLoader(train_set, batch_size=16, shuffle=True, num_workers=4)

tracking_system.start_experiment(
    name="bert-fine-tuning", hyperparameters=HP, model_config=MODEL, dataset_info=DATA, tags=["bert"],
    resume="auto")                                              # + the same SLURM job after a requeue is the same run
at = tracking_system.resume(model, optimizer, scheduler, scaler=scaler, loader=loader)     # + also checks that all of it can be saved
step = at.step
for epoch in range(at.epoch, HP["epochs"]):
    for batch in loader:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
        tracking_system.log_metrics({"train/loss": loss.detach(), "lr": scheduler.get_last_lr()[0]}, step, epoch=epoch)
        if tracking_system.should_save(step):                   # 500 steps since the last save, or a signal came
            val = {} if tracking_system.should_stop else evaluate(model)
            tracking_system.log_metrics(val, step, epoch=epoch)
            tracking_system.save_checkpoint(step=step, epoch=epoch, metrics=val)           # best is read off best_metric
        if tracking_system.should_stop:                         # + true after the signal
            tracking_system.end_experiment(status="preempted")  # waits for the commit, prints the command that goes on
            raise SystemExit(0)
        step += 1
tracking_system.end_experiment(evaluate(model))
