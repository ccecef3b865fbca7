# Start experiment
experiment_id = tracking_system.start_experiment(
    name="bert-fine-tuning",
    description="Fine-tune BERT model on custom dataset",
    hyperparameters={
        "learning_rate": 2e-5,
        "batch_size": 16,
        "epochs": 3,
        "warmup_steps": 500
    },
    model_config={
        "model_type": "bert",
        "hidden_size": 768,
        "num_layers": 12
    },
    dataset_info={
        "name": "custom-dataset",
        "size": 50000,
        "vocab_size": 30000
    },
    tags=["bert", "fine-tuning", "nlp"]
)

# Log metrics during training
for step in range(1000):
    metrics = {
        "loss": current_loss,
        "accuracy": current_accuracy,
        "learning_rate": current_lr
    }
    tracking_system.log_metrics(metrics, step)
    
    # Save checkpoint periodically
    if step % 100 == 0:
        checkpoint_path = tracking_system.save_checkpoint(
            model, optimizer, scheduler, epoch=0, step=step,
            metrics=metrics, is_best=(step == 0)
        )

# End experiment
tracking_system.end_experiment({
    "final_loss": final_loss,
    "final_accuracy": final_accuracy
})
