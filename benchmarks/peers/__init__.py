"""The peers: small servers as the documentation of each library tells to write them, and their producers."""
