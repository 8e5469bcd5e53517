"""Every instrument declared once, and how Prometheus reads them."""
