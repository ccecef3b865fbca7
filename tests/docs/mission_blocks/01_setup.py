from experiment_tracking_checkpointing_system import (
    ExperimentTrackingSystem, 
    ExperimentConfig
)

# Create configuration
config = ExperimentConfig(
    experiment_dir="./experiments",
    checkpoint_dir="./checkpoints",
    logs_dir="./logs",
    metrics_dir="./metrics",
    tensorboard_dir="./runs",
    wandb_project="my-nlp-project",
    save_frequency=1000,
    max_checkpoints=5,
    compression=True
)

# Initialize system
tracking_system = ExperimentTrackingSystem(config)
