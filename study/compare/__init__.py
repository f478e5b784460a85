"""All methods compared on equal terms."""
