"""What surrounds the training loop: run folders, checkpoints, processes, studies, how a program ends."""
