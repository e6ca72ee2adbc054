"""What surrounds the training loop: run folders, checkpoints, several processes, studies, the command line's manners."""
