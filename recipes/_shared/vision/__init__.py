"""Images, what is asked of them, and the training that the recipes of vision networks share."""
