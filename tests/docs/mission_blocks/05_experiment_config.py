@dataclass
class ExperimentConfig:
    experiment_dir: str = "./experiments"      # Experiment storage directory
    checkpoint_dir: str = "./checkpoints"      # Checkpoint storage directory
    logs_dir: str = "./logs"                   # Log files directory
    metrics_dir: str = "./metrics"             # Metrics storage directory
    tensorboard_dir: str = "./runs"            # TensorBoard logs directory
    wandb_project: Optional[str] = None        # W&B project name
    save_frequency: int = 1000                 # Checkpoint save frequency
    max_checkpoints: int = 5                   # Maximum checkpoints to keep
    compression: bool = True                   # Enable checkpoint compression
