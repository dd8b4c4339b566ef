"""How envelopes reach clients, and how messages come in."""

__version__ = "0.1.0"
