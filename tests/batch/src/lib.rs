//! What the tests and benchmarks of `batch-copy` share.
