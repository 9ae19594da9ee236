"""The pages that people open: a read-only web application over the views. It computes no figures."""
