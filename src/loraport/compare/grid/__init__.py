"""What is asked for: columns, prompts, seeds, and the clips of which they are the grid."""
