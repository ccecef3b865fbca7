pip install -r requirements_experiment_tracking.txt

# For TensorBoard integration
pip install tensorboard

# For Weights & Biases integration
pip install wandb
