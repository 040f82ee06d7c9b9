"""Graph passes: one small file for each rule, and the pipeline that runs and verifies them."""

from wpk.passes.pipeline import default_pipeline, format_pipeline, parse_pipeline, run_pipeline

__all__ = ["default_pipeline", "format_pipeline", "parse_pipeline", "run_pipeline"]
