"""What tests of pipelines need: programs that behave in every way that real ones do, on purpose."""
