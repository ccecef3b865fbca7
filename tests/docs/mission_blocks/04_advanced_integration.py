# TensorBoard integration (automatic)
# Metrics are automatically logged to TensorBoard
# View with: tensorboard --logdir=./runs

# W&B integration (automatic)
# Experiments are automatically logged to W&B
# Models are logged as artifacts

# Custom metric logging
custom_metrics = {
    "custom_metric": custom_value,
    "gradient_norm": torch.norm(torch.stack([p.grad.norm() for p in model.parameters()])),
    "memory_usage": torch.cuda.memory_allocated() / 1024**3  # GB
}
tracking_system.log_metrics(custom_metrics, step)
