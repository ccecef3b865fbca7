"""Guests: TensorBoard, W&B and whoever else follows the run log."""
