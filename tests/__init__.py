"""Tests: behaviour, against independent references where there are any."""
