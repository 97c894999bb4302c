"""The gRPC service: sessions, scheduling, the pipeline and metrics."""
