"""What more than one recipe needs, one module a topic."""
