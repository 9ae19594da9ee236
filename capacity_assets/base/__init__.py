"""Modules that every room uses: periods, units, errors, settings, files, the network. Imports no other room."""
