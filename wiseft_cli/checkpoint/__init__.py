"""The checkpoint file: format, card, digest, reader and atomic writer, without torch."""
