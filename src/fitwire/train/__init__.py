"""What runs inside a training process: tiny, import-light, and never in training's way."""
