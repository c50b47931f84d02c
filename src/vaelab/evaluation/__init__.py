"""Evaluation of a trained model: bounds of log p(x), its codes, its samples, and the tables of these metrics."""
