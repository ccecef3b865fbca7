# Save checkpoint
checkpoint_path = tracking_system.save_checkpoint(
    model, optimizer, scheduler,
    epoch=epoch, step=step,
    metrics=metrics,
    is_best=is_best_model
)

# Load checkpoint
checkpoint_info = tracking_system.load_checkpoint(
    checkpoint_path, model, optimizer, scheduler, device="cuda"
)

# List available checkpoints
checkpoints = tracking_system.checkpointer.list_checkpoints(experiment_id)
for checkpoint in checkpoints:
    print(f"Step {checkpoint['step']}: {checkpoint['filename']}")

# Get best checkpoint
best_checkpoint = tracking_system.checkpointer.get_best_checkpoint(experiment_id)
