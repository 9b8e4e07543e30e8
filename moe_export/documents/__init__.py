"""Text sources and tokenizers: from files to token sequences."""
