"""The chatbot feature: turns of real bundles, shown as messages, logs and stats of a workflow."""
