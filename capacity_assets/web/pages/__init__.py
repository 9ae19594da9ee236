"""The pages: each reads what it shows into one frozen dataclass, which is its JSON too."""
