"""Fine-tuning: recipe, schedule, loop."""
