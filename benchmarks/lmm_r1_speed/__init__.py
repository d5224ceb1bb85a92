"""What this project's training and rollouts without tools cost, beside others' and beside one call of the engine."""
