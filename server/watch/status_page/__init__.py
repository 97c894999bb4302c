"""The server's own web page on the metrics port, for people, especially where there is no Grafana."""
