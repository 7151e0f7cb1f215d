"""What `edgeport serve` is made of: the site, its server, its certificate, and what pages post."""
