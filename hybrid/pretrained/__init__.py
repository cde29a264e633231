"""The embedded models: one folder per pair, each loadable by `HybridPipeline.from_pretrained`."""
