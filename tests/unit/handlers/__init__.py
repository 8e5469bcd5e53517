"""Tests of the HTTP handlers, each without the rest of the gateway."""
