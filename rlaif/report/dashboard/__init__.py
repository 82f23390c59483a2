"""Dashboards from one layout: panels of the HTML page, a W&B workspace and a W&B report."""
