"""Scripts that print ratios against a peer, measured side by side in one run. See README.md."""
