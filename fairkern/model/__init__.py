"""What is known of somebody else's model: its tensors, its layers, its calls, and how to leave it as it was."""
