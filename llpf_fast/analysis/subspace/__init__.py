"""Training in random subspaces: the intrinsic dimension of a task."""
