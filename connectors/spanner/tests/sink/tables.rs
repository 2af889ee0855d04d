//! Tables: described, created, related.
