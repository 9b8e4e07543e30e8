"""Forward and backward passes of batches through a model, one decoder layer at a time."""
