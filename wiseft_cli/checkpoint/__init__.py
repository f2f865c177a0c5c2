"""The checkpoint file: header, reader, writer, card, digest."""
