"""PADRe (arXiv 2407.11306): polynomial mixing in place of softmax attention."""
