"""How published image sets lie on disk: a module a layout, each lists sets in its card's labels."""
