"""ToSA: token selective attention."""
