"""What surrounds the training loop: run folders, checkpoints, processes, studies, manners of the command line."""
