"""The server's own page at the metrics port: for people, above all where there is no Grafana."""
