"""What a student took over from its teacher: structure, features, gradients, other tasks."""
