"""The pages that people open: a small read-only web application over the views. No figure is computed here."""
