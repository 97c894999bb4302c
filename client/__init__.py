"""What instruments and lab pipelines import."""
